//! Clients of a service: one that times its requests, and one of its admin API.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use host_tests::service::Service;
use reqwest::Client;
use serde_json::{Value, json};

/// What is asked for in all sections.
const APP: &str = "test/mandelbox";

/// As a client has it on its first request: no connection yet.
pub(crate) fn fresh() -> Result<Client> {
    Ok(Client::builder().tls_danger_accept_invalid_certs(true).build()?)
}

/// The request that the harness's own client sends for a mandelbox.
pub(crate) fn request(client: &Client, service: &Service, id: &str) -> reqwest::RequestBuilder {
    let body = json!({"mandelbox_id": id, "app_name": APP, "json_data": {"dpi": 96, "id": id}});
    client.put(format!("https://{}/json_transport", service.http())).json(&body)
}

/// Sends a request, reads the answer to its end, and insists on its status.
pub(crate) async fn timed(request: reqwest::RequestBuilder, status: u16) -> Result<Duration> {
    let begun = Instant::now();
    let answer = request.send().await?;
    let got = answer.status().as_u16();
    let body = answer.bytes().await?;
    let took = begun.elapsed();
    ensure!(got == status, "{got} for {status}: {}", String::from_utf8_lossy(&body));
    Ok(took)
}

/// From request to answer of one spin-up.
pub(crate) async fn spin_up(service: &Service, id: &str) -> Result<Duration> {
    let begun = Instant::now();
    service.spin_up(id).await?;
    Ok(begun.elapsed())
}

/// The admin API of one service.
#[derive(Debug)]
pub(crate) struct Admin(Client);

impl Admin {
    pub(crate) fn of(service: &Service) -> Result<Self> {
        Ok(Self(Client::builder().unix_socket(service.state().join("admin.sock")).build()?))
    }

    /// Stops a mandelbox and returns when it is gone. Without a grace it has the configured one.
    pub(crate) async fn stop(&self, id: &str, grace: Option<Duration>) -> Result<Duration> {
        let grace = grace.map(|grace| grace.as_millis());
        let url = format!("http://admin/v1/mandelboxes/{id}/stop");
        timed(self.0.post(url).json(&json!({ "grace_ms": grace })), 200).await
    }

    /// How long each stage of a mandelbox's spin-up took.
    pub(crate) async fn timings(&self, id: &str) -> Result<Vec<(String, Duration)>> {
        let view: Value = self.get(&format!("v1/mandelboxes/{id}")).await?.json().await?;
        let took = |timing: &Value| timing["micros"].as_u64().map(Duration::from_micros);
        let timing = |timing: &Value| Some((timing["stage"].as_str()?.to_owned(), took(timing)?));
        let timings = view["timings"].as_array().context("no timings")?;
        timings.iter().map(|one| timing(one).with_context(|| format!("no timing: {one}"))).collect()
    }

    /// Whether there is nothing of a mandelbox any more.
    pub(crate) async fn is_gone(&self, id: &str) -> Result<bool> {
        Ok(self.get(&format!("v1/mandelboxes/{id}")).await?.status() == 404)
    }

    async fn get(&self, path: &str) -> Result<reqwest::Response> {
        Ok(self.0.get(format!("http://admin/{path}")).send().await?)
    }
}
