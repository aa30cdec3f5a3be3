//! Every method of the four traits, once.

use std::{fmt, sync::Arc};

use host_core::{gpu::Gpu, pubsub::PubSub, runtime::Runtime, telemetry::Telemetry};

use crate::{Emitter, Encoding, Served};

/// One of the four traits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Interface {
    /// [`Runtime`]
    Runtime,
    /// [`Gpu`]
    Gpu,
    /// [`PubSub`]
    PubSub,
    /// [`Telemetry`]
    Telemetry,
}

impl Interface {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Runtime, Self::Gpu, Self::PubSub, Self::Telemetry];
    /// Changes when what was there changes its meaning.
    pub const MAJOR: u16 = 1;
    /// Changes when something is added.
    pub const MINOR: u16 = 0;

    /// Its number.
    pub fn id(self) -> u16 {
        match self {
            Self::Runtime => RUNTIME,
            Self::Gpu => GPU,
            Self::PubSub => PUBSUB,
            Self::Telemetry => TELEMETRY,
        }
    }

    /// `None` for one that this version does not know.
    pub fn of(id: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|interface| interface.id() == id)
    }

    /// As the configuration calls it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Runtime => "runtime",
            Self::Gpu => "gpu",
            Self::PubSub => "pubsub",
            Self::Telemetry => "telemetry",
        }
    }
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

const RUNTIME: u16 = 1;
const GPU: u16 = 2;
const PUBSUB: u16 = 3;
const TELEMETRY: u16 = 4;

const fn method(interface: u16, number: u16) -> u32 {
    ((interface as u32) << 16) | number as u32
}

/// The methods whose answers never change, to be asked for once.
pub fn constants(interface: Interface) -> &'static [u32] {
    match interface {
        Interface::Runtime => runtime::CONSTANTS,
        Interface::Gpu => gpu::CONSTANTS,
        Interface::PubSub => pubsub::CONSTANTS,
        Interface::Telemetry => telemetry::CONSTANTS,
    }
}

/// A call's arrival at an implementation; `number` is the method's within its interface.
pub mod serve {
    use super::*;

    macro_rules! serve {
        ($($name:ident: $trait:ident),*) => {$(
            /// To this trait.
            pub fn $name(
                plugin: &Arc<dyn $trait>,
                number: u16,
                encoding: Encoding,
                request: &[u8],
                emitter: Arc<dyn Emitter>,
            ) -> Served {
                super::$name::serve(plugin, number, encoding, request, emitter)
            }
        )*};
    }
    serve!(runtime: Runtime, gpu: Gpu, pubsub: PubSub, telemetry: Telemetry);
}

/// What every list below needs.
mod prelude {
    pub(super) use std::{sync::Arc, time::Duration};

    pub(super) use futures::stream::BoxStream;
    pub(super) use host_core::PluginError;

    pub(super) use crate::{
        Answer, Emitter, Encoding, Remote, Served,
        host::{raw, unimplemented, value},
        plugin::forward,
        wire::Wire,
    };

    /// The request of a method without arguments.
    #[derive(serde::Serialize)]
    pub(super) struct NoArguments {}
}

#[allow(unused_imports, reason = "not every list needs everything")]
#[allow(non_camel_case_types, reason = "a request's fields are of a type each, named like the argument")]
mod runtime {
    use std::{
        collections::BTreeSet,
        path::{Path, PathBuf},
        time::SystemTime,
    };

    use host_core::{
        ImageRef,
        check::Check,
        runtime::{
            Container, ContainerId, ContainerRef, ContainerSpec, Feature, Image, LogChunk, LogOptions,
            OnProgress, Runtime, RuntimeEvent, RuntimeInfo, Selector,
        },
    };

    use super::{RUNTIME, prelude::*};
    use crate::spec::Spec;

    interface! { runtime: Runtime = RUNTIME {
        1 constant features() -> BTreeSet<Feature>;
        2 call health() -> RuntimeInfo;
        3 call image(reference: &ImageRef as ImageRef) -> Option<Image>;
        4 call images() -> Vec<Image>;
        5 progress pull(reference: &ImageRef as ImageRef) -> Image;
        6 call load_image(archive: &Path as PathBuf) -> Vec<ImageRef>;
        7 call tag_image(image: &ImageRef as ImageRef, name: &ImageRef as ImageRef) -> ();
        8 call create(spec: &ContainerSpec as Spec) -> ContainerId;
        9 call start(container: &ContainerRef as ContainerRef) -> ();
        10 call stop(container: &ContainerRef as ContainerRef, grace: Duration as Duration) -> ();
        11 call remove(container: &ContainerRef as ContainerRef) -> ();
        12 call inspect(container: &ContainerRef as ContainerRef) -> Option<Container>;
        13 call list(selector: &Selector as Selector) -> Vec<Container>;
        14 stream raw logs(container: &ContainerRef as ContainerRef, options: LogOptions as LogOptions) -> LogChunk;
        15 stream value events(selector: &Selector as Selector) -> RuntimeEvent;
        16 plain examine() -> Vec<Check> = Vec::new();
        17 call close() -> () = ();
        18 call started_at() -> Option<SystemTime> = None;
    } }
}

#[allow(unused_imports, reason = "not every list needs everything")]
#[allow(non_camel_case_types, reason = "a request's fields are of a type each, named like the argument")]
mod gpu {
    use host_core::{
        check::Check,
        gpu::{Gpu, GpuDevice, GpuHealth, GpuStats},
    };

    use super::{GPU, prelude::*};

    interface! { gpu: Gpu = GPU {
        1 call enumerate() -> Vec<GpuDevice>;
        2 call stats() -> Vec<GpuStats>;
        3 call health() -> Vec<(String, GpuHealth)>;
        4 plain examine() -> Vec<Check> = Vec::new();
    } }
}

#[allow(unused_imports, reason = "not every list needs everything")]
#[allow(non_camel_case_types, reason = "a request's fields are of a type each, named like the argument")]
mod pubsub {
    use host_core::{
        InstanceName, MandelboxId,
        pubsub::{
            Allocation, Claim, DesiredState, Heartbeat, InstanceFacts, MandelboxRow, MandelboxStatus, PubSub,
            Registered, StaleAfter,
        },
    };

    use super::{PUBSUB, prelude::*};

    interface! { pubsub: PubSub = PUBSUB {
        1 stream value watch(instance: &InstanceName as InstanceName) -> DesiredState;
        2 call register(facts: &InstanceFacts as InstanceFacts, heartbeat: &Heartbeat as Heartbeat) -> Registered;
        3 call claim(instance: &InstanceName as InstanceName, row: &MandelboxRow as MandelboxRow) -> Claim;
        4 call set_status(
            instance: &InstanceName as InstanceName,
            mandelbox: &MandelboxId as MandelboxId,
            status: MandelboxStatus as MandelboxStatus
        ) -> ();
        5 call heartbeat(instance: &InstanceName as InstanceName, heartbeat: &Heartbeat as Heartbeat) -> ();
        6 call mark_draining(instance: &InstanceName as InstanceName) -> ();
        7 call remove(instance: &InstanceName as InstanceName, mandelbox: &MandelboxId as MandelboxId) -> ();
        8 call unregister(instance: &InstanceName as InstanceName) -> ();
        9 call remove_stale(
            instance: &InstanceName as InstanceName,
            after: StaleAfter as StaleAfter,
            working_on: &[MandelboxId] as Vec<MandelboxId>
        ) -> Vec<MandelboxId>;
        10 call allocate(instance: &InstanceName as InstanceName, allocation: &Allocation as Allocation) -> ();
        11 figure undelivered() -> usize;
    } }
}

#[allow(unused_imports, reason = "not every list needs everything")]
#[allow(non_camel_case_types, reason = "a request's fields are of a type each, named like the argument")]
mod telemetry {
    use host_core::telemetry::{Record, Telemetry};

    use super::{TELEMETRY, prelude::*};
    use crate::record::Taken;

    interface! { telemetry: Telemetry = TELEMETRY {
        1 post record(record: &Arc<Record> as Taken);
        2 call flush(deadline: Duration as Duration) -> ();
        3 figure dropped() -> u64;
    } }
}
