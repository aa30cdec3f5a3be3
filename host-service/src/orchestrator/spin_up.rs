//! From an allocated row to an answered client. Each step has a deadline, and all that can goes side by side:
//!
//! ```text
//!  ┬─ claim ───────────┐           ┌─ start ────────────┐
//!  ├─ image ───────────┼─ create ──┤                    ├─ application ─ report ─ answer
//!  └─ lease ─ prepare ─┘           └─ client ─ deliver ─┘
//! ```

use std::{
    future::Future,
    io,
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use host_core::{
    ErrorKind, ImageRef, PluginError, chain,
    lease::LeaseSet,
    lifecycle::{EndReason, Event, Stage},
    pubsub::{Claim, MandelboxStatus},
    runtime::Protocol,
    secret::AesKey,
};

use secrecy::ExposeSecret;

use super::{
    Shared,
    container::{self, Ingredients},
    estate::{Disk, Estate},
    image, isolation,
    take_down::remove_own,
};
use crate::{
    deadline::within,
    files::{Arrival, Files, READY, READY_FOR_CLIENT},
    lobby::{Answer, StartupData},
    mandelbox::Mandelbox,
    records::Record,
    retry::Pauses,
};

/// A port that was free when probed can be taken by the time the engine binds it; then others are tried.
const LAUNCH_TRIES: u32 = 3;

/// Spins it up, answers its client, and returns when the control plane knows.
pub(super) async fn spin_up(
    shared: &Shared,
    mandelbox: &Mandelbox,
    estate: &mut Estate,
) -> Result<(), EndReason> {
    let begun = Instant::now();
    let spin_up = SpinUp { shared, mandelbox };
    tracing::info!(app = %mandelbox.app, user = %mandelbox.row.user, "spinning up");
    let (image, files) = spin_up.claim_and_prepare(estate).await?;
    let key = AesKey::from_bytes(rand::random());
    let application = spin_up.launch_and_deliver(estate, &files, &image, &key).await?;
    mandelbox.advance(Event::Delivered);
    spin_up.application(application).await?;
    mandelbox.advance(Event::Ready);
    let reported = spin_up.report().await;
    if let Some(seat) = &mut estate.seat {
        seat.answer(Ok(Arc::new(Answer { ports: mandelbox.state().ports, aes_key: key })));
    }
    let took = begun.elapsed();
    shared.metrics.spun_up(took);
    tracing::info!(took_ms = millis(took), "running");
    if reported.is_err() {
        // A session that works is not ended because the control plane is away.
        shared.persist("setting the row to RUNNING", || spin_up.set_running()).await;
    }
    Ok(())
}

/// A duration for people, in ms.
pub(super) fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

struct SpinUp<'a> {
    shared: &'a Shared,
    mandelbox: &'a Mandelbox,
}

impl SpinUp<'_> {
    /// Runs a stage, times it, and turns its failure into the reason to end.
    async fn stage<T, E: Into<StageError>>(
        &self,
        stage: Stage,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, EndReason> {
        let begun = Instant::now();
        let result = work.await;
        let took = begun.elapsed();
        self.mandelbox.timed(stage, took);
        self.shared.metrics.stage(stage, took);
        tracing::debug!(%stage, took_ms = millis(took), failed = result.is_err(), "stage ended");
        result.map_err(|error| match error.into() {
            StageError::End(reason) => reason,
            StageError::Failed(error) => EndReason::SpinUpFailed { stage, error },
        })
    }

    fn lease(&self) -> Result<LeaseSet, EndReason> {
        let settings = &self.shared.settings.mandelbox;
        let probe = |port, protocol| is_free(settings.publish_ip, port, protocol);
        let leases = self
            .shared
            .pools
            .lease(self.mandelbox.id(), &settings.ports, probe)
            .map_err(|error| EndReason::SpinUpFailed { stage: Stage::Lease, error: error.to_string() })?;
        self.mandelbox.update(|state| {
            state.ports = leases.ports.iter().map(|(port, lease)| (*port, lease.value())).collect();
            state.tty = Some(leases.tty.value());
            state.gpu = leases.gpu.as_ref().map(|gpu| gpu.device().clone());
        });
        Ok(leases)
    }

    /// The claim runs to its end whatever fails beside it: only a row that is ours can be removed, and only then
    /// can its client be told.
    async fn claim_and_prepare(&self, estate: &mut Estate) -> Result<(ImageRef, Files), EndReason> {
        let Estate { claimed, seat, disk, leases, .. } = estate;
        let claim = self.stage(Stage::Claim, async {
            self.claim().await?;
            *claimed = true;
            self.mandelbox.advance(Event::Won);
            *seat = Some(self.shared.lobby.open(self.mandelbox.id(), &self.mandelbox.row.user));
            Ok::<_, StageError>(())
        });
        let image = self.stage(Stage::Image, image::present(self.shared, &self.mandelbox.app));
        let prepare = async {
            let leases = leases.insert(self.lease()?);
            let prepare = self.stage(Stage::Prepare, async {
                self.record(disk, Stage::Prepare, Some(leases)).await?;
                self.prepare(disk).await
            });
            bounded(Stage::Prepare, self.shared.settings.mandelbox.timeouts.prepare, prepare).await
        };
        let (claimed, prepared) = tokio::join!(claim, async { tokio::try_join!(image, prepare) });
        claimed?;
        prepared
    }

    /// Tries again while there is time: the row stays wanted, and its client waits.
    async fn claim(&self) -> Result<(), StageError> {
        let limit = self.shared.settings.mandelbox.timeouts.claim;
        let mut pauses = Pauses::up_to(limit);
        let mut last = None;
        let claim = async {
            loop {
                match self.shared.pubsub.claim(&self.shared.facts.name, &self.mandelbox.row).await {
                    Ok(Claim::Won(_)) => return Ok(()),
                    Ok(Claim::Lost) => return Err(StageError::End(EndReason::ClaimLost)),
                    Err(error) => last = Some(chain(&error)),
                }
                pauses.pause().await;
            }
        };
        let claimed = tokio::time::timeout(limit, claim).await;
        let late = |_| {
            StageError::Failed(last.unwrap_or_else(|| format!("claiming the row took longer than {limit:?}")))
        };
        claimed.map_err(late)?
    }

    /// Makes the directory and everything in it that is known before the client comes.
    async fn prepare(&self, disk: &Disk) -> io::Result<Files> {
        let (root, id) = (self.shared.root.clone(), self.mandelbox.id().clone());
        let parameters = self.parameters();
        disk.run(move |made| {
            let files = made.files.insert(root.create(&id)?);
            parameters.iter().try_for_each(|(name, content)| files.write(name, content.as_bytes()))?;
            Ok(files.clone())
        })
        .await
    }

    /// The small files that the application reads, by name.
    fn parameters(&self) -> Vec<(String, String)> {
        let state = self.mandelbox.state();
        let port = |(inside, host): &(host_core::runtime::ContainerPort, u16)| {
            (format!("hostPort_for_my_{}_{}", inside.port, inside.protocol), host.to_string())
        };
        let gpu = state.gpu.map_or_else(|| container::NO_GPU.to_owned(), |gpu| gpu.index.to_string());
        let timeout = self.shared.settings.mandelbox.client_timeout_seconds;
        let mut files: Vec<_> = state.ports.iter().map(port).collect();
        files.extend([
            ("tty".to_owned(), state.tty.unwrap_or_default().to_string()),
            ("gpu_index".to_owned(), gpu),
            ("timeout".to_owned(), timeout.to_string()),
        ]);
        files
    }

    async fn launch_and_deliver(
        &self,
        estate: &mut Estate,
        files: &Files,
        image: &ImageRef,
        key: &AesKey,
    ) -> Result<Option<Arrival>, EndReason> {
        let settings = &self.shared.settings.mandelbox;
        let Estate { leases, disk, seat, engine_asked, .. } = estate;
        let Some(seat) = seat.as_mut() else {
            return Err(EndReason::ClaimLost); // a claim that is won opens one
        };
        // Watched from before the application exists, so that its file cannot be missed.
        let arrival = settings.wait_for_application.then(|| files.watch(READY_FOR_CLIENT));
        let disk = &*disk;
        let launch = async {
            *engine_asked = true;
            self.launch(leases, disk, &Ingredients { files, image, key }).await?;
            self.mandelbox.advance(Event::Launched);
            self.exited_already()
        };
        let deliver = async {
            let data =
                self.stage(Stage::Client, client(settings.timeouts.client, seat.startup_data())).await?;
            let handed_over = self.stage(Stage::Deliver, deliver(disk, files, data));
            bounded(Stage::Deliver, settings.timeouts.prepare, handed_over).await
        };
        tokio::try_join!(launch, deliver)?;
        Ok(arrival)
    }

    async fn launch(
        &self,
        leases: &mut Option<LeaseSet>,
        disk: &Disk,
        ingredients: &Ingredients<'_>,
    ) -> Result<(), EndReason> {
        let mut tries = 1;
        loop {
            let failure = match self.launch_once(leases.as_ref(), disk, ingredients).await {
                Ok(()) => return Ok(()),
                Err(failure) => failure,
            };
            if !failure.port_taken || tries == LAUNCH_TRIES {
                return Err(failure.reason);
            }
            tries += 1;
            tracing::warn!(reason = %failure.reason, tries, "a leased port was taken by somebody else; trying others");
            self.change_ports(leases, disk, ingredients.files).await?;
        }
    }

    /// An exit while the start was under way was kept until the start was known to have worked; a later one is an order.
    fn exited_already(&self) -> Result<(), EndReason> {
        let exited = self.mandelbox.state().exited;
        exited.map_or(Ok(()), |exit| Err(EndReason::Exited(self.mandelbox.with_oom(exit))))
    }

    async fn launch_once(
        &self,
        leases: Option<&LeaseSet>,
        disk: &Disk,
        ingredients: &Ingredients<'_>,
    ) -> Result<(), LaunchFailure> {
        let limits = &self.shared.settings.mandelbox.timeouts;
        let runtime = &self.shared.runtime;
        let port_taken = AtomicBool::new(false);
        let noted = |error: PluginError| {
            port_taken.store(error.kind() == ErrorKind::AddressInUse, Ordering::Relaxed);
            StageError::from(error)
        };
        let launched = async {
            let created = self.stage(Stage::Create, async {
                self.record(disk, Stage::Create, leases).await?;
                let spec = container::spec(self.shared, self.mandelbox, ingredients);
                within(limits.create, "creating the container", runtime.create(&spec)).await.map_err(noted)
            });
            let id = created.await?;
            self.mandelbox.update(|state| state.container = Some(id.clone()));
            let started = self.stage(Stage::Start, async {
                self.record(disk, Stage::Start, leases).await?;
                let container = id.into();
                within(limits.start, "starting the container", runtime.start(&container))
                    .await
                    .map_err(noted)?;
                isolation::verify(self.shared, self.mandelbox, &container).await.map_err(StageError::from)
            });
            started.await
        };
        let launched: Result<(), EndReason> = launched.await;
        launched.map_err(|reason| LaunchFailure { reason, port_taken: port_taken.into_inner() })
    }

    /// Gives the ports back, once no container can use them any more, and leases others.
    async fn change_ports(
        &self,
        leases: &mut Option<LeaseSet>,
        disk: &Disk,
        files: &Files,
    ) -> Result<(), EndReason> {
        // Its removal is ours: the event must not end the mandelbox.
        let container = self.mandelbox.state().container;
        self.mandelbox.update(|state| (state.container, state.exited) = (None, None));
        let removal = remove_own(self.shared, self.mandelbox, container);
        self.stage(Stage::Create, removal).await?;
        *leases = None;
        *leases = Some(self.lease()?);
        let (files, parameters) = (files.clone(), self.parameters());
        let rewritten = disk.run(move |_| {
            parameters.iter().try_for_each(|(name, content)| files.write(name, content.as_bytes()))
        });
        self.stage(Stage::Prepare, rewritten).await
    }

    async fn application(&self, arrival: Option<Arrival>) -> Result<(), EndReason> {
        let Some(arrival) = arrival else { return Ok(()) };
        let limit = self.shared.settings.mandelbox.timeouts.application;
        self.stage(Stage::Application, async {
            match tokio::time::timeout(limit, arrival.wait()).await {
                Ok(()) => Ok(()),
                Err(_) => Err(StageError::Failed(format!(
                    "the application did not create {READY_FOR_CLIENT} within {limit:?}"
                ))),
            }
        })
        .await
    }

    /// Tells the control plane.
    async fn report(&self) -> Result<(), EndReason> {
        let limit = self.shared.settings.pubsub.timeout;
        self.stage(Stage::Report, within(limit, "setting the row to RUNNING", self.set_running())).await
    }

    async fn set_running(&self) -> Result<(), PluginError> {
        let name = &self.shared.facts.name;
        self.shared.pubsub.set_status(name, self.mandelbox.id(), MandelboxStatus::Running).await
    }

    async fn record(&self, disk: &Disk, stage: Stage, leases: Option<&LeaseSet>) -> io::Result<()> {
        let record = Record {
            id: self.mandelbox.id().clone(),
            instance: self.shared.facts.name.clone(),
            container: self.mandelbox.container.clone(),
            stage,
            ports: leases.iter().flat_map(|set| &set.ports).map(|(_, lease)| lease.value()).collect(),
            tty: leases.map(|set| set.tty.value()).unwrap_or_default(),
            gpu: leases.and_then(|set| set.gpu.as_ref()).map(|gpu| gpu.device().uuid.clone()),
        };
        let records = self.shared.records.clone();
        let written = disk.run(move |made| {
            made.record = true;
            records.write(&record)
        });
        written.await
    }
}

/// How a launch failed.
struct LaunchFailure {
    reason: EndReason,
    /// Other ports may work.
    port_taken: bool,
}

/// How a stage ends a spin-up.
enum StageError {
    /// For a reason of its own.
    End(EndReason),
    /// By a failure, told to people.
    Failed(String),
}

impl From<PluginError> for StageError {
    fn from(error: PluginError) -> Self {
        Self::Failed(chain(&error))
    }
}

impl From<io::Error> for StageError {
    fn from(error: io::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

async fn bounded<T>(
    stage: Stage,
    limit: Duration,
    work: impl Future<Output = Result<T, EndReason>>,
) -> Result<T, EndReason> {
    let late = |_| EndReason::SpinUpFailed { stage, error: format!("it took longer than {limit:?}") };
    tokio::time::timeout(limit, work).await.map_err(late)?
}

async fn client(limit: Duration, data: impl Future<Output = StartupData>) -> Result<StartupData, StageError> {
    let late = |_| StageError::Failed(format!("no client asked for it within {limit:?}"));
    tokio::time::timeout(limit, data).await.map_err(late)
}

/// Writes what the client sent, then the file that says that all is there.
async fn deliver(disk: &Disk, files: &Files, data: StartupData) -> io::Result<()> {
    let files = files.clone();
    disk.run(move |_| {
        let given = [
            ("config.json", Some(&data.json)),
            ("cookies.json", data.cookies.as_ref()),
            ("bookmarks.json", data.bookmarks.as_ref()),
        ];
        for (name, content) in given.into_iter().filter_map(|(name, content)| Some((name, content?))) {
            files.write(name, content.expose_secret().as_bytes())?;
        }
        files.write(READY, b"")
    })
    .await
}

/// Whether a port can be bound at this moment.
fn is_free(ip: IpAddr, port: u16, protocol: Protocol) -> bool {
    let address = SocketAddr::new(ip, port);
    match protocol {
        Protocol::Tcp => TcpListener::bind(address).is_ok(),
        Protocol::Udp => UdpSocket::bind(address).is_ok(),
    }
}
