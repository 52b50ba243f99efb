#!/usr/bin/env bash
# Everything that needs a GPU, in one call: tests, memory and race checks, benchmarks, profiles.
#
#   bash bench/gpu.sh [STEP...]     of tests peers kernels attention decoder generate sanitizer profile; default: all
#   bash bench/gpu.sh --within 570 tests peers      no step goes on, or begins, after so many seconds
#   bash bench/gpu.sh tune          measures the table of kernels; $TUNE: which sizes
#   GENERATE="var-d30 llamagen-l" bash bench/gpu.sh generate      whole models of other sizes
#
# Logs and CSV files: $RESULTS (gpu-results). ARCHIVE=FILE.tgz: they are in there, too, after every step. Quantized
# models: $CHECKPOINTS (gpu-checkpoints). PYTHON: which one (python3). PEER_LIBRARIES: a folder that bench/peers.py can
# load other libraries from. BENCH_COMMIT: what a CSV file says was measured, outside git.
#
# Wants ptq4arvg/_C.so and _info*.so, built with CUDA kernels for that Python
# (PTQ4ARVG_BUILD=cuda python3 setup.py build_ext --inplace), on this machine or on one like it. A step that fails or is
# stopped keeps what it has and does not stop the others; the script fails at the end. tune goes on with what
# $RESULTS/tune.csv has; when no size is missing there, it writes the table for the next build.
set -uo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
RESULTS=${RESULTS:-gpu-results}
PYTHON=${PYTHON:-python3}
GENERATE=${GENERATE:-var-d24}
TUNE=${TUNE:---shapes var-d24,rar-xl --m 1,16,64,256,1024,8192 --bits 8,4}
mkdir -p "$RESULTS"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
within=86400 steps=
while [ $# -gt 0 ]; do
  case $1 in
    --within) within=${2:?--within wants seconds}; shift 2 ;;
    tests | peers | kernels | attention | decoder | generate | sanitizer | profile | tune) steps+=" $1"; shift ;;
    *) echo "gpu.sh: no step '$1'; the first lines of bench/gpu.sh name them" >&2; exit 2 ;;
  esac
done
steps=${steps:-tests peers kernels attention decoder generate sanitizer profile}
failed=()

# step NAME SECONDS command...: logged, timed, interrupted after so many seconds, its last lines shown
step() {
  local name=$1 limit=$2 begin=$SECONDS left=$((within - SECONDS - 15)) verdict
  shift 2
  limit=$((limit < left ? limit : left))
  if [ "$limit" -lt 10 ]; then
    verdict="FAILED, no time left"
  elif timeout -s INT -k 20 "$limit" env --default-signal=INT "$@" >"$RESULTS/$name.log" 2>&1; then
    verdict=passed
  else
    verdict="FAILED (status $?)"
  fi
  [ "$verdict" = passed ] || failed+=("$name")
  printf '== %s: %s in %s s\n' "$name" "$verdict" $((SECONDS - begin))
  [ -f "$RESULTS/$name.log" ] && tail -n 15 "$RESULTS/$name.log"
  [ -z "${ARCHIVE:-}" ] || tar czf "$ARCHIVE" -C "$RESULTS" .
}
wanted() { [[ " $steps " == *" $1 "* ]]; }
has() { "$PYTHON" -c "import $1" 2>/dev/null; }

"$PYTHON" bench/preflight.py || exit 2
step doctor 60 "$PYTHON" -m ptq4arvg doctor
command -v nvidia-smi >/dev/null && nvidia-smi >"$RESULTS/nvidia-smi.txt"
if wanted tests; then
  # A worker that has lost the GPU ends, and another takes its place; so does one that waits for a kernel forever.
  options=()
  has xdist && options+=(-n 8)
  has pytest_timeout && options+=(--timeout 150 --timeout-method thread)
  step tests 900 "$PYTHON" -m pytest -q -m gpu tests/cuda "${options[@]}"
fi
if wanted peers; then
  step peers 300 "$PYTHON" bench/peers.py ${PEER_LIBRARIES:+--libraries "$PEER_LIBRARIES"} --shapes var-d24,rar-xl \
    --m 1,16,64,512,8192 --budget 120 --out "$RESULTS/peers.csv"
fi
if wanted kernels; then
  for op in quantize norm_quantize; do
    for rotate in "" --rotate; do
      step "$op$rotate" 120 "$PYTHON" bench/kernels.py --device cuda --op "$op" $rotate --dtype bfloat16 --shapes var-d24 \
        --m 1,128,2048,32768 --bits 8 --budget 15 --out "$RESULTS/$op$rotate.csv"
    done
  done
  step gemm 180 "$PYTHON" bench/kernels.py --device cuda --shapes var-d24 --m 16,512,8192 --bits 8,4 --budget 40 \
    --out "$RESULTS/gemm.csv"
fi
if wanted attention; then
  step attention 180 "$PYTHON" bench/attention.py --device cuda --models var-d24,rar-b,par-xl-4x --images 1,64 --budget 40 \
    --out "$RESULTS/attention.csv"
fi
if wanted decoder; then
  step decoder 240 "$PYTHON" bench/decoder.py --device cuda --models var-d16,rar-b,mar-b --images 1,64 \
    --floats bfloat16 --budget 40 --out "$RESULTS/decoder.csv"
fi
if wanted generate; then
  for model in $GENERATE; do
    step "generate-$model" 600 "$PYTHON" bench/generate.py --device cuda --model "$model" --images 1,64 --repeats 3 \
      --schemes W8A8,W8A8KV8D8,W4A8KV8D8 --floats bfloat16,bfloat16_graphs,bfloat16_compiled \
      --checkpoints "${CHECKPOINTS:-gpu-checkpoints}" --out "$RESULTS/generate-$model.csv"
  done
fi
if wanted sanitizer; then
  if command -v compute-sanitizer >/dev/null; then
    # Every tensor in memory of its own, so that what reads past an end is seen.
    export PYTORCH_NO_CUDA_MEMORY_CACHING=1
    small="extremes or pack_and_unpack or requantization or limits or off_alignment or of_patches or test_quantize"
    small+=" or test_norm_quantize or test_gate_quantize or test_gemm_float"
    for tool in memcheck racecheck synccheck; do
      for tests in "$small" "test_every_kernel and 31 and not graph"; do
        name=$tool
        [ "$tests" = "$small" ] || name+=-kernels
        step "$name" 180 compute-sanitizer --tool "$tool" --error-exitcode 9 "$PYTHON" -m pytest -q -m gpu \
          tests/cuda/test_gpu.py tests/cuda/test_gpu_attention.py tests/cuda/test_gpu_map.py -k "$tests"
      done
    done
    unset PYTORCH_NO_CUDA_MEMORY_CACHING
  else
    echo "== sanitizer: no compute-sanitizer here, skipped"
  fi
fi
if wanted tune; then
  left=$((within - SECONDS - 60))
  # shellcheck disable=SC2086  # $TUNE is several words
  step tune 1300 "$PYTHON" bench/tune.py $TUNE --budget $((left < 1200 ? left : 1200)) --measurements "$RESULTS/tune.csv"
fi
if wanted profile; then
  if command -v ncu >/dev/null; then
    # The clocks stay as they are: the machine may be shared.
    step profile 240 ncu --clock-control none --set basic -c 60 "$PYTHON" -m pytest -q -m gpu tests/cuda/test_gpu.py \
      tests/cuda/test_gpu_attention.py tests/cuda/test_gpu_map.py -k "(test_gemm and 1360) or test_convolutions or test_attention"
  else
    echo "== profile: no ncu here, skipped"
  fi
fi
[ "${#failed[@]}" = 0 ] || { echo "failed: ${failed[*]}"; exit 1; }
