//! The header and the Rust types describe the same bytes: a C program compiled from the header tells its layout.
#![cfg(test)]

use std::{fmt::Write as _, fs, mem, path::Path, process::Command};

use host_plugin_abi::{CallOpts, Host, Interface, LogRecord, Plugin, Slice};

/// Of each struct its size, and of each field its name and place: once as Rust has it, once as C code that prints it.
macro_rules! layout {
    ($($rust:ty = $c:literal { $($field:ident),* $(,)? })*) => {{
        let (mut rust, mut c) = (String::new(), String::new());
        $(
            writeln!(rust, "{} {} {}", $c, size_of::<$rust>(), align_of::<$rust>()).unwrap();
            writeln!(c, "printf(\"%s %zu %zu\\n\", \"{0}\", sizeof({0}), _Alignof({0}));", $c).unwrap();
            $(
                writeln!(rust, "{}.{} {}", $c, stringify!($field), mem::offset_of!($rust, $field)).unwrap();
                writeln!(c, "printf(\"%s.%s %zu\\n\", \"{0}\", \"{1}\", offsetof({0}, {1}));", $c, stringify!($field))
                    .unwrap();
            )*
        )*
        (rust, c)
    }};
}

#[test]
fn c_and_rust_lay_out_every_struct_alike() {
    let (rust, body) = layout! {
        Slice<'_> = "hp_slice" {}
        Interface = "hp_interface" { id, major, minor, reserved }
        CallOpts = "hp_call_opts" { size, window, timeout_ms, trace_id, span_id, trace_flags, reserved }
        LogRecord<'_> = "hp_log_record" {
            size, level, call_id, target, message, fields_json, file, line, reserved
        }
        Host = "hp_host" {
            size, abi_major, abi_minor, features, encoding, reserved, ctx, complete, emit, log, log_level
        }
        Plugin = "hp_plugin" {
            magic, abi_major, abi_minor, size, encodings, features, name, version, sdk, config_schema, interfaces,
            interface_count, create, call, cancel, grant, shutdown, destroy
        }
    };
    assert_eq!(told_by_c(&body), rust);
}

#[test]
fn c_and_rust_agree_on_every_number() {
    use host_plugin_abi as abi;
    let numbers = [
        ("HP_MAGIC", i64::from(abi::MAGIC)),
        ("HP_ABI_MAJOR", i64::from(abi::ABI_MAJOR)),
        ("HP_ABI_MINOR", i64::from(abi::ABI_MINOR)),
        ("HP_ENCODING_JSON", i64::from(abi::ENCODING_JSON)),
        ("HP_ENCODING_MSGPACK", i64::from(abi::ENCODING_MSGPACK)),
        ("HP_OK", i64::from(abi::OK)),
        ("HP_UNIMPLEMENTED", i64::from(abi::UNIMPLEMENTED)),
        ("HP_CANCELLED", i64::from(abi::CANCELLED)),
        ("HP_EMITTED", i64::from(abi::EMITTED)),
        ("HP_NO_CREDIT", i64::from(abi::NO_CREDIT)),
        ("HP_GONE", i64::from(abi::GONE)),
    ];
    let (mut rust, mut c) = (String::new(), String::new());
    for (name, value) in numbers {
        writeln!(rust, "{name} {value}").unwrap();
        writeln!(c, "printf(\"{name} %lld\\n\", (long long){name});").unwrap();
    }
    assert_eq!(told_by_c(&c), rust);
}

/// What a C program with this body prints; strictly C11, so that a header which needs more is found out.
fn told_by_c(body: &str) -> String {
    let scratch = tempfile::tempdir().unwrap();
    let (source, program) = (scratch.path().join("layout.c"), scratch.path().join("layout"));
    let text =
        format!("#include <stdio.h>\n#include \"host_plugin.h\"\nint main(void) {{\n{body}return 0;\n}}\n");
    fs::write(&source, text).unwrap();
    let include = Path::new(env!("CARGO_MANIFEST_DIR")).join("include");
    let compiled = Command::new("cc")
        .args(["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-o"])
        .args([&program, &source])
        .arg("-I")
        .arg(include)
        .status()
        .expect("a C compiler, cc; apt-get install gcc");
    assert!(compiled.success());
    String::from_utf8(Command::new(&program).output().unwrap().stdout).unwrap()
}
