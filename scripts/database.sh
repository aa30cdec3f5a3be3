#!/usr/bin/env bash
# A PostgreSQL for development, for as long as its standard input stays open: database.sh [DIRECTORY]
#
# It listens on 127.0.0.1:5432, for user postgres with password postgrespassword, and says "ready" when it answers. The
# data is kept in DIRECTORY, build/database by default, which only root and postgres can read. Needs root.
set -euo pipefail

own=$(realpath "$0")
directory=$(realpath --canonicalize-missing "${1:-$(dirname "$own")/../build/database}")
# The server is postgres, to whom the way to DIRECTORY may be closed: it sees it in its home, in a name space of its own.
home=/var/lib/postgresql
if [[ ${2:-} != inside ]]; then exec unshare --mount "$own" "$directory" inside; fi

# What counts is the end of the input, which comes however those end for whom this runs.
trap '' HUP INT TERM

programs=$(printf '%s\n' /usr/lib/postgresql/*/bin | sort --version-sort | tail --lines=1)
version=$(basename "$(dirname "$programs")")
data=$home/$version
as_postgres=(setpriv --reuid=postgres --regid=postgres --clear-groups --)

# Root's, because root writes there.
umask 077
install --directory --group=postgres --mode=750 "$directory"
mount --bind "$directory" "$home"
cd "$home"

if [[ ! -e $data ]]; then
    rm -rf "$data.new"
    install --directory --owner=postgres --group=postgres --mode=700 "$data.new"
    # The password comes through a pipe that is postgres's own.
    # shellcheck disable=SC2016 # it is that shell which replaces them
    "${as_postgres[@]}" bash -c '"$1/initdb" --pgdata="$2" --username=postgres --pwfile=<(echo postgrespassword) \
        --auth=scram-sha-256 --encoding=UTF8 --locale=C.UTF-8' initdb "$programs" "$data.new" >"$home/log" 2>&1 ||
        { cat "$home/log" >&2 && exit 1; }
    mv "$data.new" "$data"
fi

# In a session of its own: Ctrl-C is for the service, which needs the database until its end.
"${as_postgres[@]}" setsid "$programs/postgres" -D "$data" -h 127.0.0.1 -p 5432 -k '' </dev/null >"$home/log" 2>&1 &
server=$!
# Connections are cut, nothing is lost.
trap 'kill -INT "$server" 2>/dev/null; wait "$server"' EXIT
trap '' PIPE
until "$programs/pg_isready" --quiet --host=127.0.0.1 --port=5432; do
    if ! kill -0 "$server" 2>/dev/null; then
        cat "$home/log" >&2
        exit 1
    fi
    # The pause ends with the input, of which more than 128 says that there is some yet.
    read -r -t 0.1 || (($? > 128)) || exit 1
done
echo ready
cat >/dev/null
