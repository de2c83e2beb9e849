#!/bin/sh
# Compiles every kernel for every architecture that it is for, and checks the machine code: the instruction that the
# kernel exists for is there, no spills, no subroutine where products are made. Then builds the test programs: `kernels`
# for a Hopper GPU, and `kernels-sm75`, sm_75's code as PTX, for any (main.cu).
# Usage: tests/kernels/build.sh NVCC OUT     NVCC: path of nvcc 13.0, with cuobjdump beside it
set -eu
nvcc=$(readlink -f "$1") out=$2
cuda=$(dirname "$(dirname "$nvcc")")
here=$(cd "$(dirname "$0")" && pwd)
kernels=$here/../../kernels
mkdir -p "$out"

fail() { echo "FAILED $*" >&2; exit 1; }

# compile UNIT ARCH
compile() {
    cubin=$out/$1-$2.cubin
    "$nvcc" -std=c++17 -O3 -cubin -Werror=all-warnings -gencode "arch=compute_$2,code=sm_$2" -I"$kernels" -Xptxas=-v \
        -o "$cubin" "$kernels/$1.cu" >"$out/log" 2>&1 || { cat "$out/log"; fail "$1 for sm_$2 does not compile"; }
    grep -q 'C7510\|C7512\|C7513\|C7514' "$out/log" && { cat "$out/log"; fail "$1 for sm_$2: serialized wgmma"; }
    "$cuda/bin/cuobjdump" -sass "$cubin" >"$out/sass"
    if [ "$3" != emulated ]; then
        # Two registers saved around an epilogue cost nothing; more is a mistake. Hopper's linears have a thread with 24
        # registers that fills the ring: it may keep what it needs once a tile in memory.
        case $1 in gemm_w4a[48]_sm90) most=64 ;; *) most=8 ;; esac
        awk -v most=$most '/bytes spill stores/ { if ($5 > most) exit 1 }' "$out/log" || { cat "$out/log"; fail "$1 for sm_$2 spills"; }
        grep -q "$3" "$out/sass" || fail "$1 for sm_$2: no $3"
        case $1 in
            gemm* | conv3x3* | *_sm90) ! grep -q 'RET\.' "$out/sass" || fail "$1 for sm_$2 calls a subroutine" ;;
        esac
    fi
    echo "ok $1 sm_$2"
}

compile gemm_w4a4 75 'IMMA.8832.S4.S4'
for arch in 80 86 89; do compile gemm_w4a4 $arch 'IMMA.16864.S4.S4'; done
for arch in 90a 120f; do compile gemm_w4a4 $arch emulated; done
for arch in 75 80 86 89 90a 120f; do compile quantize $arch 'HMMA'; done
compile unpack_w4a8 90a 'PRMT'
compile unpack_nvfp4_w4a8 90a 'MUFU.RCP'
for arch in 75 80 86 89 90a 120f; do compile unpack_bf16 $arch 'STG.E.128'; done
compile gemm_nvfp4_sm120 120f 'OMMA.SF.16864.F32.E2M1.E2M1.UE4M3.4X'
compile gemm_w4a8_sm90 90a 'IGMMA.64x256x32.S8.S8'
compile gemm_w4a4_sm90 90a 'QGMMA.64x128x32.F32.E4M3.E4M3'
compile unpack_w4a4_sm90 90a 'PRMT'
compile project_down_sm90 90a 'HGMMA.64x256x16.F32.BF16'
compile attention_sm90 90a 'HGMMA.64x128x16.F32.BF16'
for arch in 75 80 86 89 90a 120f; do
    [ $arch = 75 ] && product=HMMA.1688.F32 || product=HMMA.16816.F32.BF16
    for unit in gemm_bf16 conv3x3_bf16 gemm_w4a16 attention attention_wide; do compile $unit $arch $product; done
    for unit in norm group_norm elementwise; do compile $unit $arch 'FFMA'; done
    compile constants $arch 'F2F'
done
for unit in gemm_bf16 conv3x3_bf16; do compile $unit 90a 'HGMMA.64x128x16.F32.BF16'; done
rm -f "$out/sass"

# program NAME FLAGS...
program() {
    name=$1
    shift
    "$nvcc" -std=c++17 -O3 "$@" -I"$kernels" -I"$here" -L"$cuda/lib" -o "$out/$name" "$here/main.cu" >"$out/log" 2>&1 ||
        { cat "$out/log"; fail "$name does not compile"; }
    grep -v C7519 "$out/log" || true
    ls -l "$out/$name"
}

program kernels -lineinfo -gencode arch=compute_90a,code=sm_90a
program kernels-sm75 -DSVDQ_HOST_ARCH=750 -gencode arch=compute_75,code=compute_75
rm -f "$out/log"
