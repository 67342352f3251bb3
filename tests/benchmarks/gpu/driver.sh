#!/bin/bash
# The GPU benchmark on a machine without network. docs/gpu.md says how the files get there and back.
#
#   driver.sh prepare        here: downloads the wheels that such a machine lacks into gpu-wheels/
#   driver.sh run OUT        there: installs them into a temporary folder, measures into OUT, writes OUT/report.md
#   driver.sh smoke          there: the tests that need a GPU
#
# PYTHON, BUDGET and WHEELS change the interpreter, the seconds for all stages, and the folder of the wheels.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
PYTHON=${PYTHON:-python3} BUDGET=${BUDGET:-460} WHEELS=${WHEELS:-gpu-wheels}

prepare() {
  mkdir -p "$WHEELS"
  local platforms=() glibc
  for glibc in 2_28 2_27 2_24 2_17; do platforms+=(--platform "manylinux_${glibc}_x86_64"); done
  local download=("$PYTHON" -m pip download -q --only-binary=:all: --python-version 3.12 --implementation cp
    "${platforms[@]}" --platform manylinux2014_x86_64 -d "$WHEELS")
  "${download[@]}" 'pydantic>=2.12,<3'
  "${download[@]}" --no-deps trl==1.16.0 datasets==5.2.0 dill==0.4.1 multiprocess==0.70.19 'beartype>=0.22,<1'
  ls "$WHEELS"
  echo "$(du -sm "$WHEELS" | cut -f1) MB of wheels, $(git ls-files -z | du -cm --files0-from=- | tail -1 | cut -f1) MB of files in git"
}

install_wheels() {
  SITE=$(mktemp -d)
  "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$SITE" "$WHEELS"/*.whl ||
    { echo "pip failed: unpacking instead"; local wheel; for wheel in "$WHEELS"/*.whl; do "$PYTHON" -m zipfile -e "$wheel" "$SITE" || echo "not unpacked: $wheel"; done; }
  export PYTHONPATH="$SITE:$PWD" PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
}

case ${1:-} in
  prepare) prepare ;;
  run)
    out=${2:?say where to write: driver.sh run OUT}
    install_wheels
    # The program keeps to its budget; the limit is for the case that it does not.
    timeout -k 10 "$(("${BUDGET%.*}" + 30))" "$PYTHON" -m tests.benchmarks.gpu --out "$out" --budget "$BUDGET" "${@:3}" || echo "exit code $?"
    "$PYTHON" -m tests.benchmarks.gpu --report "$out" | tee "$out/report.md"
    ;;
  smoke)
    install_wheels
    JAX_PLATFORMS=cuda,cpu XLA_FLAGS= timeout -k 10 300 "$PYTHON" -m pytest -q -n 0 -p no:cacheprovider tests/model/kernels/test_on_gpu.py
    ;;
  *) sed -n 's/^# \{0,1\}//p' "${BASH_SOURCE[0]}" | sed 1d >&2; exit 2 ;;
esac
