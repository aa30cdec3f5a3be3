//! What can be said of a library before any of its code runs: constructors run while it is loaded.

use host_plugin_abi::ENTRY;
use object::{Architecture, Object, ObjectKind, ObjectSymbol};

use crate::library::LoadError;

#[cfg(target_arch = "x86_64")]
const HERE: Architecture = Architecture::X86_64;
#[cfg(target_arch = "aarch64")]
const HERE: Architecture = Architecture::Aarch64;

/// It is a whole shared library for this processor that exports the entry symbol.
pub(crate) fn check(bytes: &[u8]) -> Result<(), LoadError> {
    if !bytes.starts_with(b"\x7fELF") {
        return Err(LoadError::NotALibrary("it does not begin as one".to_owned()));
    }
    let file = object::File::parse(bytes)
        .map_err(|error| LoadError::NotALibrary(format!("it is damaged or cut off: {error}")))?;
    if file.architecture() != HERE {
        return Err(LoadError::Architecture(format!("{:?}", file.architecture()), format!("{HERE:?}")));
    }
    if file.kind() != ObjectKind::Dynamic {
        return Err(LoadError::NotALibrary(format!("it is {:?}; build a cdylib", file.kind())));
    }
    whole(bytes)?;
    let is_entry = |symbol: &object::Symbol<'_, '_>| symbol.is_definition() && symbol.name() == Ok(ENTRY);
    if file.dynamic_symbols().any(|symbol| is_entry(&symbol)) {
        return Ok(());
    }
    let major = |symbol: &object::Symbol<'_, '_>| {
        Some(symbol.name().ok()?.strip_prefix("hp_plugin_entry_v")?.to_owned())
    };
    match file.dynamic_symbols().find_map(|symbol| major(&symbol)) {
        Some(major) => Err(LoadError::AbiMajor(major)),
        None => Err(LoadError::NoEntry),
    }
}

/// Every segment lies within the file; one that does not would be a fatal signal at its first use.
fn whole(bytes: &[u8]) -> Result<(), LoadError> {
    use object::read::elf::{FileHeader, ProgramHeader};
    let damaged = |error: object::Error| LoadError::NotALibrary(format!("it is damaged: {error}"));
    let header = object::elf::FileHeader64::<object::Endianness>::parse(bytes).map_err(damaged)?;
    let endian = header.endian().map_err(damaged)?;
    for segment in header.program_headers(endian, bytes).map_err(damaged)? {
        let (offset, size) = segment.file_range(endian);
        if offset.checked_add(size).is_none_or(|end| end > bytes.len() as u64) {
            return Err(LoadError::NotALibrary("it is cut off; build or copy it again".to_owned()));
        }
    }
    Ok(())
}
