use std::time::Duration;

use futures::FutureExt;
use host_core::lifecycle::Stage;
use secrecy::ExposeSecret;
use tokio::{
    task::JoinSet,
    time::{advance, timeout},
};

use super::*;

mod model;

const LIMITS: LobbyLimits =
    LobbyLimits { max_waiting: 20, wait: Duration::from_secs(60), answer_again: Duration::from_secs(60) };

fn id(text: &str) -> MandelboxId {
    text.parse().unwrap()
}

fn user(text: &str) -> UserId {
    text.parse().unwrap()
}

/// A request of `subject` that is identical to another one exactly when `subject` and `variant` are the same.
fn request(mandelbox: &str, subject: Option<&str>, variant: u8) -> ClientRequest {
    let mut digest = [variant; 32];
    for (byte, name) in digest.iter_mut().zip(subject.unwrap_or("").bytes()) {
        *byte ^= name;
    }
    let data = StartupData {
        json: format!("{{\"variant\":{variant}}}").into(),
        config_encryption_token: Some("configuration-secret".into()),
        is_new_config_encryption_token: false,
        cookies: Some("cookie-secret".into()),
        bookmarks: None,
        app: None,
    };
    ClientRequest { id: id(mandelbox), subject: subject.map(user), digest, data }
}

fn answer(port: u16) -> Outcome {
    let ports = vec![("32262/tcp".parse().unwrap(), port)];
    Ok(Arc::new(Answer { ports, aes_key: AesKey::from_bytes([7; 16]) }))
}

fn failed() -> Failure {
    Failure::SpinUpFailed { stage: Stage::Create, message: "no image".into() }
}

/// An outcome in one word: the port of the answer, or the failure's code.
fn word(outcome: Outcome) -> String {
    outcome.map_or_else(|failure| failure.code().into(), |answer| answer.ports[0].1.to_string())
}

/// What a client is told; a client that is told nothing fails the test.
async fn told(pending: impl Future<Output = Outcome>) -> String {
    word(timeout(Duration::from_secs(600), pending).await.expect("an outcome"))
}

fn refused(result: Result<Pending, Failure>) -> &'static str {
    result.unwrap_err().code()
}

#[tokio::test(start_paused = true)]
async fn the_request_may_come_first() {
    let lobby = Lobby::new(LIMITS);
    let pending = lobby.join(request("m", Some("ann"), 1)).unwrap();
    assert!(pending.awaits_allocation());
    assert_eq!(lobby.waiting(), 1);
    let mut seat = lobby.open(&id("m"), &user("ann"));
    let data = seat.startup_data().now_or_never().unwrap();
    assert_eq!(data.json.expose_secret(), "{\"variant\":1}");
    seat.answer(answer(1000));
    assert_eq!(told(pending).await, "1000");
}

#[tokio::test(start_paused = true)]
async fn the_mandelbox_may_come_first() {
    let lobby = Lobby::new(LIMITS);
    let mut seat = lobby.open(&id("m"), &user("ann"));
    assert!(seat.startup_data().now_or_never().is_none(), "nobody has come");
    let pending = lobby.join(request("m", Some("ann"), 1)).unwrap();
    assert!(!pending.awaits_allocation());
    assert!(seat.startup_data().now_or_never().is_some(), "a wait that was given up lost nothing");
    assert!(seat.startup_data().now_or_never().is_none(), "delivered once");
    seat.answer(answer(1000));
    seat.answer(Err(failed()));
    assert_eq!(told(pending).await, "1000", "the first answer counts");
}

#[tokio::test(start_paused = true)]
async fn without_an_allocation_it_waits_only_so_long() {
    let lobby = Lobby::new(LIMITS);
    let began = Instant::now();
    let pending = lobby.join(request("m", Some("ann"), 1)).unwrap();
    assert_eq!(told(pending).await, "not_allocated");
    assert_eq!(began.elapsed(), LIMITS.wait);
    let mut seat = lobby.open(&id("m"), &user("ann"));
    assert!(seat.startup_data().now_or_never().is_none(), "who was told 408 must not be delivered");
}

#[tokio::test(start_paused = true)]
async fn a_seat_taken_in_time_may_take_longer_than_the_wait() {
    let lobby = Lobby::new(LIMITS);
    let pending = lobby.join(request("m", Some("ann"), 1)).unwrap();
    let mut seat = lobby.open(&id("m"), &user("ann"));
    let slow = async {
        tokio::time::sleep(2 * LIMITS.wait).await;
        seat.answer(answer(1000));
    };
    let (told, ()) = tokio::join!(told(pending), slow);
    assert_eq!(told, "1000");
}

#[tokio::test(start_paused = true)]
async fn a_strangers_request_waiting_first_does_no_harm() {
    let lobby = Lobby::new(LIMITS);
    let mallory: Vec<_> = (0..8).filter_map(|n| lobby.join(request("m", Some("mallory"), n)).ok()).collect();
    assert_eq!(mallory.len(), 4, "one user's requests for one id are few");
    let ann = lobby.join(request("m", Some("ann"), 1)).unwrap();
    let mut seat = lobby.open(&id("m"), &user("ann"));
    for pending in mallory {
        assert_eq!(told(pending).await, "forbidden");
    }
    assert_eq!(refused(lobby.join(request("m", Some("mallory"), 1))), "forbidden");
    assert!(seat.startup_data().now_or_never().is_some());
    seat.answer(answer(1000));
    assert_eq!(told(ann).await, "1000");
    assert_eq!(refused(lobby.join(request("m", Some("mallory"), 1))), "forbidden", "to the end");
    drop(seat);
    assert_eq!(refused(lobby.join(request("m", Some("mallory"), 1))), "forbidden", "and after it");
}

#[tokio::test(start_paused = true)]
async fn one_user_cannot_take_everybodys_place() {
    let lobby = Lobby::new(LIMITS);
    let mallory =
        (0..20).filter(|n| lobby.join(request(&format!("m{n}"), Some("mallory"), 1)).is_ok()).count();
    assert_eq!(mallory, 8);
    assert_eq!(refused(lobby.join(request("another", Some("mallory"), 1))), "too_many");
    assert!(lobby.join(request("m", Some("ann"), 1)).is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_full_lobby_still_serves_mandelboxes_that_are_there() {
    let lobby = Lobby::new(LIMITS);
    let _ben = lobby.open(&id("bens"), &user("ben"));
    for n in 0..LIMITS.max_waiting {
        lobby.join(request(&format!("m{n}"), None, 1)).unwrap();
    }
    assert_eq!(refused(lobby.join(request("one-more", Some("ann"), 1))), "too_many");
    assert!(lobby.join(request("bens", Some("ben"), 1)).is_ok());
    assert!(lobby.join(request("m0", None, 1)).is_ok(), "the identical request takes no place");
    advance(LIMITS.wait).await;
    assert!(lobby.join(request("one-more", Some("ann"), 1)).is_ok(), "places come back");
}

#[tokio::test(start_paused = true)]
async fn identical_requests_share_one_answer_and_different_ones_are_refused() {
    let lobby = Lobby::new(LIMITS);
    let first: Vec<_> = (0..30).map(|_| lobby.join(request("m", Some("ann"), 1)).unwrap()).collect();
    assert_eq!(lobby.waiting(), 1);
    let different = lobby.join(request("m", Some("ann"), 2)).unwrap();
    let mut seat = lobby.open(&id("m"), &user("ann"));
    assert_eq!(told(different).await, "already_delivered");
    assert_eq!(refused(lobby.join(request("m", Some("ann"), 2))), "already_delivered");
    let late = lobby.join(request("m", Some("ann"), 1)).unwrap();
    seat.answer(answer(1000));
    for pending in first.into_iter().chain([late]) {
        assert_eq!(told(pending).await, "1000");
    }
}

#[tokio::test(start_paused = true)]
async fn the_answer_is_given_again_for_a_while() {
    let lobby = Lobby::new(LIMITS);
    drop(lobby.join(request("m", Some("ann"), 1)).unwrap());
    let mut seat = lobby.open(&id("m"), &user("ann"));
    assert!(seat.startup_data().now_or_never().is_some(), "a client that went cancelled nothing");
    seat.answer(answer(1000));
    advance(LIMITS.answer_again - Duration::from_millis(1)).await;
    assert_eq!(told(lobby.join(request("m", Some("ann"), 1)).unwrap()).await, "1000");
    advance(Duration::from_millis(1)).await;
    assert_eq!(refused(lobby.join(request("m", Some("ann"), 1))), "already_delivered");
    drop(seat);
    assert_eq!(refused(lobby.join(request("m", Some("ann"), 1))), "already_delivered");
    advance(LIMITS.answer_again).await;
    assert!(lobby.join(request("m", Some("ann"), 1)).unwrap().awaits_allocation(), "forgotten entirely");
}

#[tokio::test(start_paused = true)]
async fn a_request_whose_client_waits_goes_before_one_whose_client_is_gone() {
    let lobby = Lobby::new(LIMITS);
    drop(lobby.join(request("m", Some("ann"), 1)).unwrap());
    let waiting = lobby.join(request("m", Some("ann"), 2)).unwrap();
    let mut seat = lobby.open(&id("m"), &user("ann"));
    seat.answer(answer(1000));
    assert_eq!(told(waiting).await, "1000");
}

#[tokio::test(start_paused = true)]
async fn a_failed_spin_up_is_told_at_once_and_for_a_while() {
    let lobby = Lobby::new(LIMITS);
    let pending = lobby.join(request("m", Some("ann"), 1)).unwrap();
    let mut seat = lobby.open(&id("m"), &user("ann"));
    seat.answer(Err(failed()));
    assert_eq!(told(pending).await, "spin_up_failed");
    advance(2 * LIMITS.answer_again).await;
    let error = lobby.join(request("m", Some("ann"), 2)).unwrap_err();
    assert_eq!(error, failed(), "as long as it is being undone");
    drop(seat);
    advance(LIMITS.answer_again - Duration::from_millis(1)).await;
    assert_eq!(lobby.join(request("m", Some("ann"), 2)).unwrap_err(), failed());
    let _anew = lobby.open(&id("m"), &user("ann"));
    assert!(lobby.join(request("m", Some("ann"), 2)).is_ok(), "a new mandelbox is not the old one");
}

#[tokio::test(start_paused = true)]
async fn a_mandelbox_that_goes_without_a_word_fails_its_client() {
    let lobby = Lobby::new(LIMITS);
    let pending = lobby.join(request("m", Some("ann"), 1)).unwrap();
    drop(lobby.open(&id("m"), &user("ann")));
    assert_eq!(told(pending).await, "spin_up_failed");
    drop(lobby.open(&id("n"), &user("ann")));
    assert_eq!(refused(lobby.join(request("n", Some("ann"), 1))), "spin_up_failed", "before it came, too");
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_or_forgotten() {
    let lobby = Lobby::new(LIMITS);
    let pending = lobby.join(request("m", Some("ann"), 1)).unwrap();
    lobby.refuse(&id("m"), failed());
    assert_eq!(told(pending).await, "spin_up_failed");
    assert_eq!(refused(lobby.join(request("m", Some("ann"), 1))), "spin_up_failed");
    lobby.forget(&id("m"));
    assert!(lobby.join(request("m", Some("ann"), 1)).unwrap().awaits_allocation());
    let _seat = lobby.open(&id("m"), &user("ann"));
    lobby.forget(&id("m"));
    assert_eq!(refused(lobby.join(request("m", Some("ben"), 1))), "forbidden", "only what is gone");
}

#[tokio::test(start_paused = true)]
async fn a_closed_lobby_takes_nobody_who_has_no_mandelbox_yet() {
    let lobby = Lobby::new(LIMITS);
    let waiting = lobby.join(request("m", Some("ann"), 1)).unwrap();
    let mut claimed = lobby.open(&id("v"), &user("ann"));
    let mut seat = lobby.open(&id("n"), &user("ben"));
    let delivered = lobby.join(request("n", Some("ben"), 1)).unwrap();
    lobby.close(Failure::Draining);
    assert_eq!(told(waiting).await, "draining");
    assert_eq!(refused(lobby.join(request("m", Some("ann"), 1))), "draining");
    let late = lobby.join(request("v", Some("ann"), 1)).unwrap();
    claimed.answer(answer(2000));
    assert_eq!(told(late).await, "2000", "a mandelbox that is claimed already still takes its client");
    seat.answer(answer(1000));
    assert_eq!(told(delivered).await, "1000", "what is under way still has its answer");
    assert_eq!(told(lobby.join(request("n", Some("ben"), 1)).unwrap()).await, "1000", "and again");
}

#[tokio::test(start_paused = true)]
async fn the_same_request_cannot_be_asked_without_end() {
    let lobby = Lobby::new(LIMITS);
    let again = || lobby.join(request("m", Some("ann"), 1));
    let waiting: Vec<_> = (0..100).map_while(|_| again().ok()).collect();
    assert_eq!(refused(again()), "too_many");
    assert!(waiting.len() < 100);
    drop(waiting);
    assert!(again().is_ok(), "those who hang up make room");
}

#[test]
fn nothing_prints_a_secret() {
    let text = format!("{:?}", request("m", Some("ann"), 1));
    assert!(!text.contains("secret\"") && !text.contains("variant"), "{text}");
}

/// What is known of mandelboxes that are gone is bounded while they come and go, and nothing in the end.
#[tokio::test(start_paused = true)]
async fn a_long_life_leaves_nothing_behind() {
    let lobby = Lobby::new(LIMITS);
    for n in 0..6_000_u32 {
        let name = format!("m{n}");
        drop(lobby.join(request(&name, Some("ann"), 1)));
        match n % 4 {
            0 => lobby.open(&id(&name), &user("ann")).answer(answer(1000)),
            1 => drop(lobby.open(&id(&name), &user("ann"))),
            2 => lobby.refuse(&id(&name), failed()),
            _ => {}
        }
        if n % 10 == 0 {
            advance(Duration::from_millis(u64::from(n) % 500)).await;
        }
        let known = lobby.register().len();
        assert!(known <= 1024 + LIMITS.max_waiting, "{known} ids are known after {n}");
    }
    advance(LIMITS.wait + LIMITS.answer_again).await;
    assert_eq!((lobby.waiting(), lobby.register().len()), (0, 0));
}

/// On many threads, with clients and mandelboxes coming in any order: every client has its answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_wake_up_is_lost() {
    let lobby = Lobby::new(LobbyLimits { max_waiting: 10_000, ..LIMITS });
    let mut clients = JoinSet::new();
    let mut owners = JoinSet::new();
    for n in 0..2000_u16 {
        let (lobby, name) = (lobby.clone(), format!("m{n}"));
        let client = {
            let (lobby, name) = (lobby.clone(), name.clone());
            async move { (n, told(lobby.join(request(&name, None, 1)).unwrap()).await) }
        };
        let owner = async move {
            let mut seat = lobby.open(&id(&name), &user("ann"));
            timeout(Duration::from_secs(60), seat.startup_data()).await.expect("startup data");
            tokio::task::yield_now().await;
            seat.answer(answer(n));
            seat
        };
        if n % 2 == 0 {
            clients.spawn(client);
            owners.spawn(owner);
        } else {
            owners.spawn(owner);
            clients.spawn(client);
        }
    }
    let _seats = owners.join_all().await;
    for (n, outcome) in clients.join_all().await {
        assert_eq!(outcome, n.to_string());
    }
}
