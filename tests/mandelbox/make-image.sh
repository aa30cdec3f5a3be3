#!/usr/bin/env bash
# Builds the test mandelbox and packs it as an image archive: make-image.sh OUT.tar
#
# The archive is what `docker save` writes since Docker 25: an OCI layout with a manifest.json beside it, so that
# Docker 20.10 and later, containerd, Podman and any OCI reader take it. It needs no engine and no registry, and
# the same binary always gives the same bytes. All its images share one layer and differ in their Cmd.
set -euo pipefail

usage() {
    echo "usage: make-image.sh OUT.tar" >&2
    exit 64
}

# Builds the program and prints its path. A --target keeps the static build apart from `cargo build --release`.
build() {
    local triple target_dir
    triple=$(rustc -vV | sed -n 's/^host: //p')
    cargo rustc --quiet --release --package test-mandelbox --target "$triple" -- \
        -C target-feature=+crt-static -C strip=symbols >&2
    target_dir=$(cargo metadata --no-deps --format-version 1 | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')
    echo "$target_dir/$triple/release/test-mandelbox"
}

# pack DIR OUT: the same files always give the same bytes.
pack() {
    (cd "$1" && tar --create --file "$2" --format=ustar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -- *)
}

sha256_of() {
    sha256sum "$1" | cut -d' ' -f1
}

# add_blob FILE: moves it among the blobs and prints its digest.
add_blob() {
    local digest
    digest=$(sha256_of "$1")
    mv "$1" "$layout/blobs/sha256/$digest"
    echo "$digest"
}

size_of_blob() {
    stat --format=%s "$layout/blobs/sha256/$1"
}

# descriptor MEDIA_TYPE DIGEST [MORE_MEMBERS]
descriptor() {
    printf '{"mediaType":"%s","digest":"sha256:%s","size":%s%s}' "$1" "$2" "$(size_of_blob "$2")" "${3:-}"
}

make_layer() {
    local root=$work/root
    mkdir -p "$root"/{dev,etc,fractal,proc,run,sys,tmp}
    chmod 755 "$root" "$root"/*
    chmod 1777 "$root/tmp"
    echo 'root:x:0:0:root:/:/test-mandelbox' >"$root/etc/passwd"
    chmod 644 "$root/etc/passwd"
    install --mode=755 "$1" "$root/test-mandelbox"
    pack "$root" "$work/layer.tar"
    layer=$(add_blob "$work/layer.tar")
}

# add_image CMD_JSON NAME…: adds one image under its names, in both formats.
add_image() {
    local cmd=$1 config manifest name tags=()
    shift
    printf '{"architecture":"%s","os":"linux","created":"1970-01-01T00:00:00Z","config":{%s,"Cmd":%s},%s,%s}' \
        "$architecture" \
        '"Env":["PATH=/"],"Entrypoint":["/test-mandelbox"],"WorkingDir":"/"' "$cmd" \
        '"rootfs":{"type":"layers","diff_ids":["sha256:'"$layer"'"]}' \
        '"history":[{"created":"1970-01-01T00:00:00Z","created_by":"make-image.sh"}]' >"$work/config"
    config=$(add_blob "$work/config")

    printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":%s,"layers":[%s]}' \
        "$(descriptor application/vnd.oci.image.config.v1+json "$config")" \
        "$(descriptor application/vnd.oci.image.layer.v1.tar "$layer")" >"$work/manifest"
    manifest=$(add_blob "$work/manifest")

    for name in "$@"; do
        tags+=("\"$name:current-build\"")
        oci_images+=("$(descriptor application/vnd.oci.image.manifest.v1+json "$manifest" \
            ',"annotations":{"io.containerd.image.name":"docker.io/'"$name"':current-build","org.opencontainers.image.ref.name":"current-build"}')")
    done
    docker_images+=("$(printf '{"Config":"blobs/sha256/%s","RepoTags":[%s],"Layers":["blobs/sha256/%s"]}' \
        "$config" "$(joined "${tags[@]}")" "$layer")")
}

joined() {
    local IFS=,
    echo "$*"
}

add_images() {
    add_image null browsers/chrome test/mandelbox
    add_image '["exit-at-once"]' test/exit-at-once
    add_image '["never-ready"]' test/never-ready
    add_image '["ignore-sigterm"]' test/ignore-sigterm
    add_image '["slow-ready","1500"]' test/slow-ready
    add_image '["symlink-attack"]' test/symlink-attack
}

[[ $# -eq 1 && -n $1 ]] || usage
case $(uname -m) in
    x86_64) architecture=amd64 ;;
    aarch64) architecture=arm64 ;;
    *) architecture=$(uname -m) ;;
esac
mkdir -p "$(dirname "$1")"
out=$(realpath "$1")
cd "$(dirname "$0")/../.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
layout=$work/layout
mkdir -p "$layout/blobs/sha256"
docker_images=()
oci_images=()

make_layer "$(build)"
add_images
echo '{"imageLayoutVersion":"1.0.0"}' >"$layout/oci-layout"
printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[%s]}' \
    "$(joined "${oci_images[@]}")" >"$layout/index.json"
printf '[%s]' "$(joined "${docker_images[@]}")" >"$layout/manifest.json"
chmod -R u=rwX,go=rX "$layout"
pack "$layout" "$work/image.tar"

# An archive that did not change keeps its time, and one that did appears whole.
if ! cmp --silent "$work/image.tar" "$out"; then
    cp "$work/image.tar" "$out.new"
    mv "$out.new" "$out"
fi
