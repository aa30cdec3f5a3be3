//! The entry points that the host calls. A panic that left one would abort the host, so each catches all.
#![allow(unsafe_code, reason = "what comes through the C interface is the host's word")]

use std::{
    ffi::{CString, c_char, c_void},
    panic::{AssertUnwindSafe, catch_unwind},
    ptr,
    sync::OnceLock,
};

use host_core::{ErrorKind, PluginError};
use host_plugin_abi as abi;
use host_plugin_protocol::{Encoding, Interface};

use crate::{
    bridge,
    host::Host,
    instance::{Implementations, Instance, panicked},
};

/// The library's description, made at the first look.
#[derive(Debug)]
pub struct Descriptor(OnceLock<Made>);

#[derive(Debug)]
struct Made {
    plugin: abi::Plugin,
    implementations: fn() -> Implementations,
}

// SAFETY: the pointers are to memory that is never changed and never given back.
unsafe impl Send for Made {}
// SAFETY: as above.
unsafe impl Sync for Made {}

impl Descriptor {
    /// Not made yet.
    #[allow(clippy::new_without_default, reason = "only for a static")]
    pub const fn new() -> Self {
        Self(OnceLock::new())
    }
}

/// Which description `create` belongs to: there is one in a library.
static EXPORTED: OnceLock<&'static Descriptor> = OnceLock::new();

/// The body of `hp_plugin_entry_v1`; null if even that panics.
pub fn describe(
    descriptor: &'static Descriptor,
    version: &'static str,
    implementations: fn() -> Implementations,
) -> *const abi::Plugin {
    let made = catch_unwind(AssertUnwindSafe(|| {
        EXPORTED.set(descriptor).ok();
        descriptor.0.get_or_init(|| make(version, implementations))
    }));
    made.map_or(ptr::null(), |made| &raw const made.plugin)
}

fn make(version: &str, implementations: fn() -> Implementations) -> Made {
    let exported = implementations();
    let interfaces: Vec<_> = exported
        .interfaces()
        .into_iter()
        .map(|interface| abi::Interface {
            id: interface.id(),
            major: Interface::MAJOR,
            minor: Interface::MINOR,
            reserved: 0,
        })
        .collect();
    let interfaces = interfaces.leak();
    let plugin = abi::Plugin {
        magic: abi::MAGIC,
        abi_major: abi::ABI_MAJOR,
        abi_minor: abi::ABI_MINOR,
        size: abi::size::<abi::Plugin>(),
        encodings: Encoding::Json.bit() | Encoding::Msgpack.bit(),
        features: 0,
        name: text(exported.name()),
        version: text(version),
        sdk: text(concat!("rust ", env!("CARGO_PKG_VERSION"))),
        config_schema: ptr::null(),
        interfaces: interfaces.as_ptr(),
        interface_count: interfaces.len() as u64,
        create,
        call,
        cancel,
        grant,
        shutdown,
        destroy,
    };
    Made { plugin, implementations }
}

/// For ever, as the interface wants it.
fn text(text: &str) -> *const c_char {
    CString::new(text.replace('\0', "")).unwrap_or_default().into_raw()
}

/// `hp_plugin.create`
unsafe extern "C" fn create(host: *const abi::Host, call: u64, config: abi::Slice<'_>) -> *mut c_void {
    // SAFETY: the host's word, which the interface describes.
    let (host, config) = unsafe { (Host::new(host), config.bytes()) };
    let Some(host) = host else { return ptr::null_mut() };
    let made = catch_unwind(AssertUnwindSafe(|| {
        bridge::install(host);
        let made = EXPORTED.get().and_then(|descriptor| descriptor.0.get()).ok_or_else(|| {
            PluginError::new(ErrorKind::Internal, "the plugin was made before it was described")
        })?;
        Instance::create(host, call, config, (made.implementations)())
    }));
    match made.unwrap_or_else(|panic| Err(panicked(panic.as_ref()))) {
        Ok(instance) => Box::into_raw(Box::new(instance)).cast(),
        Err(error) => {
            host.fail(call, &error);
            ptr::null_mut()
        }
    }
}

/// The instance behind what `create` gave.
///
/// # Safety
/// `instance` is from `create` and was not destroyed.
unsafe fn instance<'a>(instance: *mut c_void) -> Option<&'a Instance> {
    // SAFETY: the caller's promise.
    unsafe { instance.cast::<Instance>().as_ref() }
}

/// `hp_plugin.call`
unsafe extern "C" fn call(
    this: *mut c_void,
    call: u64,
    method: u32,
    request: abi::Slice<'_>,
    opts: *const abi::CallOpts,
) {
    // SAFETY: the host's word, which the interface describes.
    let (instance, request, opts) = unsafe { (instance(this), request.bytes(), opts.as_ref()) };
    let Some(instance) = instance else { return };
    let window = opts.map_or(0, |opts| opts.window);
    let served = catch_unwind(AssertUnwindSafe(|| instance.call(call, method, request, window)));
    if let Err(panic) = served {
        instance.fail(call, &panicked(panic.as_ref()));
    }
}

/// `hp_plugin.cancel`
unsafe extern "C" fn cancel(this: *mut c_void, call: u64) {
    // SAFETY: as above.
    let instance = unsafe { instance(this) };
    // Whatever happens to a call that nobody waits for is told by the panic hook.
    catch_unwind(AssertUnwindSafe(|| instance.map(|instance| instance.calls().cancel(call)))).ok();
}

/// `hp_plugin.grant`
unsafe extern "C" fn grant(this: *mut c_void, call: u64, credits: u32) {
    // SAFETY: as above.
    let instance = unsafe { instance(this) };
    catch_unwind(AssertUnwindSafe(|| instance.map(|instance| instance.calls().grant(call, credits)))).ok();
}

/// `hp_plugin.shutdown`
unsafe extern "C" fn shutdown(this: *mut c_void, call: u64) {
    // SAFETY: as above.
    let instance = unsafe { instance(this) };
    catch_unwind(AssertUnwindSafe(|| instance.map(|instance| instance.shutdown(call)))).ok();
}

/// `hp_plugin.destroy`
unsafe extern "C" fn destroy(this: *mut c_void) {
    if this.is_null() {
        return;
    }
    // SAFETY: the host's word: from `create`, and this is its last use.
    let instance = unsafe { Box::from_raw(this.cast::<Instance>()) };
    catch_unwind(AssertUnwindSafe(|| drop(instance))).ok();
}
