#!/usr/bin/env bash
# Everything that needs a GPU, in one call: tests, memory and race checks, benchmarks, profiles.
#
#   OUT=results bash bench/gpu.sh [tests] [sanitizer] [bench] [peers] [profile]   default: all of them
#   OUT=results bash bench/gpu.sh tune --budget 1200      the table of kernels, measured for 1200 s
#   GENERATE="var-d30 llamagen-l" bash bench/gpu.sh bench      whole models of other sizes
#
# peers runs where another library is installed, or $PEER_LIBRARIES is a folder that bench/peers.py
# can load them from.
#
# tune continues $OUT/tune.csv; when no size is missing there, it writes the table for the next build.
#
# Wants ptq4arvg/_C.so and _info*.so built with CUDA kernels in the source folder
# (PTQ4ARVG_BUILD=cuda python setup.py build_ext --inplace), on this machine or on one like it. A
# step that fails does not stop the others; the script fails at the end. Logs and CSV files: $OUT.
set -uo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
OUT=${OUT:-gpu-results}
GENERATE=${GENERATE:-var-d16 rar-b llamagen-b}
mkdir -p "$OUT"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
budget=1200 steps=
while [ $# -gt 0 ]; do
  case $1 in
    --budget) budget=${2:?--budget wants seconds}; shift 2 ;;
    *) steps+=" $1"; shift ;;
  esac
done
steps=${steps:-tests sanitizer bench peers profile}
failed=()

step() { # step NAME command...: logged, timed, its last lines shown
  local name=$1 begin=$SECONDS
  shift
  if "$@" >"$OUT/$name.log" 2>&1; then verdict=passed; else verdict=FAILED; failed+=("$name"); fi
  printf '== %s: %s in %s s\n' "$name" "$verdict" $((SECONDS - begin))
  tail -n 15 "$OUT/$name.log"
}
wanted() { [[ " $steps " == *" $1 "* ]]; }

step doctor python -m ptq4arvg doctor
command -v nvidia-smi >/dev/null && nvidia-smi >"$OUT/nvidia-smi.txt"
wanted tests && step tests python -m pytest -q -m gpu tests/cuda -x --maxfail=20
if wanted sanitizer; then
  if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck synccheck; do
      step "$tool" compute-sanitizer --tool "$tool" --error-exitcode 9 \
        python -m pytest -q -m gpu tests/cuda/test_gpu.py tests/cuda/test_gpu_attention.py tests/cuda/test_gpu_map.py \
        -k "extremes or pack_and_unpack or requantization or limits or off_alignment or of_patches"
    done
  else
    echo "== sanitizer: no compute-sanitizer here, skipped"
  fi
fi
if wanted bench; then
  for op in gemm quantize norm_quantize; do
    step "kernels-$op" python bench/kernels.py --device cuda --op "$op" --shapes var-d16,var-d30,rar-b \
      --m 1,16,128,512,8192 --budget 60 --out "$OUT/kernels-$op.csv"
  done
  for op in gemm quantize norm_quantize; do
    step "kernels-$op-rotated" python bench/kernels.py --device cuda --op "$op" --rotate \
      --shapes var-d16,var-d30,rar-b --m 1,16,128,512,8192 --budget 30 --out "$OUT/kernels-$op-rotated.csv"
  done
  step attention python bench/attention.py --device cuda --models var-d16,var-d24,rar-b,par-xl-4x --images 1,8,64 \
    --budget 60 --out "$OUT/attention.csv"
  step decoder python bench/decoder.py --device cuda --images 1,8,64 --budget 90 --out "$OUT/decoder.csv"
  for model in $GENERATE; do
    step "generate-$model" python bench/generate.py --device cuda --model "$model" --images 1,8,64 \
      --schemes W8A8,W8A8KV8,W8A8KV8D8,W6A6KV8D8,W4A8KV8D8 --out "$OUT/generate-$model.csv"
  done
fi
if wanted peers; then
  libraries=(${PEER_LIBRARIES:+--libraries "$PEER_LIBRARIES"})
  if python bench/peers.py --list "${libraries[@]}" >"$OUT/peers.txt"; then
    step peers python bench/peers.py "${libraries[@]}" --budget 300 --out "$OUT/peers.csv"
  else
    echo "== peers: no other library here, skipped ($OUT/peers.txt says what to install)"
  fi
fi
wanted tune && step tune python bench/tune.py --budget "$budget" --measurements "$OUT/tune.csv"
if wanted profile && command -v ncu >/dev/null; then
  step ncu ncu --set basic -c 20 python -m pytest -q -m gpu tests/cuda/test_gpu.py -k "test_gemm and 1360"
fi
[ "${#failed[@]}" = 0 ] || { echo "failed: ${failed[*]}"; exit 1; }
