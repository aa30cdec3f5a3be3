#!/usr/bin/env bash
# Builds the service and runs it in the foreground: run.sh PROFILE
# Or only what localdevwithdb needs besides:        run.sh database
#
# The local profiles get the test mandelbox's images, and localdevwithdb its database: a PostgreSQL that listens on
# 127.0.0.1:5432 already is used, and one that is started here ends with this script. With PUBSUB=hasura both
# PostgreSQL and Hasura are containers of Docker.
set -euo pipefail
cd "$(dirname "$0")/.."

profile=$1
service=build/host-service

as_root() {
    if [[ $EUID -eq 0 ]]; then "$@"; else sudo --preserve-env "$@"; fi
}

load_images() {
    scripts/setup.sh run
    tests/mandelbox/make-image.sh build/test-mandelbox.tar
    as_root "$service" image load build/test-mandelbox.tar --profile "$profile"
}

start_database() {
    if (: </dev/tcp/127.0.0.1/5432) 2>/dev/null; then
        echo "run: using the PostgreSQL that listens on 127.0.0.1:5432" >&2
        return
    fi
    scripts/setup.sh database
    echo "run: starting PostgreSQL on 127.0.0.1:5432; its data is in build/database" >&2
    # Its input is closed when this script ends, however it does.
    coproc database { trap '' INT TERM && as_root scripts/database.sh; }
    # shellcheck disable=SC2154 # coproc sets it
    database_process=$database_PID database_input=${database[1]}
    trap stop_database EXIT
    if ! read -r -t 60 <&"${database[0]}"; then
        echo "run: PostgreSQL does not come up; build/database/log may say why" >&2
        exit 1
    fi
}

stop_database() {
    exec {database_input}>&-
    wait "$database_process" || true
}

prepare_database() {
    start_database
    as_root "$service" db migrate --profile localdevwithdb
}

compose() {
    docker compose --file plugins/pubsub-hasura/hasura/compose.yaml "$@"
}

# The tables first: Hasura looks for them when it starts.
prepare_hasura() {
    trap 'compose stop' EXIT
    compose up --wait postgres
    as_root "$service" db migrate --profile localdevwithdb
    compose up --wait hasura
    export HOST_SERVICE__PUBSUB__PLUGIN=hasura
}

make build
case $profile in
    localdev) load_images ;;
    localdevwithdb)
        load_images
        # Another database, or another control plane, is its user's to start and to prepare.
        if [[ ${PUBSUB:-} == hasura ]]; then
            prepare_hasura
        elif [[ -z ${HOST_SERVICE__PUBSUB__POSTGRES__URL:-}${HOST_SERVICE__PUBSUB__PLUGIN:-} ]]; then
            prepare_database
        fi
        ;;
    database)
        prepare_database
        echo "run: psql postgres://postgres:postgrespassword@127.0.0.1:5432/postgres" >&2
        if [[ -n ${database_process:-} ]]; then
            trap : INT TERM
            wait "$database_process" || true
        fi
        exit
        ;;
esac
# A handler, unlike ignoring, leaves the service its own; it drains on Ctrl-C while this script waits for it.
trap : INT TERM
as_root "$service" run --profile "$profile"
