#!/usr/bin/env bash
# Everything that needs a CUDA machine: build the kernels for its GPU, run every test marked `gpu`,
# check and time. Needs torch with CUDA, nvcc, pytest, pybind11, numpy and OpenCV; no network.
#
#   bash benchmarks/gpu.sh --out DIR     writes DIR/gpu.json and the test report DIR/gpu-tests.xml
#   bash benchmarks/gpu.sh --dry-run     without a GPU, as far as it goes: builds, collects, imports
set -euo pipefail
cd "$(dirname "$0")/.."

out="" dry=""
while [ $# -gt 0 ]; do
  case $1 in
    --out) out=$2; shift 2 ;;
    --dry-run) dry=1; shift ;;
    *) echo "usage: benchmarks/gpu.sh --out DIR | --dry-run" >&2; exit 2 ;;
  esac
done
[ -n "$dry" ] || [ -n "$out" ] || { echo "benchmarks/gpu.sh: --out DIR is missing" >&2; exit 2; }

python=${PYTHON:-python3}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
FASTPOSE_CUDA=1 "$python" setup.py -q build_ext --inplace

if [ -n "$dry" ]; then
  "$python" -m pytest tests -m gpu --collect-only -q
  "$python" benchmarks/ops/bench_warp_cuda.py --dry-run
  exit 0
fi

mkdir -p "$out"
failed=0
"$python" -m pytest tests -m gpu -q --junitxml="$out/gpu-tests.xml" || failed=$?
[ "$failed" != 5 ] || { echo "benchmarks/gpu.sh: no test marked gpu was found" >&2; exit 1; }
"$python" benchmarks/ops/bench_warp_cuda.py --out "$out/gpu.json"
exit "$failed"
