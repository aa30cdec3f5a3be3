//! Who a host is.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{Router, body::Bytes, http::HeaderMap, routing::post};
use host_config::{Loaded, Sources};
use host_core::pubsub::InstanceFacts;
use host_service::identity;
use tokio::{net::TcpListener, task::JoinSet};

use super::imds::{Imds, Mode};

/// The configuration of a host whose metadata are at `endpoint`.
pub(crate) fn loaded(endpoint: &str, set: &[&str]) -> Loaded {
    let ec2 = ["instance.metadata=ec2".to_owned(), format!("instance.metadata_endpoint={endpoint}")];
    let set = ec2.into_iter().chain(set.iter().map(ToString::to_string)).collect();
    let profile = Some("localdev".to_owned());
    let sources = Sources { profile, system_dir: "/nonexistent".into(), set, ..Sources::default() };
    host_config::load(&sources).unwrap()
}

async fn find(imds: &Imds, set: &[&str]) -> Result<InstanceFacts, String> {
    identity::find(&loaded(&imds.endpoint, set)).await.map_err(|error| format!("{error:#}"))
}

#[tokio::test]
async fn every_fact_is_the_instances() {
    let imds = Imds::start().await;
    let facts = find(&imds, &["instance.commit=abc"]).await.unwrap();
    let expected = InstanceFacts {
        name: "host-7".parse().unwrap(),
        cloud_id: "i-0123456789".into(),
        image_id: "ami-0abc".into(),
        region: "eu-west-1".into(),
        instance_type: "g4dn.xlarge".into(),
        ip: "203.0.113.7".into(),
        commit: "abc".into(),
    };
    assert_eq!(facts, expected);
    assert_eq!(imds.tokens(), 1, "one session is enough");
}

#[tokio::test]
async fn what_is_set_comes_first() {
    let imds = Imds::start().await;
    imds.unset("tags/instance/Name");
    let facts =
        find(&imds, &["instance.name=mine", "instance.ip=198.51.100.1", "instance.type=big"]).await.unwrap();
    assert_eq!((facts.name.as_str(), &*facts.ip, &*facts.instance_type), ("mine", "198.51.100.1", "big"));
    assert_eq!(facts.region, "eu-west-1");
}

#[tokio::test]
async fn without_a_public_address_it_is_the_private_one() {
    let imds = Imds::start().await;
    imds.unset("public-ipv4");
    assert_eq!(find(&imds, &[]).await.unwrap().ip, "10.0.0.7");
}

#[tokio::test]
async fn tokens_that_expire_are_replaced_and_throttling_passes() {
    let imds = Imds::start().await;
    imds.script().token_uses = 2;
    assert_eq!(find(&imds, &[]).await.unwrap().name.as_str(), "host-7");
    assert_eq!(imds.tokens(), 3, "six values, two for each");
    imds.script().throttle = 5;
    assert_eq!(find(&imds, &["instance.metadata_timeout=60s"]).await.unwrap().name.as_str(), "host-7");
    imds.script().delay = Duration::from_millis(50);
    assert_eq!(find(&imds, &["instance.metadata_timeout=60s"]).await.unwrap().name.as_str(), "host-7");
}

#[tokio::test]
async fn what_is_no_metadata_service_is_told_in_time_with_the_alternative() {
    let imds = Imds::start().await;
    for (mode, says) in [
        (Mode::Silence, "no answer within"),
        (Mode::Status(500), "status 500"),
        (Mode::Status(429), "too often"),
        (Mode::Status(401), "wants a token to give one"),
        (Mode::Status(403), "--http-endpoint enabled"),
        (Mode::Status(302), "status 302"),
        (Mode::Page, "no plain value"),
        (Mode::Flood, "no plain value"),
        (Mode::NoTokens, "IMDSv2"),
    ] {
        imds.script().mode = mode;
        let began = Instant::now();
        let error = find(&imds, &["instance.metadata_timeout=1s"]).await.unwrap_err();
        assert!(began.elapsed() < Duration::from_secs(20), "{mode:?} took {:?}", began.elapsed());
        assert!(error.contains(says), "{mode:?}: {error}");
        assert!(error.contains("instance.metadata = \"static\""), "{mode:?}: {error}");
    }
    let nobody = loaded("http://127.0.0.1:1", &["instance.metadata_timeout=1s"]);
    let error = format!("{:#}", identity::find(&nobody).await.unwrap_err());
    assert!(error.contains("http://127.0.0.1:1 did not tell meta-data/instance-id"), "{error}");
    for bad in ["ftp://x", "x", "https://169.254.169.254"] {
        let error = format!("{:#}", identity::find(&loaded(bad, &[])).await.unwrap_err());
        assert!(error.contains("is no URL of a metadata service"), "{error}");
    }
}

#[tokio::test]
async fn an_instance_without_a_fact_says_which_and_what_to_set() {
    let imds = Imds::start().await;
    imds.unset("ami-id");
    let error = find(&imds, &[]).await.unwrap_err();
    assert!(error.contains("has no ami-id; set instance.image_id"), "{error}");
    imds.set("ami-id", "ami-1");
    imds.set("tags/instance/Name", &"canary".repeat(100));
    let error = find(&imds, &[]).await.unwrap_err();
    assert!(error.contains("the Name tag cannot be a host's name; set instance.name"), "{error}");
}

/// What EC2's API was asked, and what it answers.
struct Api {
    endpoint: String,
    asked: Arc<Mutex<Vec<(HeaderMap, String)>>>,
    _server: JoinSet<()>,
}

impl Api {
    async fn answering(status: u16, text: &'static str) -> Self {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let keep = asked.clone();
        let answer = move |headers: HeaderMap, body: Bytes| {
            keep.lock().unwrap().push((headers, String::from_utf8(body.to_vec()).unwrap()));
            async move { (axum::http::StatusCode::from_u16(status).unwrap(), text) }
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}/", listener.local_addr().unwrap());
        let router = Router::new().route("/", post(answer));
        let server = async move { axum::serve(listener, router).await.unwrap() };
        Self { endpoint, asked, _server: JoinSet::from_iter([server]) }
    }

    async fn find(&self, imds: &Imds) -> Result<InstanceFacts, String> {
        find(imds, &[&format!("instance.ec2_endpoint={}", self.endpoint)]).await
    }
}

/// An instance that shows no tags, and whose profile has credentials.
pub(crate) async fn without_tags() -> Imds {
    let imds = Imds::start().await;
    imds.unset("tags/instance/Name");
    imds.set("iam/security-credentials/", "host-role");
    let credentials = r#"{"Code":"Success","Type":"AWS-HMAC","AccessKeyId":"AKIDEXAMPLE",
        "SecretAccessKey":"canary-secret","Token":"canary-session","Expiration":"2099-01-01T00:00:00Z"}"#;
    imds.set("iam/security-credentials/host-role", credentials);
    imds
}

#[tokio::test]
async fn without_tags_in_the_metadata_a_signed_query_tells_the_name() {
    let imds = without_tags().await;
    let answer = "<?xml version=\"1.0\"?><DescribeTagsResponse xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\">\
        <tagSet><item><resourceId>i-0123456789</resourceId><key>Name</key><value>host-8</value></item></tagSet>\
        </DescribeTagsResponse>";
    let api = Api::answering(200, answer).await;
    assert_eq!(api.find(&imds).await.unwrap().name.as_str(), "host-8");
    let asked = api.asked.lock().unwrap();
    let (headers, body) = &asked[0];
    let header = |name: &str| headers[name].to_str().unwrap();
    assert!(header("authorization").starts_with("AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/"));
    assert!(header("authorization").contains("/eu-west-1/ec2/aws4_request"));
    assert_eq!(header("x-amz-security-token"), "canary-session");
    assert!(body.contains("Action=DescribeTags") && body.contains("i-0123456789"), "{body}");
}

#[tokio::test]
async fn without_a_name_the_error_says_three_ways_to_have_one_and_no_secret() {
    let imds = without_tags().await;
    for (status, answer, says) in [
        (200, "<DescribeTagsResponse><tagSet/></DescribeTagsResponse>", "no Name tag"),
        (
            403,
            "<Response><Errors><Error><Code>UnauthorizedOperation</Code></Error></Errors></Response>",
            "UnauthorizedOperation",
        ),
        (503, "", "503"),
        (200, "<html>portal</html>", "no answer of EC2's"),
    ] {
        let error = Api::answering(status, answer).await.find(&imds).await.unwrap_err();
        for text in [says, "--instance-metadata-tags enabled", "ec2:DescribeTags", "set instance.name"] {
            assert!(error.contains(text), "{error}");
        }
        assert!(!error.contains("canary"), "{error}");
    }
    imds.unset("iam/security-credentials/");
    let error = Api::answering(200, "").await.find(&imds).await.unwrap_err();
    assert!(error.contains("there are no credentials"), "{error}");
    imds.set("iam/security-credentials/", "host-role");
    imds.set("iam/security-credentials/host-role", "{\"AccessKeyId\":\"canary\"}");
    let error = Api::answering(200, "").await.find(&imds).await.unwrap_err();
    assert!(error.contains("cannot be read") && !error.contains("canary"), "{error}");
}
