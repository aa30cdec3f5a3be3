#!/usr/bin/env bash
# Runs every test of the workspace: test.sh [NEXTEST_ARG…]
set -euo pipefail
cd "$(dirname "$0")/.."

# Engines need root. A user's tests are built as the user and run by sudo.
if [[ $EUID -ne 0 ]]; then
    sudo --validate
    triple=$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
    export "CARGO_TARGET_${triple}_RUNNER=sudo --preserve-env"
fi

# The tests' engine would make the image when it is missing or old, but then the first test would have to wait for it.
tests/mandelbox/make-image.sh build/test-mandelbox.tar
# Whole-process tests start the programs, which cargo builds for the tests of their own packages only.
cargo build --workspace --bins
cargo nextest run --workspace "$@"
cargo test --workspace --doc --quiet
# What every runtime does, which these tests have held to what they saw.
sed -n '/^|/,$p' docs/conformance.md
