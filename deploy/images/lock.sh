#!/bin/sh
# Writes the three lock files again: every version and hash that the images install, except PyTorch's own.
set -eu
cd "$(dirname "$0")"

lock() {
  into=$1
  shift
  "${UV:-uv}" pip compile --quiet --generate-hashes --no-annotate --python-version 3.11 \
    --python-platform x86_64-manylinux_2_28 --overrides without.txt \
    --custom-compile-command deploy/images/lock.sh --output-file "$into" "$@"
}

lock site.lock site.in torch.in
lock server.lock --extra decoders --extra deidentify --extra harmonise --extra postgresql --extra transformers ../../pyproject.toml torch.in
lock inventory.lock inventory.in
