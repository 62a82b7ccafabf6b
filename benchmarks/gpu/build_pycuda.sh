#!/usr/bin/env bash
# Build pycuda from its source distribution, with what a machine without network has:
#
#   bash benchmarks/gpu/build_pycuda.sh pycuda-VERSION.tar.gz FOLDER
#
# puts the package into FOLDER, for PYTHONPATH. Needs nvcc, g++, numpy and setuptools; no driver:
# where there is none, it is linked to an empty libcuda.so.1, and loads where there is a true one.
set -euo pipefail

sdist=$1 target=$2
python=${PYTHON:-python3}
mkdir -p "$target"
target=$(cd "$target" && pwd)
work=$target/.build
rm -rf "$work"
mkdir -p "$work/driver"
tar xzf "$sdist" -C "$work" --strip-components=1

# nvcc may be a wrapper that lies elsewhere: it says itself where its toolkit is.
here=$(nvcc -dryrun -E -x cu /dev/null 2>&1 | sed -n 's/^#\$ _HERE_=//p')
root=$(cd "$here/.." && pwd)
driver=$(ldconfig -p | sed -n 's/.*libcuda\.so\.1 .*=> //p' | head -n 1)
if [ -n "$driver" ]; then
  ln -s "$driver" "$work/driver/libcuda.so"
else
  echo | gcc -shared -fPIC -Wl,-soname,libcuda.so.1 -x c - -o "$work/driver/libcuda.so"
fi

cd "$work"
"$python" configure.py --cuda-root="$root" --no-cuda-enable-curand \
  --cudadrv-lib-dir="$work/driver" --cudart-lib-dir="$root/lib64"
LDFLAGS=-Wl,--no-as-needed "$python" setup.py -q build_ext --inplace
mv pycuda "$target/"
cd "$target"
rm -rf "$work"
"$python" - << 'END'
import sys

sys.path.insert(0, ".")
import pycuda

print("built pycuda", pycuda.VERSION_TEXT)
END
