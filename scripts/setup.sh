#!/usr/bin/env bash
# Installs what this machine lacks, and nothing that it has: setup.sh PURPOSE…
#
#   build     a C linker for Rust, libseccomp's headers
#   run       nftables, which the daemonless runtime publishes ports with
#   database  PostgreSQL, without the server of the distribution's own on its port
#   engine    what is compared with that runtime: Docker, another OCI runtime, registries
#   test      cargo-nextest, and what the tests run against besides
#   vm        an emulator, for tests with control groups that this machine does not have
#   lint      cargo-deny, shellcheck
#
# Needs Debian or Ubuntu, root or sudo, and a Rust toolchain. Says nothing when there is nothing to do.
set -euo pipefail

# Debian keeps system programs out of an ordinary user's PATH.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin:${CARGO_HOME:-$HOME/.cargo}/bin
log=$(mktemp)
# As /etc/postgresql-common/createcluster.conf includes it.
no_cluster=/etc/postgresql-common/createcluster.d/host-service.conf
prevented=
trap 'rm -f "$log"; allow_cluster' EXIT

lacks() {
    ! command -v "$1" >/dev/null
}

as_root() {
    if [[ $EUID -eq 0 ]]; then "$@"; else sudo "$@"; fi
}

# quietly WHAT COMMAND…: shows the command's output only when it fails.
quietly() {
    local what=$1
    shift
    echo "setup: $what" >&2
    if ! "$@" >"$log" 2>&1 </dev/null; then
        cat "$log" >&2
        echo "setup: $what failed" >&2
        return 1
    fi
}

# PostgreSQL's package would start a server at once, on the port of `make runlocaldevwithdb` and without its password.
prevent_cluster() {
    prevented=yes
    as_root mkdir --parents "${no_cluster%/*}"
    echo 'create_main_cluster = false' | as_root tee "$no_cluster" >/dev/null
}

allow_cluster() {
    if [[ -n $prevented ]]; then
        as_root rm --force "$no_cluster"
        as_root rmdir --ignore-fail-on-non-empty "${no_cluster%/*}"
    fi
}

install_packages() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends "$@" ||
        { as_root apt-get update && as_root env DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends "$@"; }
}

# need PROGRAM PACKAGE…: notes the packages if the program is not there.
need() {
    if lacks "$1"; then packages+=("${@:2}"); fi
}

# need_file FILE PACKAGE…: notes the packages if the file is not there.
need_file() {
    if [[ ! -e $1 ]]; then packages+=("${@:2}"); fi
}

# need_postgres: notes the package if there is no server of any version.
need_postgres() {
    if ! compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null; then
        packages+=(postgresql)
    fi
}

# need_crate PROGRAM: notes the crate of the same name if the program is not there.
need_crate() {
    if lacks "$1"; then crates+=("$1"); fi
}

packages=()
crates=()
# EC2's and S3's API, as a server.
moto=$(dirname "$0")/../build/moto
install_moto=
for purpose in "$@"; do
    case $purpose in
        build)
            need cc gcc libc6-dev
            need_file /usr/include/seccomp.h libseccomp-dev
            ;;
        run) need nft nftables ;;
        database)
            need_postgres
            need setpriv util-linux
            need unshare util-linux
            ;;
        engine)
            need dockerd docker.io
            need iptables iptables
            need ip iproute2
            need unshare util-linux
            need crun crun
            ;;
        test)
            need_crate cargo-nextest
            need ip iproute2
            need unshare util-linux
            need crun crun
            need runc runc
            need podman podman netavark
            need newuidmap uidmap
            need slirp4netns slirp4netns
            need docker-registry docker-registry
            need htpasswd apache2-utils
            need_postgres
            need pgbouncer pgbouncer
            need setpriv util-linux
            if lacks moto_server && [[ ! -x $moto/bin/moto_server ]]; then
                install_moto=yes
                python3 -c 'import ensurepip, venv' 2>/dev/null || packages+=(python3-venv)
            fi
            ;;
        vm)
            need qemu-system-x86_64 qemu-system-x86
            need busybox busybox-static
            ;;
        lint)
            need shellcheck shellcheck
            need_crate cargo-deny
            ;;
        *)
            echo "setup.sh: unknown purpose '$purpose'" >&2
            exit 64
            ;;
    esac
done

if lacks cargo; then
    echo "setup: no Rust toolchain: install one from https://rustup.rs" >&2
    exit 1
fi
if [[ ${#packages[@]} -gt 0 ]]; then
    if [[ " ${packages[*]} " == *" postgresql "* ]]; then prevent_cluster; fi
    quietly "installing ${packages[*]}" install_packages "${packages[@]}"
fi
if [[ -n $install_moto ]]; then
    quietly 'making a Python environment for moto' python3 -m venv "$moto"
    quietly 'installing moto' "$moto/bin/pip" install 'moto[ec2,s3,server]==5.2.1'
fi
for crate in "${crates[@]}"; do
    quietly "building $crate, which takes minutes" env -u CARGO_TARGET_DIR cargo install --locked "$crate"
done
