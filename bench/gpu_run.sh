#!/usr/bin/env bash
# Checks and measures a built wheel on a machine with an NVIDIA GPU and a CUDA build of torch, in one
# run of less than 10 minutes: what is worth most comes first, and every step has an end.
#
#   bench/gpu_run.sh OUT [WHEEL]      (WHEEL: the newest of dist/ by default)
#
# Nothing is downloaded. The wheel goes into a fresh virtual environment that sees the machine's own
# torch; packages that the machine lacks come from dist/wheels, if there is one (bench/README.md).
# OUT receives gpu_run.log, with the output of every step, and what the steps below name. A step that
# fails, or that no time was left for, does not stop the others; it is named at the end, and the exit
# code tells. VIDK_GPU_BUDGET (seconds, 570) bounds the whole run.
set -uo pipefail

out=${1:?usage: bench/gpu_run.sh OUT [WHEEL]}
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 1
wheel=${2:-$(ls -t dist/vidk-*.whl 2>/dev/null | head -n 1)}
if [ ! -f "$wheel" ]; then
  echo "gpu_run: got no wheel, expected one in dist/ (make it with: pip wheel . --no-deps -w dist)" >&2
  exit 2
fi
wheel=$(realpath "$wheel")
cd "$(dirname "$0")/.." || exit 1
budget=${VIDK_GPU_BUDGET:-570}
log=$out/gpu_run.log
: >"$log"
failed=()

say() { echo "gpu_run: [${SECONDS}s] $*" | tee -a "$log"; }

step() { # step NAME SECONDS COMMAND...: its output goes to the log; an interrupt lets it report
  local name=$1 limit=$2 left=$((budget - SECONDS))
  shift 2
  if [ "$left" -lt 10 ]; then
    say "$name: NOT RUN, no time left"
    failed+=("$name")
    return
  fi
  [ "$limit" -le "$left" ] || limit=$left
  say "$name: $* (at most ${limit}s)"
  timeout -s INT -k 10 "$limit" "$@" 2>&1 | tee -a "$log"
  local status=${PIPESTATUS[0]}
  if [ "$status" -ne 0 ]; then
    say "$name: FAILED, exit code $status"
    failed+=("$name")
  fi
}

venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
python3 -m venv --without-pip "$venv" || exit 1
python=$venv/bin/python
# --system-site-packages would miss the torch of a virtual environment that this runs in.
python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
  >"$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/outer.pth"
install() { python3 -m pip --python "$python" install -q --no-deps --no-index "$@"; }
install --force-reinstall "$wheel" 2>&1 | tee -a "$log"
"$python" -c 'import torch, numpy' || { say "torch or numpy is missing"; exit 1; }
for module in tqdm safetensors pytest expecttest pybind11 ml_dtypes; do
  "$python" -c "import $module" 2>/dev/null && continue
  say "$module is missing here: looking for it in dist/wheels"
  [ "$module" = pytest ] && packages=(pytest iniconfig pluggy packaging pygments) || packages=("$module")
  install --find-links dist/wheels "${packages[@]}" 2>&1 | tee -a "$log" ||
    failed+=("$module")
done
# Not from the source tree: the wheel is what is measured.
"$python" -c 'import sys, vidk; sys.exit(not vidk.__file__.startswith(sys.prefix))' ||
  { say "the wheel could not be imported"; exit 1; }
export PATH="$venv/bin:$PATH" PYTHONUNBUFFERED=1 MAX_JOBS=${MAX_JOBS:-$(nproc)}
test=("$python" -m pytest -q -p no:cacheprovider --durations 5 --junitxml)

step nvidia-smi 20 nvidia-smi
step env 40 "$python" -m vidk env
# The simulator is compiled while the tests below use the GPU.
timeout 150 "$python" -c 'import tests.ptxsim' >"$venv/simulator.txt" 2>&1 &
simulator=$!
step tests 150 "${test[@]}" "$out/tests.xml" tests/gpu --ignore tests/gpu/test_simulator.py \
  --ignore tests/gpu/test_sanitizer.py --ignore tests/gpu/test_rollout.py \
  --ignore tests/gpu/test_all_gather.py
wait "$simulator" || { tee -a "$log" <"$venv/simulator.txt"; say "the simulator was not built"; }
step ops 90 "$python" -m vidk.bench.gpu_ops --json "$out/ops.json"
step model 200 "$python" -m vidk.bench.gpu_model --json "$out/model.json"
step rollout 100 "${test[@]}" "$out/rollout.xml" tests/gpu/test_rollout.py
# Kernels that wait for each other: alone, as one that waits for ever takes its process with it.
step ranks 60 "${test[@]}" "$out/ranks.xml" tests/gpu/test_all_gather.py
step simulator 120 "${test[@]}" "$out/simulator.xml" tests/gpu/test_simulator.py
VIDK_SANITIZER_TIMEOUT=60 step sanitizer 120 "${test[@]}" "$out/sanitizer.xml" \
  tests/gpu/test_sanitizer.py
step bench 90 "$python" -m vidk bench --device cuda --quick --json "$out/bench.json"

if [ "${#failed[@]}" -ne 0 ]; then
  say "FAILED: ${failed[*]}"
  exit 1
fi
say "all steps passed"
