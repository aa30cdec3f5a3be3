//! A runner by itself, for tests; the host service is one when it is started as `host-service plugin-runner`.

fn main() {
    host_plugin_loader::runner::main()
}
