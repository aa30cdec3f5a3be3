//! The lobby against a simple model of it, over random histories.

use std::collections::HashMap;

use futures::poll;
use proptest::prelude::*;

use super::*;

/// What can happen.
#[derive(Debug, Clone)]
enum Op {
    Join {
        id: usize,
        kind: usize,
    },
    /// A client goes away.
    Go {
        request: prop::sample::Index,
    },
    Open {
        id: usize,
        user: usize,
    },
    Take {
        id: usize,
    },
    Answer {
        id: usize,
        well: bool,
    },
    Drop {
        id: usize,
    },
    Refuse {
        id: usize,
    },
    Forget {
        id: usize,
    },
    Close,
    Pass {
        seconds: u64,
    },
}

const IDS: [&str; 2] = ["m", "n"];
const USERS: [&str; 2] = ["ann", "ben"];
/// The requests that come: subject and variant.
const KINDS: [(Option<&str>, u8); 4] = [(Some("ann"), 1), (Some("ann"), 2), (Some("ben"), 1), (None, 1)];

fn ops() -> impl Strategy<Value = Op> {
    let id = 0..IDS.len();
    prop_oneof![
        6 => (id.clone(), 0..KINDS.len()).prop_map(|(id, kind)| Op::Join { id, kind }),
        2 => any::<prop::sample::Index>().prop_map(|request| Op::Go { request }),
        4 => (id.clone(), 0..USERS.len()).prop_map(|(id, user)| Op::Open { id, user }),
        3 => id.clone().prop_map(|id| Op::Take { id }),
        3 => (id.clone(), any::<bool>()).prop_map(|(id, well)| Op::Answer { id, well }),
        3 => id.clone().prop_map(|id| Op::Drop { id }),
        1 => id.clone().prop_map(|id| Op::Refuse { id }),
        1 => id.prop_map(|id| Op::Forget { id }),
        1 => Just(Op::Close),
        3 => (0_u64..70).prop_map(|seconds| Op::Pass { seconds }),
    ]
}

/// A request in the model: when it came and what it was told.
#[derive(Debug, Clone)]
struct Sent {
    id: usize,
    kind: usize,
    came: u64,
    here: bool,
    told: Option<String>,
}

/// A mandelbox in the model.
#[derive(Debug, Clone)]
struct Running {
    port: u16,
    user: usize,
    /// The kind of request whose data it has.
    has: Option<usize>,
    taken: bool,
    answered: Option<(String, u64)>,
}

/// What is remembered of one that is gone.
#[derive(Debug, Clone)]
struct Past {
    told: String,
    user: Option<usize>,
    at: u64,
}

/// The rules, one after the other, over flat lists.
#[derive(Debug, Default)]
struct Model {
    now: u64,
    sent: Vec<Sent>,
    boxes: HashMap<usize, Running>,
    past: HashMap<usize, Past>,
    /// When the data of a waiting request is thrown away, by id and kind, in the order they came.
    data: Vec<(usize, usize, u64)>,
    closed: bool,
    opened: u16,
}

impl Model {
    fn may(kind: usize, user: usize) -> bool {
        KINDS[kind].0.is_none_or(|subject| subject == USERS[user])
    }

    fn tell(&mut self, told: &str, whom: impl Fn(&Sent) -> bool) {
        for sent in self.sent.iter_mut().filter(|sent| sent.told.is_none()) {
            if whom(sent) {
                sent.told = Some(told.to_owned());
            }
        }
    }

    /// What the request is told, or that it waits.
    fn join(&mut self, id: usize, kind: usize) -> Option<String> {
        let told = match (self.boxes.get_mut(&id), self.past.get(&id)) {
            (Some(of), _) if !Self::may(kind, of.user) => Some("forbidden"),
            (Some(of), _) => match (&of.answered, of.has) {
                (Some((told, _)), _) if told.parse::<u16>().is_err() => Some(told.as_str()),
                (Some((told, at)), Some(has)) if has == kind && self.now - at < 60 => Some(told.as_str()),
                (None, Some(has)) if has == kind => None,
                (None, None) => {
                    of.has = Some(kind);
                    None
                }
                _ => Some("already_delivered"),
            },
            (None, Some(past)) if past.user.is_some_and(|user| !Self::may(kind, user)) => Some("forbidden"),
            (None, Some(past)) => Some(past.told.as_str()),
            (None, None) if self.closed => Some("draining"),
            (None, None) => {
                let until = self.now + 60;
                match self.data.iter_mut().find(|data| (data.0, data.1) == (id, kind)) {
                    Some(data) => data.2 = until,
                    None => self.data.push((id, kind, until)),
                }
                None
            }
        };
        told.map(str::to_owned)
    }

    fn open(&mut self, id: usize, user: usize) {
        self.drop(id);
        self.past.remove(&id);
        self.opened += 1;
        let waiting: Vec<usize> = self.data.iter().filter(|data| data.0 == id).map(|data| data.1).collect();
        self.data.retain(|data| data.0 != id);
        let own = || waiting.iter().copied().filter(|&kind| Self::may(kind, user));
        let here = |kind: &usize| {
            self.sent.iter().any(|s| s.here && s.told.is_none() && (s.id, s.kind) == (id, *kind))
        };
        let has = own().find(here).or_else(|| own().next());
        self.tell("forbidden", |sent| sent.id == id && !Self::may(sent.kind, user));
        self.tell("already_delivered", |sent| sent.id == id && Some(sent.kind) != has);
        let of = Running { port: self.opened, user, has, taken: false, answered: None };
        self.boxes.insert(id, of);
    }

    fn answer(&mut self, id: usize, told: &str) {
        if let Some(of) = self.boxes.get_mut(&id)
            && of.answered.is_none()
        {
            of.answered = Some((told.to_owned(), self.now));
            self.tell(told, |sent| sent.id == id);
        }
    }

    fn drop(&mut self, id: usize) {
        self.answer(id, "spin_up_failed");
        if let Some(Running { answered: Some((told, _)), user, .. }) = self.boxes.remove(&id) {
            let told = if told.parse::<u16>().is_ok() { "already_delivered".into() } else { told };
            self.past.insert(id, Past { told, user: Some(user), at: self.now });
        }
    }

    fn refuse(&mut self, id: usize) {
        if !self.boxes.contains_key(&id) && !self.past.contains_key(&id) {
            self.data.retain(|data| data.0 != id);
            self.tell("spin_up_failed", |sent| sent.id == id);
            self.past.insert(id, Past { told: "spin_up_failed".into(), user: None, at: self.now });
        }
    }

    fn close(&mut self) {
        self.closed = true;
        self.data.clear();
        let boxes = self.boxes.clone();
        self.tell("draining", |sent| !boxes.contains_key(&sent.id));
    }

    fn pass(&mut self, seconds: u64) {
        self.now += seconds;
        let now = self.now;
        self.past.retain(|_, past| now - past.at < 60);
        self.data.retain(|data| data.2 > now);
        let boxes = self.boxes.clone();
        self.tell("not_allocated", |sent| !boxes.contains_key(&sent.id) && now - sent.came >= 60);
    }
}

/// The lobby and the model, side by side.
struct Pair {
    lobby: Arc<Lobby>,
    model: Model,
    pendings: Vec<Option<Pending>>,
    seats: HashMap<usize, Seat>,
}

impl Pair {
    fn new() -> Self {
        let lobby = Lobby::new(LobbyLimits { max_waiting: 100, ..LIMITS });
        Self { lobby, model: Model::default(), pendings: Vec::new(), seats: HashMap::new() }
    }

    async fn step(&mut self, op: Op) {
        match op {
            Op::Join { id, kind } => self.join(id, kind),
            Op::Go { request } if !self.pendings.is_empty() => {
                let place = request.index(self.pendings.len());
                self.pendings[place] = None;
                self.model.sent[place].here = false;
            }
            Op::Go { .. } => {}
            Op::Open { id, user: owner } => {
                // The new seat is there before the old one goes.
                let seat = self.lobby.open(&super::id(IDS[id]), &user(USERS[owner]));
                self.seats.insert(id, seat);
                self.model.open(id, owner);
            }
            Op::Take { id } => self.take(id),
            Op::Answer { id, well } => {
                if let Some(seat) = self.seats.get_mut(&id) {
                    let port = self.model.boxes[&id].port;
                    let outcome = if well { answer(port) } else { Err(failed()) };
                    self.model.answer(id, &word(outcome.clone()));
                    seat.answer(outcome);
                }
            }
            Op::Drop { id } => {
                self.seats.remove(&id);
                self.model.drop(id);
            }
            Op::Refuse { id } => {
                self.lobby.refuse(&super::id(IDS[id]), failed());
                self.model.refuse(id);
            }
            Op::Forget { id } => {
                self.lobby.forget(&super::id(IDS[id]));
                self.model.past.remove(&id);
            }
            Op::Close => {
                self.lobby.close(Failure::Draining);
                self.model.close();
            }
            Op::Pass { seconds } => {
                advance(Duration::from_secs(seconds)).await;
                self.model.pass(seconds);
            }
        }
    }

    fn join(&mut self, id: usize, kind: usize) {
        let (subject, variant) = KINDS[kind];
        let told = self.model.join(id, kind);
        self.model.sent.push(Sent { id, kind, came: self.model.now, here: true, told });
        match self.lobby.join(request(IDS[id], subject, variant)) {
            Ok(pending) => self.pendings.push(Some(pending)),
            Err(failure) => {
                self.pendings.push(None);
                assert_eq!(self.model.sent.last().unwrap().told.as_deref(), Some(failure.code()));
            }
        }
    }

    fn take(&mut self, id: usize) {
        let Some(seat) = self.seats.get_mut(&id) else {
            return;
        };
        let of = self.model.boxes.get_mut(&id).unwrap();
        let expected = of.has.filter(|_| !of.taken && of.answered.is_none());
        of.taken |= expected.is_some();
        let data = seat.startup_data().now_or_never();
        let text = data.map(|data| data.json.expose_secret().to_owned());
        assert_eq!(text, expected.map(|kind| format!("{{\"variant\":{}}}", KINDS[kind].1)));
    }

    /// Every client that is still here was told what the model says, and no other.
    async fn compare(&mut self) {
        for (place, slot) in self.pendings.iter_mut().enumerate() {
            let Some(pending) = slot else { continue };
            let told = match poll!(&mut *pending) {
                Poll::Ready(outcome) => Some(word(outcome)),
                Poll::Pending => None,
            };
            assert_eq!(told, self.model.sent[place].told, "request {place}: {:?}", self.model.sent[place]);
            if told.is_some() {
                *slot = None;
            }
        }
        assert_eq!(self.lobby.waiting(), self.model.data.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn every_history_goes_as_the_model_says(ops in prop::collection::vec(ops(), 0..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let mut pair = Pair::new();
            for op in ops {
                pair.step(op).await;
                pair.compare().await;
            }
            pair.seats.clear();
            advance(Duration::from_secs(120)).await;
            assert_eq!((pair.lobby.waiting(), pair.lobby.register().len()), (0, 0), "nothing is left");
        });
    }
}
