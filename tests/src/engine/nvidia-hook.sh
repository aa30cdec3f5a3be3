#!/bin/bash
# What NVIDIA's toolkit does for Docker's device requests, over ordinary nodes: nvidia-container-runtime-hook prestart
#
# The container's variable says which GPUs it gets. The file `gpus` in the engine's directory says what each is, a line
# each: UUID NAME MAJOR MINOR. Docker sends the container's state.
set -euo pipefail
export PATH=$PATH:/usr/sbin:/usr/bin:/sbin:/bin

gpus=$(dirname "$(dirname "$0")")/gpus
state=$(cat)
pid=$(grep -o '"pid":[0-9]*' <<<"$state" | cut -d : -f 2)
bundle=$(grep -o '"bundle":"[^"]*"' <<<"$state" | cut -d '"' -f 4)
root=$(grep -o '"root":{"path":"[^"]*"' "$bundle/config.json" | cut -d '"' -f 6)
# Docker adds its own after the container's.
visible=$(grep -o '"NVIDIA_VISIBLE_DEVICES=[^"]*"' "$bundle/config.json" | tail -n 1 | cut -d = -f 2 | tr -d '"')

# make NAME MAJOR MINOR: a node in the container, which has its own mounts and still the engine's root.
make() { nsenter --target "$pid" --mount mknod --mode=666 "$root/dev/$1" c "$2" "$3"; }

make nvidiactl 1 3
while read -r uuid name major minor; do
    if [[ $visible == all || ,$visible, == *,$uuid,* ]]; then make "$name" "$major" "$minor"; fi
done <"$gpus"
