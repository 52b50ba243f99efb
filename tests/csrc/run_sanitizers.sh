#!/bin/sh
# The kernel test under AddressSanitizer and UndefinedBehaviorSanitizer. Needs g++ (or CXX) alone; see build.sh.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$here"/build.sh "$work/test_kernels" -O1 -g1 -fsanitize=address,undefined -fno-sanitize-recover=all \
    -fno-omit-frame-pointer
ASAN_OPTIONS=detect_leaks=1:abort_on_error=0 UBSAN_OPTIONS=print_stacktrace=1 "$work/test_kernels"
