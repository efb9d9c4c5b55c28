#!/bin/sh
# Checks every GPU kernel against float64 and prints the tables of docs/benchmarks, in one command:
#   scripts/gpu/bench_gpu.sh [FOLDER]                    on a machine with TVM's compiler and a GPU
#   scripts/gpu/bench_gpu.sh FOLDER build                compile only, anywhere: FOLDER can then be carried to a GPU machine,
#   scripts/gpu/bench_gpu.sh FOLDER run                  which needs torch, numpy, TVM's runtime libraries and tvm_ffi alone
# Compiling takes 20 minutes on two cores, running under three minutes on an H100.
set -eu
root=$(cd "$(dirname "$(readlink -f "$0")")/../.." && pwd)
folder=${1:-$root/runs/gpu_kit}
what=${2:-all}
arch=${ARCH:-sm_90}
case $folder in /*) ;; *) folder=$PWD/$folder ;; esac
cd "$root"

case $what in
all | build)
    python3 scripts/gpu/gpu_kit.py "$folder/checks" --arch "$arch" --batches
    python3 scripts/gpu/gpu_kit.py "$folder/batch64" --arch "$arch" --no_checks --batches 64 --precisions f16 --configs 4
    python3 scripts/gpu/gpu_kit.py "$folder/batch64-tf32" --arch "$arch" --no_checks --batches 64 --precisions tf32 --configs 1
    python3 scripts/gpu/gpu_kit.py "$folder/batch8" --arch "$arch" --no_checks --batches 8 --precisions f16 --configs 2 \
        --densities 0.25
    python3 scripts/gpu/gpu_kit.py "$folder/batch1" --arch "$arch" --no_checks --batches 1 --precisions f16 --configs 2 \
        --densities 0.25
    ;;
run) ;;
*)
    echo "bench_gpu.sh: error: $what; expected build, run or all" >&2
    exit 2
    ;;
esac
case $what in
all | run)
    python3 scripts/gpu/gpu_bench.py "$folder/checks" "$folder/batch64" "$folder/batch64-tf32" "$folder/batch8" \
        "$folder/batch1" --out "$folder/results.json"
    ;;
esac
