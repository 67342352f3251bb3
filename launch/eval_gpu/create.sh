#!/usr/bin/env bash
# Makes a machine with one GPU and installs vLLM on it: ./create.sh [--dry-run]
# shellcheck source=launch/eval_gpu/settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

step gcloud compute instances create "$VM" \
  --project="$PROJECT" --zone="$ZONE" --machine-type="$MACHINE" \
  --image-family="$IMAGE_FAMILY" --image-project="$IMAGE_PROJECT" \
  --boot-disk-size="${DISK_GB}GB" --boot-disk-type=pd-balanced --metadata=install-nvidia-driver=True \
  --maintenance-policy=TERMINATE --provisioning-model="$PROVISIONING" \
  --max-run-duration="${MAX_HOURS}h" --instance-termination-action=DELETE
patiently step gcloud compute scp "$HERE/on_vm.sh" "$VM:" --project="$PROJECT" --zone="$ZONE"
on_vm install "$VLLM"
