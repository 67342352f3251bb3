#!/usr/bin/env bash
# Deletes the machine and its disk: ./delete.sh [--dry-run]
# shellcheck source=launch/eval_gpu/settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
step gcloud compute instances delete "$VM" --project="$PROJECT" --zone="$ZONE" --quiet
