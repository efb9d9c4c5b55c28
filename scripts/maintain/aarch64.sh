#!/bin/sh
# Kernels and networks for ARM under emulation, against numpy and against ONNX Runtime under the same emulation.
#   scripts/maintain/aarch64.sh [CACHE] [pytest's words]      CACHE: a folder for ONNX Runtime's aarch64 library
# Needs qemu-user and g++-aarch64-linux-gnu (Debian's packages), pip, and this checkout's environment. Some minutes.
set -eu
cd "$(dirname "$0")/../.."
cache=${1:-runs/aarch64}
[ $# -eq 0 ] || shift
for tool in qemu-aarch64 aarch64-linux-gnu-g++; do
  command -v "$tool" >/dev/null || {
    echo "$tool is not installed: apt-get install qemu-user g++-aarch64-linux-gnu" >&2
    exit 2
  }
done
if ! ls "$cache"/libonnxruntime.so.* >/dev/null 2>&1; then
  mkdir -p "$cache"
  version=$(python -c 'from importlib.metadata import version; print(version("onnxruntime"))')
  python -m pip download --quiet --no-deps --only-binary=:all: --platform manylinux_2_28_aarch64 --dest "$cache" \
    "onnxruntime==$version"
  python -m zipfile -e "$cache"/onnxruntime-*.whl "$cache/wheel"
  mv "$cache"/wheel/onnxruntime/capi/libonnxruntime.so.* "$cache"/
  rm -rf "$cache"/wheel "$cache"/onnxruntime-*.whl
fi
KERF_AARCH64_ONNXRUNTIME=$(ls "$PWD/$cache"/libonnxruntime.so.* 2>/dev/null || ls "$cache"/libonnxruntime.so.*)
export KERF_AARCH64_ONNXRUNTIME
exec python -m pytest -m slow tests/emulation "$@"
