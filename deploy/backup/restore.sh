#!/bin/sh
# Puts a backup of backup.sh into an empty home, after checking every file of it.
set -eu
umask 077

usage="usage: restore.sh BACKUP HOME"
backup=${1:?"$usage"}
home=${2:?"$usage"}

fail() {
  echo "restore.sh: $*" >&2
  exit 1
}

[ -f "$backup/SHA256SUMS" ] || fail "$backup is no backup: SHA256SUMS is missing"
if [ -d "$home" ] && [ -n "$(ls -A "$home")" ]; then
  fail "$home is not empty, and nothing is overwritten; fix: move its content away first"
fi
(cd "$backup" && sha256sum --check --quiet SHA256SUMS) || fail "$backup is damaged; fix: take another backup"

mkdir -p "$home"
cp -Rp "$backup/." "$home/"
rm "$home/SHA256SUMS"
chmod 700 "$home"

missing=""
if [ -f "$home/server.toml" ]; then
  wanted="tls/server.key signing.key"
else
  wanted="site.key"
fi
for key in $wanted; do [ -f "$home/$key" ] || missing="$missing $key"; done
echo "$home"
[ -z "$missing" ] || echo "restore.sh: still missing, because the backup was made without keys:$missing" >&2
