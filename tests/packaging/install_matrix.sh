#!/usr/bin/env bash
# Installs the package for real into fresh virtual environments, one per case, and checks each.
# Takes minutes and several GB per case, so pytest does not run it.
#
#   tests/packaging/install_matrix.sh [case ...]       default: cpu editable noiso
#
#   cpu        pip install .                           next to torch 2.13.0
#   editable   pip install -e .                        next to torch 2.13.0
#   noiso      pip install --no-build-isolation -e .   next to torch 2.13.0
#   cuda       pip install .                           next to torch 2.11.0 (CUDA 13.0), nvcc on PATH
#   none       pip install .                           without torch: fetches the newest one
#   swap       a library built next to 2.13.0 is loaded by 2.11.0, and the other way round
#
# PYTHON=python3.12 picks another interpreter, SOURCE=folder another source tree, and
# LOGS=folder keeps the logs.
set -euo pipefail

source_tree=${SOURCE:-$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)}
python=${PYTHON:-python3}
work=$(mktemp -d)
logs=${LOGS:-$work}
trap 'rm -rf "$work"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1
unset PYTHONPATH  # what is installed is what gets tested

fresh() { # fresh NAME [TORCH]: a virtual environment and a clean copy of the source
  "$python" -m venv "$work/$1"
  [ -z "${2:-}" ] || "$work/$1/bin/pip" install -q "$2"
  git clone -q --no-hardlinks "$source_tree" "$work/$1-src"
}

torch_of() { "$work/$1/bin/pip" freeze 2>/dev/null | grep '^torch==' || echo 'no torch'; }

install() { # install NAME pip-arguments...: timed, with the whole log kept
  local name=$1 begin=$SECONDS
  shift
  (cd "$work/$name-src" && "$work/$name/bin/pip" install -v "$@" >"$logs/$name.log" 2>&1) ||
    { tail -n 30 "$logs/$name.log"; echo "FAILED: $name"; exit 1; }
  echo "$name: installed in $((SECONDS - begin)) s ($("$work/$name/bin/python" -V))"
  grep -o 'ptq4arvg: building.*' "$logs/$name.log" | sort -u | sed 's/^/    /'
}

keeps_torch() { # keeps_torch NAME BEFORE: same version, and pip fetched no torch at all
  local now fetched
  now=$(torch_of "$1")
  [ "$now" = "$2" ] || { echo "FAILED: $1: torch was $2, is $now"; exit 1; }
  fetched=$(grep -cE '(Downloading|Processing|Using cached|Installing collected).*[/ ]torch[-, ]' \
    "$logs/$1.log" || true)
  [ "$fetched" = 0 ] || { echo "FAILED: $1: pip fetched torch"; exit 1; }
  echo "    $now kept, none fetched"
}

works() { # works NAME: the operators load and compute, away from the source tree
  (cd "$work" && "$work/$1/bin/python" - <<'PY'
import torch
from ptq4arvg import ops
x, inv_scale = torch.arange(-32.0, 32).reshape(4, 16), torch.full((4,), 3.0)
arguments = (x, inv_scale, torch.full((4,), 30, dtype=torch.int32), 6)
assert torch.equal(ops.quantize(*arguments), ops.reference.quantize(*arguments))
print("    computes in torch", torch.__version__, "on", ops.isa(), ops.build_info())
PY
  ) || { echo "FAILED: $1: the installed package does not work"; exit 1; }
}

finish() { rm -rf "${work:?}/$1" "$work/$1-src"; }

run_case() {
  local before
  case $1 in
    cpu | editable | noiso)
      fresh "$1" torch==2.13.0
      before=$(torch_of "$1")
      case $1 in
        cpu) install cpu . ;;
        editable) install editable -e . ;;
        noiso)
          "$work/noiso/bin/pip" install -q 'setuptools>=77' 'ninja>=1.11' 'pybind11>=2.13'
          install noiso --no-build-isolation -e .
          ;;
      esac
      keeps_torch "$1" "$before"
      ;;
    cuda)
      command -v nvcc >/dev/null || { echo "cuda: skipped, no nvcc on PATH"; return; }
      fresh cuda torch==2.11.0
      before=$(torch_of cuda)
      install cuda .
      keeps_torch cuda "$before"
      ;;
    none)
      fresh none
      install none .
      echo "    $(torch_of none)"
      ;;
    swap)
      local name library
      fresh first torch==2.13.0
      fresh second torch==2.11.0
      for name in first second; do install "$name" .; done
      for name in first second; do
        library=$(find "$work/$name/lib" -path '*/ptq4arvg/_C.so')
        mv "$library" "$work/$name.so"
      done
      cp "$work/second.so" "$(find "$work/first/lib" -name ptq4arvg -type d)/_C.so"
      cp "$work/first.so" "$(find "$work/second/lib" -name ptq4arvg -type d)/_C.so"
      for name in first second; do works "$name" && finish "$name"; done
      return
      ;;
    *) echo "unknown case '$1'; see the top of this file"; exit 2 ;;
  esac
  works "$1"
  finish "$1"
}

[ $# -gt 0 ] || set -- cpu editable noiso
for name in "$@"; do run_case "$name"; done
