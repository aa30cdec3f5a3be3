#!/usr/bin/env bash
# Builds the service and runs it in the foreground: run.sh PROFILE
#
# The local profiles get what they need besides: the test mandelbox's images.
set -euo pipefail
cd "$(dirname "$0")/.."

profile=$1
service=build/host-service

as_root() {
    if [[ $EUID -eq 0 ]]; then "$@"; else sudo --preserve-env "$@"; fi
}

make build
case $profile in
    localdev | localdevwithdb)
        scripts/setup.sh run
        tests/mandelbox/make-image.sh build/test-mandelbox.tar
        as_root "$service" image load build/test-mandelbox.tar --profile "$profile"
        ;;
esac
# A handler, unlike ignoring, leaves the service its own; it drains on Ctrl-C while this script waits for it.
trap : INT TERM
as_root "$service" run --profile "$profile"
