#!/usr/bin/env bash
# Serves a model on the machine in place of another one: ./serve.sh [--dry-run] MODEL NAME
# MODEL: a directory here, such as an export, or a hub id; NAME: what requests call it.
# shellcheck source=launch/eval_gpu/settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
model=${1:?a directory or a hub id} name=${2:?a name for the model}
if [[ ! $name =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ ]]; then
  echo "$name: allowed: letters, digits, . _ and -" >&2
  exit 2
fi

if [[ -d $model ]]; then
  step gcloud compute ssh "$VM" --project="$PROJECT" --zone="$ZONE" --command="mkdir -p models; rm -rf models/$name"
  step gcloud compute scp --recurse "$model" "$VM:models/$name" --project="$PROJECT" --zone="$ZONE"
  model="models/$name"
fi
on_vm serve "$model" "$name" "$PORT" "$MAX_MODEL_LEN"
