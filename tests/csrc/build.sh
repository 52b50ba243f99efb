#!/bin/sh
# Build the kernel test without torch and Python: build.sh OUTPUT [compiler flags]
#
# With AVX-512 emulated by SIMDe where its headers are installed (Debian: libsimde-dev) and the processor has AVX2 but
# no AVX-512-VNNI; PTQ4ARVG_EMULATE=0 or 1 decides by hand. SIMDe has no AMX, which is never emulated. CXX names the
# compiler (default g++), whose target decides which instruction sets there are; MAX_JOBS: files compiled at a time
# (default 2).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
csrc=$here/../../csrc
output=$1
shift
cxx=${CXX:-g++}
objects=$(mktemp -d)
trap 'rm -rf "$objects"' EXIT

has() { grep -q -m1 -w "$1" /proc/cpuinfo 2>/dev/null; }
target=$($cxx -dumpmachine)
x86=0 arm64=0
case $target in x86_64* | amd64*) x86=1 ;; aarch64* | arm64*) arm64=1 ;; esac
emulate=${PTQ4ARVG_EMULATE:-}
[ $x86 = 1 ] || emulate=0
if [ -z "$emulate" ]; then
    emulate=0
    if ! has avx512_vnni && has avx2 && echo '#include <simde/x86/avx512.h>' | $cxx -E -x c++ - >/dev/null 2>&1; then
        emulate=1
    fi
fi

flags="-std=c++20 -ffp-contract=off -fvisibility=hidden -Wall -Wextra -I$csrc $*"
avx2="-mavx2 -mfma -mf16c"
avx512="-mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni"
native512=$avx512
define=
if [ "$emulate" = 1 ]; then
    define="-DPTQ4ARVG_EMULATE -I$here"
    avx512="$define -Wno-psabi -Wno-ignored-attributes"
    # An emulated instruction is many variables and loads. To check each of them in place takes GCC ten minutes a file:
    # heap accesses only, by calls.
    by_calls="--param asan-stack=0 --param asan-instrumentation-with-call-threshold=0"
    case $flags in *-fsanitize=address*)
        if $cxx $by_calls -E -x c++ /dev/null >/dev/null 2>&1; then avx512="$avx512 $by_calls"; fi ;;
    esac
fi

for source in "$csrc"/kernels/*.cpp "$csrc"/kernels/cpu/*.cpp "$here"/test_kernels.cpp; do
    name=$(basename "$source" .cpp)
    isa=
    case $name in
        *amx_int8*) isa="$avx2 $native512 -mamx-tile -mamx-int8" ;;
        *avx512_vnni*) isa="$avx2 $avx512" ;;
        *avx_vnni*) isa="$avx2 -mavxvnni" ;;
        *avx2*) isa=$avx2 ;;
        *neon_dotprod*) isa=-march=armv8.2-a+dotprod ;;
        test_kernels) isa=$define ;;
    esac
    case $name in
        *avx* | *amx*) [ $x86 = 1 ] || continue ;;
        *neon*) [ $arm64 = 1 ] || continue ;;
    esac
    printf '%s\0' "$cxx $flags $isa -c '$source' -o '$objects/$name.o'"
done | xargs -0 -n 1 -P "${MAX_JOBS:-2}" sh -c
# shellcheck disable=SC2086
$cxx $flags "$objects"/*.o -pthread -o "$output"
