//! A plugin's functions in this process.
#![allow(unsafe_code, reason = "each call of the plugin is one")]

use std::{
    ffi::c_void,
    fmt,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use host_plugin_abi as abi;
use host_plugin_protocol::Encoding;

use crate::{
    calls::{Log, Sink},
    library::Library,
};

/// Of a text in a record.
const TEXT_LIMIT: usize = 16 * 1024;
/// Of an answer or an item.
const BODY_LIMIT: usize = host_plugin_protocol::frame::LIMIT - 1024;
/// How long a plugin may take to end what is under way.
const END: Duration = Duration::from_secs(10);

/// Where an instance's calls go.
pub(crate) trait Backend: Send + Sync + fmt::Debug + 'static {
    fn call(&self, call: u64, method: u32, request: Vec<u8>, window: u32);
    fn cancel(&self, call: u64);
    fn grant(&self, call: u64, credits: u32);
}

/// What an instance knows as its host; never given back, because the plugin may use it for ever.
struct HostSide {
    functions: abi::Host,
    sink: Arc<dyn Sink>,
    /// Told of the end of calls that the backend itself waits for.
    own: mpsc::SyncSender<(u64, i32, Vec<u8>)>,
}

/// Ids of the backend's own calls; the host's begin at 1 and never come here.
const CREATE: u64 = u64::MAX;
const SHUTDOWN: u64 = u64::MAX - 1;

/// One instance in this process. Dropping it shuts it down, on a thread of its own.
pub(crate) struct InProcess {
    library: Library,
    instance: Pointer,
    own: Option<mpsc::Receiver<(u64, i32, Vec<u8>)>>,
}

#[derive(Clone, Copy)]
struct Pointer(*mut c_void);

// SAFETY: the interface says that an instance's functions may be called from any thread, several at once.
unsafe impl Send for Pointer {}
// SAFETY: as above.
unsafe impl Sync for Pointer {}

// SAFETY: the receiver, which alone is not Sync, is only used through a unique reference.
unsafe impl Sync for InProcess {}

impl fmt::Debug for InProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InProcess")
    }
}

impl InProcess {
    /// Makes an instance; blocks until it is ready or `deadline` has passed. The error is a status with its body.
    pub(crate) fn create(
        library: Library,
        encoding: Encoding,
        config: &[u8],
        sink: Arc<dyn Sink>,
        deadline: Duration,
    ) -> Result<Self, (i32, Vec<u8>)> {
        let (tell, own) = mpsc::sync_channel(4);
        let host = Box::leak(Box::new(HostSide {
            functions: abi::Host {
                size: abi::size::<abi::Host>(),
                abi_major: abi::ABI_MAJOR,
                abi_minor: abi::ABI_MINOR,
                features: 0,
                encoding: encoding.bit(),
                reserved: 0,
                ctx: std::ptr::null_mut(),
                complete,
                emit,
                log,
                log_level,
            },
            sink,
            own: tell,
        }));
        host.functions.ctx = (&raw const *host).cast_mut().cast();
        // SAFETY: `host` is never given back; the config lives for the call.
        let instance =
            unsafe { (library.plugin.create)(&raw const host.functions, CREATE, abi::Slice::new(config)) };
        let made = Self { library, instance: Pointer(instance), own: Some(own) };
        match made.wait(CREATE, deadline) {
            Some((abi::OK, _)) if !instance.is_null() => Ok(made),
            Some((abi::OK, _)) => Err((10, b"the plugin gave no instance".to_vec())),
            Some((status, body)) => Err((status, body)),
            None => Err((8, format!("the plugin was not ready within {deadline:?}").into_bytes())),
        }
    }

    fn wait(&self, call: u64, deadline: Duration) -> Option<(i32, Vec<u8>)> {
        let own = self.own.as_ref()?;
        let end = std::time::Instant::now() + deadline;
        loop {
            let (of, status, body) =
                own.recv_timeout(end.checked_duration_since(std::time::Instant::now())?).ok()?;
            if of == call {
                return Some((status, body));
            }
        }
    }

    /// No further calls; waits for those under way, then gives the instance back.
    fn end(&mut self) {
        if self.instance.0.is_null() {
            return;
        }
        let Pointer(instance) = self.instance;
        // SAFETY: made by this library; nobody else has it any more.
        unsafe { (self.library.plugin.shutdown)(instance, SHUTDOWN) };
        if self.wait(SHUTDOWN, END).is_some() {
            // SAFETY: as above; this is its last use.
            unsafe { (self.library.plugin.destroy)(instance) };
        }
        // One that does not end may still use its memory: it is left alone.
        self.instance = Pointer(std::ptr::null_mut());
    }

    /// [`Drop`], waited for.
    pub(crate) fn close(mut self) {
        self.end();
    }
}

impl Drop for InProcess {
    fn drop(&mut self) {
        if self.instance.0.is_null() {
            return;
        }
        let mut left = Self { library: self.library, instance: self.instance, own: self.own.take() };
        self.instance = Pointer(std::ptr::null_mut());
        let end = move || left.end();
        // Without threads the instance stays, which harms nobody.
        thread::Builder::new().name("plugin-end".to_owned()).spawn(end).ok();
    }
}

impl Backend for InProcess {
    fn call(&self, call: u64, method: u32, request: Vec<u8>, window: u32) {
        let opts = abi::CallOpts::window(window);
        // SAFETY: the instance lives as long as this; request and options live for the call.
        unsafe {
            (self.library.plugin.call)(
                self.instance.0,
                call,
                method,
                abi::Slice::new(&request),
                &raw const opts,
            );
        }
    }

    fn cancel(&self, call: u64) {
        // SAFETY: as above.
        unsafe { (self.library.plugin.cancel)(self.instance.0, call) }
    }

    fn grant(&self, call: u64, credits: u32) {
        // SAFETY: as above.
        unsafe { (self.library.plugin.grant)(self.instance.0, call, credits) }
    }
}

/// # Safety
/// `ctx` is what [`InProcess::create`] gave the plugin.
unsafe fn host<'a>(ctx: *mut c_void) -> Option<&'a HostSide> {
    // SAFETY: the caller's promise; it is never given back.
    unsafe { ctx.cast::<HostSide>().as_ref() }
}

unsafe extern "C" fn complete(ctx: *mut c_void, call: u64, status: i32, body: abi::Slice<'_>) {
    // SAFETY: the plugin's word, which the interface describes.
    let (host, body) = unsafe { (host(ctx), body.bytes()) };
    let Some(host) = host else { return };
    if call >= SHUTDOWN {
        // Told twice, it has nowhere to go.
        host.own
            .try_send((call, status, body.get(..BODY_LIMIT.min(body.len())).unwrap_or_default().to_vec()))
            .ok();
    } else if body.len() > BODY_LIMIT {
        host.sink.complete(call, 9, format!("an answer of {} bytes is too large", body.len()).as_bytes());
    } else {
        host.sink.complete(call, status, body);
    }
}

unsafe extern "C" fn emit(ctx: *mut c_void, call: u64, item: abi::Slice<'_>) -> i32 {
    // SAFETY: as above.
    let (host, item) = unsafe { (host(ctx), item.bytes()) };
    match host {
        Some(host) if item.len() <= BODY_LIMIT => host.sink.emit(call, item),
        _ => abi::GONE,
    }
}

unsafe extern "C" fn log(ctx: *mut c_void, record: *const abi::LogRecord<'_>) {
    // SAFETY: as above.
    let (host, record) = unsafe { (host(ctx), record.as_ref()) };
    let (Some(host), Some(record)) = (host, record) else { return };
    let text = |slice: abi::Slice<'_>| {
        // SAFETY: as above.
        let bytes = unsafe { slice.bytes() };
        String::from_utf8_lossy(bytes.get(..TEXT_LIMIT.min(bytes.len())).unwrap_or_default()).into_owned()
    };
    host.sink.log(Log {
        level: record.level,
        target: text(record.target),
        message: text(record.message),
        fields: text(record.fields_json),
    });
}

unsafe extern "C" fn log_level(ctx: *mut c_void) -> u32 {
    // SAFETY: as above.
    unsafe { host(ctx) }.map_or(5, |host| host.sink.log_level())
}
