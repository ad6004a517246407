#!/usr/bin/env bash
# Proves what the wheel promises: any Python >= 3.10, any torch >= 2.11 with or without CUDA, and no
# library that such a machine may lack.
#
#   .ci/audit.sh WHEEL
set -euo pipefail
wheel=$(realpath "$1")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"${PYTHON:-python3}" -m venv "$work/tools"
"$work/tools/bin/pip" install -q abi3audit==0.0.26 torch-abi-audit==0.3.0
"${PYTHON:-python3}" -m zipfile -e "$wheel" "$work/site"

failed=0
complain() {
  echo "audit: $*" >&2
  failed=1
}

case $wheel in
  *-cp310-abi3-*) ;;
  *) complain "$(basename "$wheel") is not tagged cp310-abi3" ;;
esac
"$work/tools/bin/abi3audit" --strict "$wheel" || complain "abi3audit found a violation"
"$work/tools/bin/torch-abi-audit" --check both -v "$work/site/vidk" ||
  complain "torch-abi-audit found a violation"

# no_newer OBJECT SYMBOL_SET LIMIT: the object asks for no version of the set above the limit.
no_newer() {
  local newest
  newest=$(readelf --version-info "$1" | grep -oE "Name: $2_[0-9.]+" | sed "s/.*_//" | sort -Vu |
    tail -1)
  echo "$(basename "$1"): $2 ${newest:-none} (limit $3)"
  [ "$(printf '%s\n' "${newest:-0}" "$3" | sort -V | tail -1)" = "$3" ] ||
    complain "$(basename "$1") needs $2 $newest, more than $3"
}

# may_need OBJECT PATTERN: every library the object names matches.
may_need() {
  local extra
  extra=$(readelf -d "$1" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' | grep -vE "^($2)$" || true)
  [ -z "$extra" ] || complain "$(basename "$1") needs $extra"
  if readelf -d "$1" | grep -qE "RPATH|RUNPATH"; then
    complain "$(basename "$1") has an RPATH"
  fi
}

system='lib(c|m|gcc_s|stdc\+\+|dl|rt|pthread)\.so\.[0-9]+|ld-linux-.*\.so\.[0-9]+'
cpu=$work/site/vidk/_C.abi3.so
may_need "$cpu" "libtorch_cpu\.so|$system"
# glibc 2.28 and the libstdc++ of GCC 8: what torch's own wheels need.
no_newer "$cpu" GLIBC 2.28
no_newer "$cpu" GLIBCXX 3.4.25
no_newer "$cpu" CXXABI 1.3.11

cuda=$work/site/vidk/_cuda.so
if [ -f "$cuda" ]; then
  # No libcudart and no libcuda: the runtime is linked in and finds the driver itself. The glibc
  # limit is higher because that runtime, linked on a newer system, takes the newer symbols there.
  may_need "$cuda" "libtorch\.so|libtorch_cpu\.so|$system"
  readelf -d "$cuda" | grep -q 'NEEDED.*\[libtorch\.so\]' ||
    complain "_cuda.so does not name libtorch.so, which brings libtorch_cuda into scope"
  no_newer "$cuda" GLIBC 2.34
  no_newer "$cuda" GLIBCXX 3.4.30
fi
if strings -a "$work"/site/vidk/*.so | grep -E "^/(home|root|tmp|work|github)/"; then
  complain "an object holds a path of the machine that built it"
fi

[ "$failed" = 0 ] && echo "audit: $(basename "$wheel") passed"
exit "$failed"
