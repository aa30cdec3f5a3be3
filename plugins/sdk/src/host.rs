//! The host's functions, in Rust.
#![allow(unsafe_code, reason = "each call of the host is one")]

use std::sync::Arc;

use host_core::PluginError;
use host_plugin_abi as abi;
use host_plugin_protocol::{Encoding, Outcome, encode_error};

/// The host, as it introduced itself to one instance.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Host {
    functions: &'static abi::Host,
    pub(crate) encoding: Encoding,
}

// SAFETY: the interface says that the host's functions may be called from any thread and are valid for ever.
unsafe impl Send for Host {}
// SAFETY: as above.
unsafe impl Sync for Host {}

impl Host {
    /// # Safety
    /// `host` is what the host gave to `create`: valid for ever.
    pub(crate) unsafe fn new(host: *const abi::Host) -> Option<Self> {
        // SAFETY: the caller's promise.
        let functions = unsafe { host.as_ref() }?;
        let encoding = Encoding::best(functions.encoding)?;
        Some(Self { functions, encoding })
    }

    pub(crate) fn complete(&self, call: u64, outcome: Outcome) {
        match outcome {
            Ok(body) => self.answer(call, abi::OK, &body),
            Err(error) => self.fail(call, &error),
        }
    }

    pub(crate) fn fail(&self, call: u64, error: &PluginError) {
        let (status, body) = encode_error(self.encoding, error);
        self.answer(call, status, &body);
    }

    pub(crate) fn answer(&self, call: u64, status: i32, body: &[u8]) {
        // SAFETY: the function and its context are valid for ever; the body lives for the call.
        unsafe { (self.functions.complete)(self.functions.ctx, call, status, abi::Slice::new(body)) }
    }

    pub(crate) fn emit(&self, call: u64, item: &[u8]) -> i32 {
        // SAFETY: as above.
        unsafe { (self.functions.emit)(self.functions.ctx, call, abi::Slice::new(item)) }
    }

    pub(crate) fn log(&self, level: u32, target: &str, message: &str, fields: &str, place: (&str, u32)) {
        let record = abi::LogRecord {
            size: abi::size::<abi::LogRecord<'_>>(),
            level,
            call_id: 0,
            target: abi::Slice::new(target.as_bytes()),
            message: abi::Slice::new(message.as_bytes()),
            fields_json: abi::Slice::new(fields.as_bytes()),
            file: abi::Slice::new(place.0.as_bytes()),
            line: place.1,
            reserved: 0,
        };
        // SAFETY: as above; the record lives for the call.
        unsafe { (self.functions.log)(self.functions.ctx, &raw const record) }
    }

    pub(crate) fn log_level(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (self.functions.log_level)(self.functions.ctx) }
    }
}

/// Ends a call exactly once, also when its task is dropped or panics.
#[derive(Debug)]
pub(crate) struct Completion {
    host: Host,
    call: u64,
    done: bool,
    on_end: Option<Arc<crate::instance::Calls>>,
}

impl Completion {
    pub(crate) fn new(host: Host, call: u64, on_end: Option<Arc<crate::instance::Calls>>) -> Self {
        Self { host, call, done: false, on_end }
    }

    pub(crate) fn with(mut self, outcome: Outcome) {
        self.forget();
        self.host.complete(self.call, outcome);
    }

    fn forget(&mut self) {
        self.done = true;
        if let Some(calls) = &self.on_end {
            calls.remove(self.call);
        }
    }
}

impl Drop for Completion {
    fn drop(&mut self) {
        if !self.done {
            self.forget();
            self.host.answer(self.call, abi::CANCELLED, b"");
        }
    }
}
