#!/usr/bin/env bash
# Everything that needs a CUDA machine, within a limit of nine minutes: build the kernels for its
# GPU, run the tests marked `gpu`, look for bad accesses and races, measure the device, then check
# and time every kernel, the step of a frame, the whole loop, and networks. Needs torch with CUDA,
# triton, nvcc, pytest, pybind11, setuptools, numpy and OpenCV; no network. PYTHON names the Python
# that has them. The rows are those of the suite (fastpose/bench), and stand in one document.
#
#   bash benchmarks/gpu.sh --out DIR     writes DIR/gpu.json, DIR/gpu-tests.xml and DIR/gpu.log
#     --commit HASH                      of the sources, where they are in no repository
#     --pycuda FILE.tar.gz               its source distribution: built there meanwhile, so that its
#                                        memory is tested too, beside that of cuda-bindings
#   bash benchmarks/gpu.sh --dry-run     without a GPU, as far as it goes: builds, collects the
#                                        tests, and runs every program on small cases on the CPU
#
# A stage that fails or runs out of time costs the others nothing: each has its share of the time
# and what those before it left, and writes its results at once. The status is 1 if one failed.
set -uo pipefail
cd "$(dirname "$0")/.."

out="" dry="" pycuda="" commit=""
said="bash benchmarks/gpu.sh"
while [ $# -gt 0 ]; do
  case $1 in
    --out) out=${2:-}; shift; [ $# -eq 0 ] || shift ;;
    --dry-run) dry=--dry-run; said+=" --dry-run"; shift ;;
    --commit) commit=${2:-}; shift; [ $# -eq 0 ] || shift ;;
    --pycuda) pycuda=${2:-}; shift; [ $# -eq 0 ] || shift ;;
    *) echo "usage: benchmarks/gpu.sh --out DIR [--commit HASH] [--pycuda FILE] | --dry-run [--out DIR]" >&2
      exit 2 ;;
  esac
done
[ -z "$pycuda" ] || [ -f "$pycuda" ] || { echo "benchmarks/gpu.sh: no file $pycuda" >&2; exit 2; }
[ -z "$pycuda" ] || pycuda=$(realpath "$pycuda")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
[ -n "$dry" ] && [ -z "$out" ] && out=$scratch
[ -n "$out" ] || { echo "benchmarks/gpu.sh: --out DIR is missing" >&2; exit 2; }
mkdir -p "$out"
out=$(cd "$out" && pwd)
json=$out/gpu.json log=$out/gpu.log
rm -f "$json" "$out/gpu-tests.xml"
: > "$log"

python=${PYTHON:-python3}
for module in torch numpy cv2 pytest pybind11 setuptools; do
  "$python" -c "import $module" || {
    echo "benchmarks/gpu.sh: $python has no $module; PYTHON names another Python" >&2; exit 2; }
done
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
# What is compiled here is kept for the run alone, wherever the home folder is.
[ -w "${HOME:-/nonexistent}" ] || export HOME=$scratch
export TRITON_CACHE_DIR=$scratch/triton CUDA_CACHE_PATH=$scratch/cuda
export TORCHINDUCTOR_CACHE_DIR=$scratch/inductor
# The plugins of pytest that a machine happens to have are none of ours, but for the one that lets
# several tests compile their kernels at once.
export PYTEST_DISABLE_PLUGIN_AUTOLOAD=1
workers=()
"$python" -c "import xdist" 2> "$scratch/xdist" && workers=(-p lost_device -p xdist -n 8 --dist load)

# Beside the other builds: it takes one core for over a minute. What comes before it is done goes
# without.
building=""
if [ -n "$pycuda" ]; then
  export PYTHONPATH=$PYTHONPATH:$scratch/pycuda
  PYTHON=$python bash benchmarks/gpu/build_pycuda.sh "$pycuda" "$scratch/pycuda" \
    > "$scratch/pycuda.log" 2>&1 &
  building=$!
fi

failed=0 end=0
patience=1
[ -z "$dry" ] || patience=6 # a dry run's machine is a slow one, and nobody waits for it

say() { printf '[%3d s] %s\n' "$SECONDS" "$*" | tee -a "$log"; }

# stage NAME SECONDS COMMAND...
stage() {
  local name=$1 share=$2 begin=$SECONDS status command
  shift 2
  command=${*//"$out"/DIR}
  command=${command//"$scratch"/DIR}
  command=${command//"$python"/python}
  command=${command//"$PWD"/.}
  end=$((end + share * patience))
  say "$name, until $end s: $command"
  # SIGINT first: pytest then still writes its report
  timeout -s INT -k 8 $((end > begin ? end - begin : 1)) "$@" 2>&1 | tee -a "$log" "$scratch/$name.log"
  status=${PIPESTATUS[0]}
  "$python" benchmarks/gpu/report.py "$json" stage "$name" "$status" $((SECONDS - begin)) "$command"
  [ "$status" = 0 ] || say "$name: status $status"
  [ "$status" = 0 ] || [ "$status" = 3 ] || failed=1
  return "$status"
}

program() { stage "$1" "$2" "$python" "benchmarks/gpu/$1.py" $dry --out "$json"; }

# Some 530 tests, for which a few hundred kernels are compiled: without xdist they may not all fit
# their share. So those of whole frames and of the CUDA C++ come first, those that compile most last.
# Files without such a test are not even imported.
first=(tests/test_graph.py tests/test_fpn_graphs.py tests/test_detector_cuda.py
  tests/ops/test_warp_cuda.py)
last=(tests/ops/test_render.py tests/ops/test_decode.py tests/ops/test_propagate.py)
mapfile -t others < <(grep -rlE 'mark\.gpu|kernels\(' tests --include='test_*.py' | sort |
  grep -vxF -f <(printf '%s\n' "${first[@]}" "${last[@]}"))
files=("${first[@]}" "${others[@]}" "${last[@]}")

# The checkout's own build is replaced: by one for this GPU alone, by a dry run for all of them.
build=(env FASTPOSE_CUDA=1 "$python" setup.py build_ext --inplace)
if [ -z "$dry" ]; then
  arch=$("$python" -c "import torch; print('%d%d' % torch.cuda.get_device_capability())") || arch=90
  build=(env FASTPOSE_CUDA_ARCHS="$arch" "${build[@]}")
fi
tests=(env PYTHONPATH="$PYTHONPATH:$PWD/benchmarks/gpu" "$python" -m pytest "${files[@]}"
  -m gpu -q -ra --continue-on-collection-errors "${workers[@]}" --junitxml="$out/gpu-tests.xml")
[ -z "$dry" ] || tests=("$python" -m pytest "${files[@]}" -m gpu -q --collect-only)

"$python" benchmarks/gpu/report.py "$json" begin "$commit" "$said" || exit 1

# Without the CUDA part there are still the Triton kernels to look at.
stage build 75 "${build[@]}" ||
  stage build-cpu 20 env FASTPOSE_CUDA=0 "$python" setup.py build_ext --inplace
"$python" benchmarks/gpu/report.py "$json" build "$scratch/build.log" | tee -a "$log"

stage tests 115 "${tests[@]}"
[ -n "$dry" ] || "$python" benchmarks/gpu/report.py "$json" tests "$out/gpu-tests.xml" || failed=1

program sanitize 78
program ceilings 12
program step 25
program pipeline 55
program warp 22
program decode 27
program render 13
program propagate 28
if [ -n "$building" ]; then
  wait "$building"
  status=$?
  tail -n 3 "$scratch/pycuda.log" | tee -a "$log"
  # not a failure of ours: cuda-bindings prove the same, and the rows say which it was
  "$python" benchmarks/gpu/report.py "$json" stage build-pycuda "$status" 0 \
    "bash benchmarks/gpu/build_pycuda.sh $(basename "$pycuda") DIR"
fi
program engines 20
program networks 40
# Last, in the time that the others have left: what it finds is for the next version.
left=$((end + 10 * patience - SECONDS - 5))
stage tune_propagate 10 "$python" benchmarks/gpu/tune_propagate.py $dry \
  --seconds $((left < 60 ? left : 60)) --out "$scratch/tune.json"
"$python" benchmarks/gpu/report.py "$json" tune "$scratch/tune.json"

say "done, in $out"
"$python" benchmarks/gpu/report.py "$json" table | tee -a "$log"
exit "$failed"
