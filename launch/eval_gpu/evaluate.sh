#!/usr/bin/env bash
# Has the model that the machine serves answer a bench, or judge answers. janus runs here, and so its journal is here.
#   ./evaluate.sh [--dry-run] answer BENCH NAME ANSWERS [options of janus bench run]
#   ./evaluate.sh [--dry-run] judge BENCH ANSWERS NAME DIR [options of janus bench judge]
# shellcheck source=launch/eval_gpu/settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
usage() {
  sed -n '3,4s/^# *//p' "$0" >&2
  exit 2
}
kind=${1:-} url="http://127.0.0.1:$PORT/v1"
[[ $# -ge 4 && ($kind == answer || ($kind == judge && $# -ge 5)) ]] || usage

tunnel=(gcloud compute ssh "$VM" --project="$PROJECT" --zone="$ZONE" -- -N -L "$PORT:127.0.0.1:$PORT"
  -o ExitOnForwardFailure=yes -o ServerAliveInterval=30)
if [[ -n $DRY_RUN ]]; then
  step "${tunnel[@]}" "&"
else
  set -m # gcloud starts ssh, and both must end
  "${tunnel[@]}" &
  trap 'kill -- -'"$!" EXIT
  set +m
  patiently curl -sf "$url/models" -o /dev/null
fi
if [[ $kind == answer ]]; then
  step janus bench run "$2" "$3" --base-url "$url" --no-key --out "$4" "${@:5}"
else
  step janus bench judge "$2" --answers "$3" --judge "$4" --base-url "$url" --no-key --out "$5" --concurrent 32 "${@:6}"
  step janus bench table "$5" --json "$5/table.json" --csv "$5/table.csv"
fi
