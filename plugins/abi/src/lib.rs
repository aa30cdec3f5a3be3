//! The C interface between the host and a plugin in a shared library, in Rust. `include/host_plugin.h` is the norm: what
//! each part means is said there, and a test compares the two byte by byte.

use std::{
    ffi::{c_char, c_void},
    marker::PhantomData,
    ptr, slice,
};

/// `HPG1` in memory.
pub const MAGIC: u32 = 0x3147_5048;
/// Another major is another entry symbol.
pub const ABI_MAJOR: u16 = 1;
/// Grows with what is added.
pub const ABI_MINOR: u16 = 0;
/// The only symbol that a plugin exports.
pub const ENTRY: &str = "hp_plugin_entry_v1";
/// Its type.
pub type Entry = unsafe extern "C" fn() -> *const Plugin;

/// Bit of [`Plugin::encodings`]: JSON.
pub const ENCODING_JSON: u32 = 1;
/// Bit of [`Plugin::encodings`]: MessagePack with named fields.
pub const ENCODING_MSGPACK: u32 = 2;

/// The call succeeded.
pub const OK: i32 = 0;
/// There is no such method here.
pub const UNIMPLEMENTED: i32 = -1;
/// The host had cancelled the call.
pub const CANCELLED: i32 = -2;

/// The item was taken.
pub const EMITTED: i32 = 0;
/// The item was not taken: wait for a grant.
pub const NO_CREDIT: i32 = 1;
/// Nobody reads any more.
pub const GONE: i32 = 2;

/// A struct's size as its field `size` says it.
#[must_use]
#[allow(clippy::cast_possible_truncation, reason = "the largest is smaller than 200 bytes")]
pub const fn size<T>() -> u32 {
    size_of::<T>() as u32
}

/// Borrowed bytes.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Slice<'a> {
    ptr: *const u8,
    len: usize,
    life: PhantomData<&'a [u8]>,
}

impl<'a> Slice<'a> {
    /// For the other side, as long as `bytes` live.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { ptr: bytes.as_ptr(), len: bytes.len(), life: PhantomData }
    }

    /// No bytes.
    pub const EMPTY: Slice<'static> = Slice { ptr: ptr::null(), len: 0, life: PhantomData };

    /// What the other side lends.
    ///
    /// # Safety
    /// `ptr` and `len` describe readable memory that stays as it is for `'a`, or `len` is 0.
    #[allow(unsafe_code, reason = "the other side's word is all there is")]
    pub unsafe fn bytes(self) -> &'a [u8] {
        if self.len == 0 || self.ptr.is_null() {
            return &[];
        }
        // SAFETY: the caller's promise.
        unsafe { slice::from_raw_parts(self.ptr, self.len) }
    }
}

/// `hp_interface`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Interface {
    /// Which.
    pub id: u16,
    /// Both sides must have the same.
    pub major: u16,
    /// Grows with what is added.
    pub minor: u16,
    /// 0.
    pub reserved: u16,
}

/// `hp_call_opts`
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct CallOpts {
    /// Of this struct.
    pub size: u32,
    /// Items that may be emitted before the first grant.
    pub window: u32,
    /// 0 where the host cancels.
    pub timeout_ms: u64,
    /// W3C trace context.
    pub trace_id: [u8; 16],
    /// W3C trace context.
    pub span_id: [u8; 8],
    /// W3C trace context.
    pub trace_flags: u8,
    /// 0.
    pub reserved: [u8; 7],
}

impl CallOpts {
    /// With this window, and nothing else said.
    #[must_use]
    pub const fn window(window: u32) -> Self {
        Self {
            size: size::<Self>(),
            window,
            timeout_ms: 0,
            trace_id: [0; 16],
            span_id: [0; 8],
            trace_flags: 0,
            reserved: [0; 7],
        }
    }
}

/// `hp_log_record`
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct LogRecord<'a> {
    /// Of this struct.
    pub size: u32,
    /// 0 is trace, 4 is error.
    pub level: u32,
    /// 0 where there is none.
    pub call_id: u64,
    /// The module.
    pub target: Slice<'a>,
    /// The text.
    pub message: Slice<'a>,
    /// Named values, a JSON object; may be empty.
    pub fields_json: Slice<'a>,
    /// Of the source; may be empty.
    pub file: Slice<'a>,
    /// In the source.
    pub line: u32,
    /// 0.
    pub reserved: u32,
}

/// `hp_host`
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Host {
    /// Of this struct.
    pub size: u32,
    /// The host's.
    pub abi_major: u16,
    /// The host's.
    pub abi_minor: u16,
    /// Bits for what is optional.
    pub features: u64,
    /// The one that the host has chosen.
    pub encoding: u32,
    /// 0.
    pub reserved: u32,
    /// The first argument of each function.
    pub ctx: *mut c_void,
    /// Ends a call.
    pub complete: unsafe extern "C" fn(*mut c_void, u64, i32, Slice<'_>),
    /// One item of a stream.
    pub emit: unsafe extern "C" fn(*mut c_void, u64, Slice<'_>) -> i32,
    /// A record for the host's telemetry.
    pub log: unsafe extern "C" fn(*mut c_void, *const LogRecord<'_>),
    /// The lowest level that anybody reads.
    pub log_level: unsafe extern "C" fn(*mut c_void) -> u32,
}

/// `hp_plugin`
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Plugin {
    /// [`MAGIC`]
    pub magic: u32,
    /// [`ABI_MAJOR`] it was built for.
    pub abi_major: u16,
    /// [`ABI_MINOR`] it was built for.
    pub abi_minor: u16,
    /// Of this struct.
    pub size: u32,
    /// Bits.
    pub encodings: u32,
    /// Bits for what is optional.
    pub features: u64,
    /// As the configuration calls it.
    pub name: *const c_char,
    /// Its own.
    pub version: *const c_char,
    /// What it was made with.
    pub sdk: *const c_char,
    /// JSON Schema, or null.
    pub config_schema: *const c_char,
    /// What it implements.
    pub interfaces: *const Interface,
    /// How many.
    pub interface_count: u64,
    /// Begins to make an instance.
    pub create: unsafe extern "C" fn(*const Host, u64, Slice<'_>) -> *mut c_void,
    /// Begins a call.
    pub call: unsafe extern "C" fn(*mut c_void, u64, u32, Slice<'_>, *const CallOpts),
    /// Nobody waits for a call any more.
    pub cancel: unsafe extern "C" fn(*mut c_void, u64),
    /// More items may be emitted.
    pub grant: unsafe extern "C" fn(*mut c_void, u64, u32),
    /// No further calls come.
    pub shutdown: unsafe extern "C" fn(*mut c_void, u64),
    /// The last use.
    pub destroy: unsafe extern "C" fn(*mut c_void),
}
