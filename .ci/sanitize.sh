#!/usr/bin/env bash
# Runs the op tests on a build of the CPU object with the address and the undefined-behaviour
# sanitizer. The first finding ends the process, and with it this script. Further arguments go to
# pytest, in place of tests/ops.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
build=build-sanitize

for tool in cmake ninja; do
  command -v "$tool" > /dev/null || "$python" -m pip install -q "$tool"
done
cmake --fresh -G Ninja -S . -B "$build" \
  -DVIDK_SANITIZE=ON -DCMAKE_BUILD_TYPE=RelWithDebInfo \
  -DVIDK_TORCH_DIR="$("$python" -c 'import torch; print(torch.__path__[0])')" \
  -DVIDK_PYTHON_INCLUDE="$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')"
cmake --build "$build" -j "${MAX_JOBS:-$(nproc)}"
rm -rf "$build/site"
mkdir -p "$build/site"
cp -r python/vidk "$build/site/"
rm -f "$build"/site/vidk/*.so
cmake --install "$build" --prefix "$build/site/vidk"

# Python is not built with the sanitizer, so its library must come first; libstdc++ with it, or it
# would not see exceptions. Leaks are not looked for: Python leaves its memory to the system.
export LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libstdc++.so)"
export ASAN_OPTIONS=detect_leaks=0:abort_on_error=1
export UBSAN_OPTIONS=print_stacktrace=1
export PYTHONPATH=$PWD/$build/site
"$python" -c 'import vidk; assert vidk.build_info()["sanitize"], vidk.__file__'
# --capture=sys leaves the file descriptors alone: a report must not end in pytest's hands.
"$python" -m pytest -q -p no:cacheprovider --capture=sys "${@:-tests/ops}"
