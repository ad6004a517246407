#!/usr/bin/env bash
# Compiles every C++ file of the CPU object for aarch64, with warnings as errors. Nothing is linked:
# that needs a torch for aarch64.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
build=build-aarch64

if ! command -v aarch64-linux-gnu-g++ > /dev/null; then
  apt-get update -qq
  apt-get install -y -qq g++-aarch64-linux-gnu
fi
# Debian's Python.h asks for pyconfig.h in a folder named after the target.
version=$("$python" -c 'import sys; print(f"python{sys.version_info[0]}.{sys.version_info[1]}")')
mkdir -p "$build/include/aarch64-linux-gnu/$version"
cp "$("$python" -c 'import sysconfig; print(sysconfig.get_config_h_filename())')" \
  "$build/include/aarch64-linux-gnu/$version/"

for tool in cmake ninja; do
  command -v "$tool" > /dev/null || "$python" -m pip install -q "$tool"
done
cmake --fresh -G Ninja -S . -B "$build" \
  -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
  -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
  -DVIDK_BUILD_CUDA=OFF \
  -DVIDK_TORCH_DIR="$("$python" -c 'import torch; print(torch.__path__[0])')" \
  -DVIDK_PYTHON_INCLUDE="$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))');$PWD/$build/include"
cmake --build "$build" --target vidk_cpu_objects -j "${MAX_JOBS:-$(nproc)}"

objects=$(find "$build" -name '*.o' | wc -l)
echo "aarch64: $objects objects compiled"
[ "$objects" -gt 0 ]
