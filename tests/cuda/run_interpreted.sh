#!/usr/bin/env bash
# The tests marked `gpu` without a GPU: PyTorch with CUDA, our extension and its kernels' PTX, with the interpreter in
# ptx/ in the place of CUDA's runtime library. Slow, and about results only.
#
#   bash tests/cuda/run_interpreted.sh                                          all of them
#   bash tests/cuda/run_interpreted.sh -n 2 tests/cuda/test_gpu.py -k requantization
#   bash tests/cuda/run_interpreted.sh --python bench/generate.py --device cuda --model var-tiny --images 1
#
# Wants nvcc, g++, the CUTLASS headers, and a `python` whose torch has CUDA. Builds in build/interpreted, the base set of
# kernels unless PTQ4ARVG_CUDA_SET=full.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root"
work=$root/build/interpreted nvcc=$(command -v nvcc)
runtime=$work/lib/libcuda.so.1 # PyTorch asks for it by this name
mkdir -p "$work/lib" "$work/bin" "$work/source"

headers=$("$nvcc" --dryrun -x cu -c /dev/null -o /dev/null 2>&1 | sed -n 's/^#\$ INCLUDES="\(.*\)" *$/\1/p' | tr -d '"')
# shellcheck disable=SC2086
${CXX:-g++} -std=c++20 -O2 -ffp-contract=off -fPIC -shared $headers -Icsrc tests/cuda/ptx/*.cpp -o "$runtime"

# nvcc as the build knows it, but for PTX as text instead of machine code, and for our runtime library in the static
# one's place.
cat >"$work/bin/nvcc" <<END
#!/usr/bin/env bash
for argument; do arguments+=("\${argument/code=sm_/code=compute_}"); done
if [[ " \$* " == *" --dryrun "* ]]; then
  "$nvcc" "\${arguments[@]}" 2>&1 | sed 's|^#\\$ LIBRARIES=.*|#\$ LIBRARIES="-L$work/lib"|'
else
  exec "$nvcc" --no-compress "\${arguments[@]}"
fi
END
chmod +x "$work/bin/nvcc"
echo "INPUT($runtime)" >"$work/lib/libcudart_static.a"

git ls-files -z --cached --others --exclude-standard ':!third_party' |
  xargs -0 cp --parents --preserve=timestamps -t "$work/source"
mkdir -p "$work/source/third_party"
ln -sfn "$root/third_party/cutlass" "$work/source/third_party/cutlass"
cd "$work/source"
PATH=$work/bin:$PATH PTQ4ARVG_BUILD=cuda PTQ4ARVG_CUDA_SET=${PTQ4ARVG_CUDA_SET:-reduced} \
  python setup.py -q build_ext --inplace >"$work/build.log" 2>&1 || { tail -n 40 "$work/build.log"; exit 1; }

export LD_LIBRARY_PATH=$work/lib LD_PRELOAD=$runtime PYTHONPATH=$work/source PTQ4ARVG_INTERPRETED=1
if [ "${1:-}" = --python ]; then
  shift
  # Processes that a script starts need the stand-in for PyTorch's kernels as well.
  mkdir -p "$work/site"
  printf 'from tests.cuda.host_aten import HostAten\nHostAten().__enter__()\n' >"$work/site/sitecustomize.py"
  PYTHONPATH=$work/source:$work/site exec python "$@"
fi
[ $# -gt 0 ] || set -- tests/cuda
exec python -m pytest -q -m gpu "$@"
