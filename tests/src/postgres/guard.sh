#!/usr/bin/env bash
# Removes a scratch cluster when nobody uses it any more: guard.sh DIRECTORY [RUNNER]
#
# Users share a lock on `lease`, which the kernel gives back however they end. With a RUNNER, the process that runs the
# tests one after the other, the cluster lives at least as long as that.
set -uo pipefail

directory=$1
runner=${2:-}

exec 9>>"$directory/lease"
if [[ -n $runner ]]; then
    tail --sleep-interval=0.1 --follow /dev/null --pid="$runner" 9>&-
fi
flock --exclusive 9

# The server, if it runs: the number in its file may be another process's by now.
server() {
    local process
    read -r process <"$directory/data/postmaster.pid" &&
        [[ $(tr '\0' ' ' <"/proc/$process/cmdline") == *"$directory/data"* ]] && echo "$process"
} 2>/dev/null

if process=$(server); then
    # It may be frozen. SIGQUIT is the end without a checkpoint: the data goes with it.
    read -r -a sessions <"/proc/$process/task/$process/children"
    kill -CONT "$process" "${sessions[@]}"
    kill -QUIT "$process"
    timeout 5 tail --sleep-interval=0.05 --follow /dev/null --pid="$process" || kill -KILL "$process" "${sessions[@]}"
fi 2>/dev/null

# Nobody may find the directory half gone.
mv "$directory" "$directory.gone"
rm -rf "$directory.gone"
