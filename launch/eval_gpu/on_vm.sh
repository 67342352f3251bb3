#!/usr/bin/env bash
# The part that runs on the GPU machine. create.sh copies it there.
#   on_vm.sh install PACKAGE
#   on_vm.sh serve MODEL NAME PORT MAX_MODEL_LEN
set -euo pipefail

install() {
  for _ in {1..60}; do # the image installs the driver at its first start
    nvidia-smi -L && break
    sleep "${PAUSE:-10}"
  done
  nvidia-smi -L || {
    echo "no GPU driver after ten minutes: sudo journalctl -u google-startup-scripts" >&2
    exit 1
  }
  sudo apt-get update -q
  sudo apt-get install -yq python3-venv
  [[ -x vllm/bin/python ]] || python3 -m venv vllm
  vllm/bin/pip install -q "$1"
}

serve() {
  local model=$1 name=$2 port=$3 length=$4
  if [[ -f server.pid ]] && kill -0 "$(cat server.pid)" 2>/dev/null; then
    kill "$(cat server.pid)"
    while kill -0 "$(cat server.pid)" 2>/dev/null; do sleep 1; done
  fi
  # Without --generation-config vllm, the model's generation_config.json changes how it samples.
  nohup vllm/bin/vllm serve "$model" --served-model-name "$name" --host 127.0.0.1 --port "$port" \
    --dtype bfloat16 --max-model-len "$length" --generation-config vllm >server.log 2>&1 </dev/null &
  echo $! >server.pid
  for _ in {1..240}; do # the first start downloads, loads and compiles
    curl -sf "http://127.0.0.1:$port/v1/models" >models.json && grep -q "\"$name\"" models.json && return
    kill -0 "$(cat server.pid)" 2>/dev/null || break
    sleep "${PAUSE:-5}"
  done
  tail -n 30 server.log >&2
  echo "vLLM does not serve $name; its log is server.log" >&2
  exit 1
}

case ${1:-} in
install | serve)
  cd
  "$@"
  ;;
*)
  sed -n '2,4s/^# //p' "$0" >&2
  exit 2
  ;;
esac
