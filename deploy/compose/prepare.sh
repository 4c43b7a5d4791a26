#!/bin/sh
# Makes what compose.yaml mounts: synthetic images, the coordinator's home, and three hospitals that have joined.
# These are the steps that people take in earnest, one after the other; here one machine plays all of them.
set -eu
umask 077

out=${1:-rehearsal}
fedmed=${FEDMED:-fedmed}
address=${FEDMED_ADDRESS:-server:8443}
experiment=$(dirname "$0")/../../simulations/fedmed_simulations/experiments/rehearsal.toml
sites="east north south"

# FEDMED may be several words, as "docker run ... fedmed-server:0.1.0".
run() {
  # shellcheck disable=SC2086
  FEDMED_HOME='' $fedmed "$@"
}

mkdir -p "$out/sites"
[ -d "$out/data" ] || run phantom "$out/data" --sites 3 --patients "${FEDMED_PATIENTS:-12}" --shape 64,64,32 --seed 1

{
  printf 'name = "rehearsal"\n\n[coordinator]\naddress = "%s"\nnames = ["127.0.0.1"]\n' "$address"
  for site in $sites; do printf '\n[[sites]]\nname = "%s"\ncontact = "it@%s.example"\n' "$site" "$site"; done
} >"$out/consortium.toml"
run provision "$out/consortium.toml" --out "$out/consortium"

for site in $sites; do
  home=$out/sites/$site
  run site init "$out/consortium/kits/$site.zip" --home "$home"
  run provision sign "$home/request.json" --out "$out/consortium"
  run site join "$out/consortium/$site.answer.json" --home "$home"
  {
    printf 'approve = "consortium-signed"\n'
    sed "s#^root = .*#root = \"${FEDMED_IMAGES:-/data}/dicom\"#" "$out/data/$site/site.toml"
  } >"$home/site.toml"
done

cp "$experiment" "$out/consortium/server/experiment.toml"

# Containers run as whoever prepared, but never as root.
user=$(id -u)
group=$(id -g)
if [ "$user" = 0 ]; then
  user=10001
  group=10001
  chown -R "$user:$group" "$out/consortium/server" "$out/sites" "$out/data"
fi
printf 'FEDMED_UID=%s\nFEDMED_GID=%s\nFEDMED_REHEARSAL=%s\n' "$user" "$group" "$(cd "$out" && pwd)" >"$out/.env"
echo "$out is ready"
