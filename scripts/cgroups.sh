#!/usr/bin/env bash
# Runs the daemonless runtime's tests with control groups of version 1 and of version 2: cgroups.sh [NEXTEST_ARG…]
#
# Each on an emulated machine (vm.sh), whatever this one has; LAYOUTS="v1" chooses. Which tests: profile `vm` in
# .config/nextest.toml.
set -euo pipefail
cd "$(dirname "$0")/.."

described=$PWD/build/cgroups
mkdir -p "$described"
tests/mandelbox/make-image.sh build/test-mandelbox.tar
cargo metadata --format-version 1 >"$described/cargo.json"
cargo nextest list --package runtime-oci --list-type binaries-only --message-format json >"$described/tests.json"

for layout in ${LAYOUTS:-v1 v2}; do
    echo "control groups $layout" >&2
    scripts/vm.sh "$layout" env CONFORMANCE_PATIENCE=10 cargo-nextest nextest run --profile vm \
        --cargo-metadata "$described/cargo.json" --binaries-metadata "$described/tests.json" "$@"
done
