#!/bin/sh
# Copies a server's or a site's home while it runs. Keys stay out unless --with-keys asks for them.
set -eu
umask 077

usage="usage: backup.sh HOME TARGET [--with-keys]"
home=${1:?"$usage"}
target=${2:?"$usage"}
case "${3-}" in
  "") keys=no ;;
  --with-keys) keys=yes ;;
  *) echo "$usage" >&2 && exit 2 ;;
esac
python=${PYTHON:-python3}

say() { echo "backup.sh: $*" >&2; }

fail() {
  say "$@"
  exit 1
}

# One path below the home, links followed, where it exists.
copy() {
  [ -e "$home/$1" ] || return 0
  mkdir -p "$(dirname "$into/$1")"
  rm -rf "${into:?}/$1"
  cp -RLp "$home/$1" "$into/$1"
}

# Several paths, again until none of the named files below them changed meanwhile: they belong together.
copy_settled() {
  paths=$1
  shift
  for _ in 1 2 3 4 5 6 7 8 9 10; do
    if copy_all "$paths" 2>/dev/null && ! changed "$paths" "$@"; then
      return 0
    fi
    set_mark
  done
  fail "$home: $paths: keeps changing; fix: stop the service and back up again"
}

copy_all() {
  for path in $1; do copy "$path" || return 1; done
}

# What changes from now on is newer than the mark; a second is more than any file system's grain of time.
set_mark() {
  touch "$mark"
  sleep 1
}

changed() {
  paths=$1
  shift
  for path in $paths; do
    [ -e "$home/$path" ] || continue
    for name in "$@"; do
      [ -z "$(find "$home/$path" -name "$name" -newer "$mark" 2>/dev/null)" ] || return 0
    done
  done
  return 1
}

# SQLite's own online copy: whole, whatever is written at the same time.
copy_database() {
  [ -f "$home/$1" ] || return 0
  mkdir -p "$(dirname "$into/$1")"
  "$python" -c '
import sqlite3, sys
source, target = (sqlite3.connect(path, timeout=60) for path in sys.argv[1:])
source.execute("pragma query_only = on")
source.backup(target)
healthy = target.execute("pragma quick_check").fetchone()[0]
source.close(), target.close()
sys.exit(healthy != "ok")
' "$home/$1" "$into/$1" || fail "$home/$1 cannot be copied"
}

back_up_server() {
  for path in server.toml registry.json tls/ca.pem tls/server.pem state/sites.json receipts; do copy "$path"; done
  copy_database state/flower.db
  copy_database runs/mlflow.db
  copy runs/mlartifacts
  for run in "$home"/runs/*/; do
    [ -f "$run/experiment.toml" ] || continue
    copy_settled "runs/$(basename "$run")" state.safetensors history.jsonl launch.json
  done
  if [ "$keys" = yes ]; then
    for path in tls/server.key signing.key secrets; do copy "$path"; done
  fi
}

back_up_site() {
  for path in site.toml connection.json ca.pem site.pem request.json approvals incidents.log; do copy "$path"; done
  copy_settled outbox '*'
  copy_settled 'audit.log audit.head' 'audit.*'
  copy_database ledger.db
  copy ledger.key # names nobody; without it the ledger counts as changed
  for path in withdrawn.key withdrawn.json uses; do copy "$path"; done # without these a patient who withdrew would be back
  if [ "$keys" = yes ]; then
    for path in site.key site.key.next; do copy "$path"; done
  fi
}

if [ -f "$home/server.toml" ]; then
  kind=server
elif [ -f "$home/connection.json" ]; then
  kind=site
else
  fail "$home is neither a server's nor a site's home; fix: name the folder that holds server.toml or connection.json"
fi

mkdir -p "$target"
title=fedmed-$kind-$(date -u +%Y%m%dT%H%M%SZ)
into=$target/.$title.part
mark=$target/.$title.mark
[ ! -e "$target/$title" ] || fail "$target/$title is there already; fix: wait a second and back up again"
trap 'rm -rf "$into" "$mark"' EXIT
trap 'exit 130' INT TERM
mkdir "$into"
set_mark
"back_up_$kind"
(cd "$into" && find . -type f -exec sha256sum {} +) >"$mark"
mv "$mark" "$into/SHA256SUMS"
mv "$into" "$target/$title"
echo "$target/$title"
[ "$keys" = yes ] || say "keys were left out; --with-keys takes them along"
