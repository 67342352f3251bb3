# shellcheck shell=bash
# Settings of the other scripts, which source this file. Change one in the environment: ZONE=europe-west4-a ./create.sh
set -euo pipefail

DRY_RUN=""
if [[ ${1:-} == --dry-run ]]; then
  DRY_RUN=yes
  shift
fi

PROJECT=${PROJECT:?set it to your Google Cloud project}
ZONE=${ZONE:-us-central1-a}
VM=${VM:-janus-eval}
MACHINE=${MACHINE:-g2-standard-8} # one L4 of 24 GB; a2-highgpu-1g has one A100 of 40 GB
PROVISIONING=${PROVISIONING:-STANDARD} # or SPOT, which is cheaper and may be taken away
MAX_HOURS=${MAX_HOURS:-8} # then Google Cloud deletes the machine, whatever runs on it
DISK_GB=${DISK_GB:-150}
# Names change; gcloud compute images list --project=deeplearning-platform-release --no-standard-images
IMAGE_FAMILY=${IMAGE_FAMILY:-common-cu128-ubuntu-2204-nvidia-570}
IMAGE_PROJECT=${IMAGE_PROJECT:-deeplearning-platform-release}
VLLM=${VLLM:-vllm==0.32.0}
MAX_MODEL_LEN=${MAX_MODEL_LEN:-8192}
PORT=${PORT:-8000}
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export PROJECT ZONE VM MACHINE PROVISIONING MAX_HOURS DISK_GB IMAGE_FAMILY IMAGE_PROJECT VLLM MAX_MODEL_LEN PORT HERE

# Prints a command, and runs it unless this is a rehearsal.
step() {
  {
    printf '+'
    printf ' %q' "$@"
    printf '\n'
  } >&2
  [[ -n $DRY_RUN ]] || "$@"
}

# Runs on_vm.sh on the machine. gcloud repeats a command whose connection breaks, so it may run twice.
on_vm() {
  local words
  printf -v words ' %q' "$@"
  step gcloud compute ssh "$VM" --project="$PROJECT" --zone="$ZONE" --command="bash on_vm.sh$words"
}

# Tries a command again for ten minutes: a new machine does not answer at once.
patiently() {
  local try
  for try in {1..40}; do
    "$@" && return
    echo "not yet ($try of 40)" >&2
    sleep "${PAUSE:-15}"
  done
  return 1
}
