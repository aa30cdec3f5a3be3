//! `openapi.json` at the root of the repository is what the code says.

use std::{env, fs, path::Path};

#[test]
fn the_committed_description_is_the_generated_one() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../openapi.json");
    let generated = host_service::admin::openapi::document().to_pretty_json().unwrap() + "\n";
    if env::var_os("UPDATE_OPENAPI").is_some() {
        fs::write(&path, &generated).unwrap();
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == generated,
        "openapi.json is not what the code says; write it anew with \
         UPDATE_OPENAPI=1 cargo test -p host-service --test openapi"
    );
}

/// Every failure that the contract has for clients is described.
#[test]
fn the_clients_request_has_its_own_server_and_every_failure() {
    let document = serde_json::to_value(host_service::admin::openapi::document()).unwrap();
    let item = &document["paths"]["/json_transport"];
    assert_eq!(item["servers"][0]["url"], "https://localhost:4678");
    let described: Vec<_> = item["put"]["responses"].as_object().unwrap().keys().cloned().collect();
    let contract = ["200", "400", "401", "403", "404", "405", "408", "409", "413", "429", "500", "503"];
    assert_eq!(described, contract);
}

/// OpenAPI 3.1 wants a description of each, and generators of clients want unique names.
#[test]
fn every_answer_is_described_and_every_operation_has_its_name() {
    let document = serde_json::to_value(host_service::admin::openapi::document()).unwrap();
    let mut names = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap().iter().filter(|(key, _)| *key != "servers") {
            names.push(operation["operationId"].as_str().unwrap().to_owned());
            for (status, answer) in operation["responses"].as_object().unwrap() {
                let described = answer["description"].as_str().is_some_and(|text| !text.is_empty());
                assert!(described, "{method} {path}: {status} has no description");
            }
        }
    }
    let all = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), all, "a name is used twice: {names:?}");
}
