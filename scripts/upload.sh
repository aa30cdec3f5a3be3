#!/usr/bin/env bash
# Packs the release binary and copies the archive to UPLOAD_TARGET: a directory, or s3://BUCKET/PREFIX.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
    echo "upload: $1" >&2
    exit 64
}

target=${UPLOAD_TARGET:-}
case $target in
    '') fail "UPLOAD_TARGET is not set; it is a directory or s3://BUCKET/PREFIX" ;;
    s3://?*) command -v aws >/dev/null || fail "UPLOAD_TARGET is $target, but there is no aws command here" ;;
    *) [[ -d $target ]] || fail "UPLOAD_TARGET is $target, which is neither a directory nor s3://BUCKET/PREFIX" ;;
esac

make build
package_id=$(cargo pkgid --package host-service)
archive=build/host-service-${package_id##*[#@]}-$(uname -m).tar.gz
tar --create --gzip --file "$archive" --owner=0 --group=0 --directory build host-service

case $target in
    s3://*) aws s3 cp "$archive" "${target%/}/" ;;
    *) cp "$archive" "$target/" ;;
esac
echo "upload: ${archive##*/} is at $target" >&2
