#!/usr/bin/env bash
# Builds the service and runs it in the foreground: run.sh PROFILE
#
# The local profiles get what they need besides: the test mandelbox's images, and a Docker Engine if none runs.
set -euo pipefail
cd "$(dirname "$0")/.."

profile=$1
service=build/host-service
socket=/var/run/docker.sock
state=$PWD/build/docker
engine=
bridge=
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

as_root() {
    if [[ $EUID -eq 0 ]]; then "$@"; else sudo --preserve-env "$@"; fi
}

engine_listens() {
    # Read to the end: a reader that leaves early would fail the writer, and with it the pipeline.
    ss --listening --unix --no-header | grep --extended-regexp ' (/var)?/run/docker\.sock ' >/dev/null
}

# wait_for WHAT CONDITION…: fails after 30 s.
wait_for() {
    local deadline=$((SECONDS + 30))
    until "${@:2}"; do
        if [[ $SECONDS -ge $deadline ]]; then
            echo "run: no $1 within 30 s" >&2
            return 1
        fi
        sleep 0.1
    done
}

# systemd's own service where there is one; else an engine that lives as long as this script.
ensure_engine() {
    if engine_listens; then return; fi
    if [[ -d /run/systemd/system ]]; then
        echo "run: starting Docker with systemctl" >&2
        as_root systemctl start docker
    else
        echo "run: no Docker Engine runs here, so one is started until this ends; its state is in build/docker" >&2
        mkdir -p "$state"
        # Nothing listens, so what an earlier engine left here names a process that is gone or somebody else's.
        as_root rm -f "$state/pid"
        bridge=$(ip -oneline link show docker0 2>/dev/null || echo none)
        # In a session of its own Ctrl-C does not reach it: the service goes first.
        as_root setsid dockerd --host "unix://$socket" --data-root "$state/data" --pidfile "$state/pid" \
            </dev/null >"$state/log" 2>&1 &
        engine=$!
    fi
    wait_for "Docker Engine (its log is build/docker/log)" engine_listens
}

stop_engine() {
    if [[ -n $engine ]]; then
        echo "run: stopping the Docker Engine that was started here" >&2
        local pid
        pid=$(cat "$state/pid" 2>/dev/null || true)
        if [[ -n $pid && $(cat "/proc/$pid/comm" 2>/dev/null) == dockerd ]]; then
            as_root kill "$pid"
            wait "$engine" || true
        fi
        if [[ $bridge == none ]]; then as_root ip link delete docker0 2>/dev/null || true; fi
    fi
}

prepare_local() {
    scripts/setup.sh engine
    tests/mandelbox/make-image.sh build/test-mandelbox.tar
    trap stop_engine EXIT
    ensure_engine
    as_root "$service" image load build/test-mandelbox.tar --profile "$profile"
}

make build
case $profile in
    localdev | localdevwithdb) prepare_local ;;
esac
# A handler, unlike ignoring, leaves the service its own; it drains on Ctrl-C while this script waits for it.
trap : INT TERM
as_root "$service" run --profile "$profile"
