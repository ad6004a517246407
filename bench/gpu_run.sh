#!/usr/bin/env bash
# Checks and measures a built wheel on a machine with an NVIDIA GPU and a CUDA build of torch.
#
#   bench/gpu_run.sh OUT [WHEEL]      (WHEEL: the newest of dist/ by default)
#
# The wheel goes into a fresh virtual environment that sees the machine's own torch; nothing is
# downloaded. OUT receives env.txt, nvidia-smi.txt, tests.txt, tests.xml, bench.{json,txt} and
# end_to_end.{json,txt}. Every step runs even if an earlier one fails; the exit code tells.
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

venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
python3 -m venv "$venv" || exit 1
# --system-site-packages would miss the torch of a virtual environment that this runs in.
python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
  >"$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/outer.pth"
"$venv/bin/pip" install --no-deps --no-index --force-reinstall "$wheel" || exit 1
export PATH="$venv/bin:$PATH"

failed=0
step() { # step NAME COMMAND...: shows the output and keeps it in OUT/NAME.txt
  local name=$1
  shift
  echo "== $*"
  "$@" 2>&1 | tee "$out/$name.txt"
  local status=${PIPESTATUS[0]}
  if [ "$status" -ne 0 ]; then
    echo "gpu_run: $name: exit code $status" | tee -a "$out/$name.txt"
    failed=1
  fi
}

step nvidia-smi nvidia-smi -q
step env vidk env
if [ -d tests/gpu ]; then
  step tests python -m pytest tests/gpu -q --junitxml "$out/tests.xml"
else
  echo "gpu_run: tests/gpu does not exist: no op was tested on the GPU" | tee "$out/tests.txt"
  failed=1
fi
step bench vidk bench --device cuda --json "$out/bench.json"
step end_to_end vidk bench --device cuda --end-to-end --json "$out/end_to_end.json"
exit "$failed"
