//! What the plugin does with engines that Debian has no package of: too old, too new, slow, broken.
#![cfg(test)]

use std::{
    future::Future,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures::StreamExt;
use host_core::{
    ErrorKind, PluginError,
    runtime::{ContainerId, ContainerRef, LogOptions, Runtime, Selector},
};
use runtime_docker::{Config, DockerRuntime};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::watch,
    task::JoinSet,
};

/// More than any of these tests takes; a hang is a failure.
const RUNNING: &str = r#"{"Id":"c1","Name":"/c1","State":{"Status":"running"},"Config":{}}"#;
const DEADLINE: Duration = Duration::from_secs(20);
const TIMEOUT: Duration = Duration::from_millis(200);

/// How a request is answered.
#[derive(Debug, Clone)]
enum Reply {
    /// With a status and a whole body.
    With(u16, &'static str),
    /// With a body that is cut short.
    Cut(&'static str),
    /// With a body that never ends.
    Endless,
    Never,
    /// Once a request whose path contains this has come.
    After(&'static str, u16),
}

/// An engine at a socket of its own. Its tasks end with it.
struct Fake {
    directory: TempDir,
    requests: Arc<watch::Sender<Vec<String>>>,
    _tasks: JoinSet<()>,
}

type Answer = dyn Fn(&str) -> Reply + Send + Sync;

impl Fake {
    /// `answer` says how to answer what comes after the connection: its requests are `METHOD /path?query`.
    fn new(api_version: &'static str, answer: impl Fn(&str) -> Reply + Send + Sync + 'static) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("engine.sock")).unwrap();
        let requests = Arc::new(watch::Sender::new(Vec::new()));
        let answer: Arc<Answer> = Arc::new(answer);
        let mut tasks = JoinSet::new();
        let seen = Arc::clone(&requests);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, api_version, Arc::clone(&seen), Arc::clone(&answer)));
            }
        });
        Self { directory, requests, _tasks: tasks }
    }

    async fn connect(&self) -> Result<DockerRuntime, PluginError> {
        connect(self.directory.path().join("engine.sock")).await
    }

    fn requests(&self) -> Vec<String> {
        self.requests.borrow().clone()
    }
}

async fn connect(socket: PathBuf) -> Result<DockerRuntime, PluginError> {
    let endpoint = format!("unix://{}", socket.display()).parse().unwrap();
    DockerRuntime::connect(Config { endpoint, timeout: TIMEOUT }).await
}

async fn serve(
    mut stream: UnixStream,
    api_version: &str,
    seen: Arc<watch::Sender<Vec<String>>>,
    answer: Arc<Answer>,
) {
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read_buf(&mut request).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
    let request = String::from_utf8_lossy(&request);
    let line = request.split(" HTTP/").next().unwrap_or_default().to_owned();
    seen.send_modify(|requests| requests.push(line.clone()));
    let reply = if line.ends_with("/_ping") {
        Reply::With(200, "OK")
    } else if line.ends_with("/info") {
        Reply::With(200, "{}")
    } else {
        answer(&line)
    };
    let head = |status: u16, length: usize| {
        format!(
            "HTTP/1.1 {status} X\r\nApi-Version: {api_version}\r\nServer: Docker/9.8.7 (linux)\r\nContent-Length: {length}\r\n\r\n"
        )
    };
    let _ = match reply {
        Reply::With(status, body) => stream.write_all((head(status, body.len()) + body).as_bytes()).await,
        Reply::Cut(body) => stream.write_all((head(200, body.len() + 1) + body).as_bytes()).await,
        Reply::Endless => {
            let _ = stream.write_all(head(200, usize::MAX >> 1).as_bytes()).await;
            while stream.write_all(b"            ").await.is_ok() {
                tokio::task::yield_now().await;
            }
            Ok(())
        }
        Reply::Never => std::future::pending().await,
        Reply::After(path, status) => {
            let mut requests = seen.subscribe();
            let _ = requests.wait_for(|seen| seen.iter().any(|line| line.contains(path))).await;
            stream.write_all(head(status, 0).as_bytes()).await
        }
    };
}

fn container() -> ContainerRef {
    ContainerId("c1".to_owned()).into()
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("it hangs")
}

fn kind<T>(outcome: Result<T, PluginError>) -> Option<ErrorKind> {
    outcome.err().map(|error| error.kind())
}

#[tokio::test]
async fn an_engine_that_is_not_there_is_told_with_the_remedy() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("engine.sock");
    let missing = soon(connect(socket.clone())).await.unwrap_err();
    drop(UnixListener::bind(&socket).unwrap());
    let deserted = soon(connect(socket.clone())).await.unwrap_err();
    for error in [missing, deserted] {
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        let text = error.to_string();
        assert!(text.contains("systemctl start docker") && text.contains(socket.to_str().unwrap()), "{text}");
    }
}

#[tokio::test]
async fn an_engine_that_is_too_old_is_refused() {
    let fake = Fake::new("1.40", |_| Reply::Never);
    let error = soon(fake.connect()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("1.40"), "{error}");
}

#[tokio::test]
async fn every_request_carries_the_newest_version_that_both_know() {
    let newest = bollard::API_DEFAULT_VERSION.to_string();
    for (engine, spoken) in [("1.41", "1.41"), ("1.44", "1.44"), ("1.999", newest.as_str())] {
        let fake = Fake::new(engine, |request| match request {
            request if request.contains("/events") => Reply::Endless,
            _ => Reply::With(200, "[]"),
        });
        let docker = soon(fake.connect()).await.unwrap();
        soon(docker.list(&Selector::default())).await.unwrap();
        drop(soon(docker.events(&Selector::default())).await.unwrap());
        let info = soon(docker.health()).await.unwrap();
        assert_eq!(info.version, "9.8.7");
        assert_eq!(info.api_version.as_deref(), Some(spoken));
        for request in fake.requests() {
            let path = request.split(' ').nth(1).unwrap();
            assert!(path == "/_ping" || path.starts_with(&format!("/v{spoken}/")), "{request}");
        }
    }
}

#[tokio::test]
async fn what_is_no_answer_is_an_error_and_no_hang() {
    for (reply, expected) in [
        (Reply::With(200, "no json"), ErrorKind::Internal),
        (Reply::With(200, "{\"Names\": 3}"), ErrorKind::Internal),
        (Reply::With(500, "no json"), ErrorKind::Internal),
        (Reply::Cut("["), ErrorKind::Unavailable),
        (Reply::Never, ErrorKind::Timeout),
        (Reply::Endless, ErrorKind::Timeout),
    ] {
        let sent = reply.clone();
        let fake = Fake::new("1.41", move |_| sent.clone());
        let docker = soon(fake.connect()).await.unwrap();
        assert_eq!(kind(soon(docker.list(&Selector::default())).await), Some(expected), "{reply:?}");
        assert_eq!(kind(soon(docker.inspect(&container())).await), Some(expected), "{reply:?}");
    }
}

#[tokio::test]
async fn a_stream_whose_head_does_not_come_is_an_error() {
    let fake = Fake::new("1.41", |request| match request {
        request if request.contains("/json") => Reply::With(200, RUNNING),
        _ => Reply::Never,
    });
    let docker = soon(fake.connect()).await.unwrap();
    assert_eq!(kind(soon(docker.events(&Selector::default())).await), Some(ErrorKind::Timeout));
    assert_eq!(kind(soon(docker.logs(&container(), LogOptions::default())).await), Some(ErrorKind::Timeout));
}

#[tokio::test]
async fn a_stream_that_breaks_ends_with_an_error() {
    let fake = Fake::new("1.41", |_| Reply::Cut("\n"));
    let docker = soon(fake.connect()).await.unwrap();
    let events = soon(docker.events(&Selector::default())).await.unwrap();
    let items: Vec<_> = soon(events.collect()).await;
    assert_eq!(items.len(), 1);
    assert_eq!(items[0].as_ref().unwrap_err().kind(), ErrorKind::Unavailable);
}

#[tokio::test]
async fn a_fraction_of_a_second_of_grace_is_kept() {
    let fake = Fake::new("1.41", |request| match request {
        request if request.contains("/stop") => Reply::After("/kill", 204),
        _ => Reply::With(204, ""),
    });
    let docker = soon(fake.connect()).await.unwrap();
    let (begun, grace) = (Instant::now(), Duration::from_millis(250));
    soon(docker.stop(&container(), grace)).await.unwrap();
    assert!(begun.elapsed() >= grace);
    let requests = fake.requests();
    assert_eq!(
        requests[2..],
        ["POST /v1.41/containers/c1/stop?t=1", "POST /v1.41/containers/c1/kill?signal=SIGKILL"]
    );
}

#[tokio::test]
async fn whole_seconds_of_grace_are_the_engines() {
    let fake = Fake::new("1.41", |_| Reply::With(304, ""));
    let docker = soon(fake.connect()).await.unwrap();
    soon(docker.stop(&container(), Duration::from_secs(3))).await.unwrap();
    assert_eq!(fake.requests()[2..], ["POST /v1.41/containers/c1/stop?t=3"]);
}

#[tokio::test]
async fn somebody_elses_removal_is_waited_for() {
    let tries = Mutex::new(0);
    let fake = Fake::new("1.41", move |request| {
        if request.contains("/wait") {
            return Reply::With(200, "{\"StatusCode\":137}\n");
        }
        let mut tries = tries.lock().unwrap();
        *tries += 1;
        match *tries {
            1 => Reply::With(409, "{\"message\":\"removal of container c1 is already in progress\"}"),
            _ => Reply::With(404, "{\"message\":\"No such container: c1\"}"),
        }
    });
    let docker = soon(fake.connect()).await.unwrap();
    soon(docker.remove(&container())).await.unwrap();
    let requests = fake.requests();
    let methods: Vec<_> = requests[2..].iter().map(|request| request.split('?').next().unwrap()).collect();
    assert_eq!(
        methods,
        ["DELETE /v1.41/containers/c1", "POST /v1.41/containers/c1/wait", "DELETE /v1.41/containers/c1"]
    );
}

#[tokio::test]
async fn a_container_that_goes_away_during_a_list_is_left_out() {
    let fake = Fake::new("1.41", |request| match request {
        request if request.contains("/containers/json") => Reply::With(
            200,
            "[{\"Id\":\"c1\",\"Names\":[\"/one\"],\"State\":\"exited\"},{\"Id\":\"c2\",\"Names\":[\"/two\"],\"State\":\"running\"}]",
        ),
        _ => Reply::With(404, "{\"message\":\"No such container: c1\"}"),
    });
    let docker = soon(fake.connect()).await.unwrap();
    let listed = soon(docker.list(&Selector::default())).await.unwrap();
    let names: Vec<_> = listed.iter().map(|container| container.name.as_str()).collect();
    assert_eq!(names, ["two"]);
}
