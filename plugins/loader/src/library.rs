//! Loading a library, and the handshake.
#![allow(unsafe_code, reason = "a library's code and memory are the author's word")]

use std::{
    error::Error,
    ffi::{CStr, c_char},
    slice,
};

use host_plugin_abi as abi;
use host_plugin_protocol::{Encoding, Interface};
use libloading::os::unix::{Library as Dl, RTLD_LOCAL, RTLD_NOW};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    elf,
    trust::{Distrust, Trusted},
};

/// Never unloaded: threads and destructors of a library outlive its last use.
const RTLD_NODELETE: i32 = libc::RTLD_NODELETE;
/// Of a text that a plugin gives.
const TEXT_LIMIT: usize = 64 * 1024;
const INTERFACE_LIMIT: u64 = 64;

/// Why a library is no plugin for this host.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "each is its text")]
pub enum LoadError {
    #[error(transparent)]
    Distrust(#[from] Distrust),
    #[error("it is no shared library: {0}")]
    NotALibrary(String),
    #[error("it is built for {0}, this host is {1}; build it for this processor")]
    Architecture(String, String),
    #[error("it does not export {entry}; is it a plugin? export_plugin! makes the symbol", entry = abi::ENTRY)]
    NoEntry,
    #[error("it is built for version {0} of the plugin ABI, this host speaks {here}; build it with the SDK of this host", here = abi::ABI_MAJOR)]
    AbiMajor(String),
    #[error("the system's loader refuses it: {0}")]
    Loader(String),
    #[error("its description begins with {0:#010x} instead of {magic:#010x}; it is no plugin, or a damaged one", magic = abi::MAGIC)]
    Magic(u32),
    #[error("its description has {0} bytes, less than the {first} of the first version; build it with this host's header", first = size_of::<abi::Plugin>())]
    Size(u32),
    #[error("its description is missing {0}")]
    Missing(&'static str),
    #[error("it knows no encoding that this host knows; JSON is the one that every plugin must")]
    Encoding,
    #[error("it implements {has}, not {wanted}; name it under [{has}]")]
    Interface { wanted: Interface, has: String },
    #[error("its {interface} interface has version {plugin}, this host's is {here}; {remedy}", here = Interface::MAJOR,
        remedy = if *.plugin > Interface::MAJOR { "the host is too old for it" } else { "build it with this host's SDK" })]
    InterfaceMajor { interface: Interface, plugin: u16 },
}

/// What a plugin says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// As the configuration calls it.
    pub name: String,
    /// Its own version.
    pub version: String,
    /// What it was made with.
    pub sdk: String,
    /// Major and minor.
    pub abi: (u16, u16),
    /// Bits.
    pub encodings: u32,
    /// Number, major, minor.
    pub interfaces: Vec<(u16, u16, u16)>,
    /// JSON Schema of its section.
    pub config_schema: Option<String>,
}

impl Description {
    /// Those of its interfaces that this host knows.
    pub fn kinds(&self) -> Vec<Interface> {
        self.interfaces.iter().filter_map(|(id, ..)| Interface::of(*id)).collect()
    }

    /// How to talk to it as `interface`.
    pub(crate) fn agree(&self, interface: Interface) -> Result<Encoding, LoadError> {
        let found = self.interfaces.iter().find(|(id, ..)| *id == interface.id());
        let Some((_, major, _)) = found else {
            let has: Vec<_> = self.kinds().iter().map(ToString::to_string).collect();
            return Err(LoadError::Interface { wanted: interface, has: has.join(", ") });
        };
        if *major != Interface::MAJOR {
            return Err(LoadError::InterfaceMajor { interface, plugin: *major });
        }
        Encoding::best(self.encodings).ok_or(LoadError::Encoding)
    }
}

/// A library in this process, for ever.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Library {
    pub(crate) plugin: &'static abi::Plugin,
}

// SAFETY: the interface says that what a plugin describes itself with is never changed and its functions may be called
// from any thread.
unsafe impl Send for Library {}
// SAFETY: as above.
unsafe impl Sync for Library {}

impl Library {
    /// Loads it; its constructors run.
    pub(crate) fn load(file: &Trusted) -> Result<(Self, Description), LoadError> {
        elf::check(&file.bytes)?;
        // SAFETY: constructors run; whose code that is was settled by `Trusted`.
        let library = unsafe { Dl::open(Some(&file.path), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE) };
        let library = library.map_err(|error| LoadError::Loader(told(&error)))?;
        file.recheck()?;
        // SAFETY: the symbol has this type in every plugin that has it.
        let entry = unsafe { library.get::<abi::Entry>(abi::ENTRY.as_bytes()) };
        let entry = entry.map_err(|_| LoadError::NoEntry)?;
        // SAFETY: the interface says that it has no effect and gives what is valid for ever.
        let plugin = unsafe { entry() };
        let described = describe(plugin)?;
        std::mem::forget(library);
        Ok(described)
    }
}

/// `libloading` keeps what the system's loader says in the error's cause.
fn told(error: &libloading::Error) -> String {
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}

fn describe(plugin: *const abi::Plugin) -> Result<(Library, Description), LoadError> {
    if plugin.is_null() {
        return Err(LoadError::Missing("altogether: the entry function gives NULL"));
    }
    // SAFETY: these three come first in every version; the rest is read when the size says that it is there.
    let (magic, major, size) =
        unsafe { ((*plugin).magic, (*plugin).abi_major, (&raw const (*plugin).size).read()) };
    if magic != abi::MAGIC {
        return Err(LoadError::Magic(magic));
    }
    if major != abi::ABI_MAJOR {
        return Err(LoadError::AbiMajor(major.to_string()));
    }
    if (size as usize) < size_of::<abi::Plugin>() {
        return Err(LoadError::Size(size));
    }
    functions(plugin)?;
    // SAFETY: it is as large as it must be, its functions are there, and it is valid for ever.
    let plugin: &'static abi::Plugin = unsafe { &*plugin };
    if plugin.interfaces.is_null() || plugin.interface_count > INTERFACE_LIMIT {
        return Err(LoadError::Missing("its interfaces"));
    }
    let count = usize::try_from(plugin.interface_count).unwrap_or_default();
    // SAFETY: the author's word: that many, valid for ever.
    let interfaces = unsafe { slice::from_raw_parts(plugin.interfaces, count) };
    let description = Description {
        name: text(plugin.name).ok_or(LoadError::Missing("its name"))?,
        version: text(plugin.version).ok_or(LoadError::Missing("its version"))?,
        sdk: text(plugin.sdk).unwrap_or_default(),
        abi: (plugin.abi_major, plugin.abi_minor),
        encodings: plugin.encodings,
        interfaces: interfaces.iter().map(|it| (it.id, it.major, it.minor)).collect(),
        config_schema: text(plugin.config_schema),
    };
    Ok((Library { plugin }, description))
}

/// None of the functions is null, which a Rust function cannot be: looked at before any is one.
fn functions(plugin: *const abi::Plugin) -> Result<(), LoadError> {
    // SAFETY: the struct is as large as this one; each field has the size of a pointer.
    let all = unsafe {
        [
            ("create", (&raw const (*plugin).create).cast::<usize>().read()),
            ("call", (&raw const (*plugin).call).cast::<usize>().read()),
            ("cancel", (&raw const (*plugin).cancel).cast::<usize>().read()),
            ("grant", (&raw const (*plugin).grant).cast::<usize>().read()),
            ("shutdown", (&raw const (*plugin).shutdown).cast::<usize>().read()),
            ("destroy", (&raw const (*plugin).destroy).cast::<usize>().read()),
        ]
    };
    match all.into_iter().find(|(_, address)| *address == 0) {
        Some((name, _)) => Err(LoadError::Missing(name)),
        None => Ok(()),
    }
}

fn text(text: *const c_char) -> Option<String> {
    if text.is_null() {
        return None;
    }
    // SAFETY: the author's word: a text that ends with a zero, valid for ever.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    (text.len() <= TEXT_LIMIT).then(|| text.into_owned())
}
