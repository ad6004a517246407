"""Compile the TileLang kernels to PTX, which is committed: `python kernels/export.py [--check]`.

It needs TileLang (see VERSION) and nvcc, but no GPU. What it writes:

- `ptx/<kernel>.sm_<target>.ptx`, one entry for each variant; the build assembles them.
- `ptx/launch.json`, what a launcher must know of each entry.
- `csrc/attention/attention_tiles.h`, the part of it that the launch plan of attention uses.
"""

# mypy: ignore-errors
from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

VERSION = "0.1.15"  # another one writes other text
HERE = Path(__file__).resolve().parent
PTX = HERE / "ptx"
TILES = HERE.parent / "csrc" / "attention" / "attention_tiles.h"
DTYPES = {"bf16": "bfloat16", "f16": "float16"}
HEAD_DIM = 128
# The oldest that knows every instruction used, so that older toolkits can assemble the text too.
PTX_VERSION = "8.6"
# -ftz: f32 results below 2^-126 become 0, which spares two instructions for each exponential.
NVCC_FLAGS = ["-std=c++20", "-O3", "-ftz=true", "-w"]


# Kernels that keep to their tensors by themselves; TileLang guards every access of the others.
UNGUARDED = {"kv_cache_write"}


def variants():
    """Yield (file, architecture, entry, TileLang function, tile) of every entry."""
    import attention_sm80
    import attention_sm90
    import kv_cache_write

    for module, family in ((attention_sm80, "sm80"), (attention_sm90, "sm90")):
        tile = {"rows": module.ROWS, "keys": module.KEYS}
        for short, dtype in DTYPES.items():
            entry = f"vidk_attention_{family}_{short}_d{HEAD_DIM}"
            yield "attention", module.ARCH, entry, module.attention(dtype, HEAD_DIM), tile
    for width in (16, 8, 4, 2):
        function = kv_cache_write.kv_cache_write(width)
        tile = {"vector_bytes": width}
        yield (
            "kv_cache_write",
            kv_cache_write.ARCH,
            f"vidk_kv_cache_write_{width}B",
            function,
            tile,
        )


def export() -> dict[Path, str]:
    """Return the text of every file."""
    ptx = defaultdict(list)
    launches = {}
    for kernel, arch, entry, function, tile in variants():
        source, launch = lower(function, arch, kernel not in UNGUARDED)
        file = f"{kernel}.{arch}.ptx"
        names = [param["name"] for param in launch["params"]]
        header, body = clean(compile_ptx(source, arch), entry, names)
        if not ptx[file]:
            ptx[file].append(header)
        ptx[file].append(body)
        launches[entry] = {"file": file, "tile": tile, **launch}
    files = {PTX / file: "\n".join(parts) for file, parts in ptx.items()}
    files[PTX / "launch.json"] = json_of(launches)
    files[TILES] = tiles_header(launches)
    return files


def lower(function, arch: str, guarded: bool):
    """Return the CUDA C++ that TileLang makes of a function, and how its host code launches it."""
    import tilelang
    from tilelang import tvm

    target = {"kind": "cuda", "arch": arch}
    config = {"tl.disable_safe_memory_legalize": not guarded}
    with tvm.target.Target(target), tvm.transform.PassContext(opt_level=3, config=config):
        artifact = tilelang.lower(function, target=target)
    source, host = artifact.kernel_source, str(artifact.host_mod)
    signature = re.search(r"__launch_bounds__\((\d+), 1\) main_kernel\((.*)\) {", source)
    threads = int(signature[1])
    maps = dict(
        map(
            parse_map,
            re.findall(r'call_packed\("__tvm_tensormap_create_tiled", (.*)\)$', host, re.M),
        )
    )
    params = [parse_param(text, maps) for text in signature[2].split(", ")]

    # The call: parameters, grid, block, dynamic shared bytes if there are any.
    call = split_arguments(re.search(r'call_packed\("main_kernel", (.*)\)$', host, re.M)[1])
    launch = call[len(params) :]
    shared = launch[launch.index(str(threads)) + 3 :]
    return source, {
        "threads": threads,
        "shared_bytes": int(shared[0]) if shared else 0,
        "params": params,
    }


def split_arguments(text: str) -> list[str]:
    """Split at the commas outside of brackets."""
    parts, depth, start = [], 0, 0
    for at, char in enumerate(text):
        depth += (char in "([") - (char in ")]")
        if char == "," and depth == 0:
            parts.append(text[start:at].strip())
            start = at + 1
    return [*parts, text[start:].strip()]


def parse_map(call: str) -> tuple[str, dict]:
    """Read the arguments of the call that encodes a map; cuTensorMapEncodeTiled has the same."""
    name, dtype, rank, _base, *rest = split_arguments(call)
    rank = int(rank)
    dims, _strides, box, steps, tail = (
        rest[:rank],
        rest[rank : 2 * rank],
        rest[2 * rank : 3 * rank],
        rest[3 * rank : 4 * rank],
        rest[4 * rank :],
    )
    # 6 and 9 are f16 and bf16; the tail is interleave, swizzle, L2 promotion and fill.
    if dtype not in ("6", "9") or set(steps) != {"1"} or tail[0] != "0" or tail[3] != "0":
        raise ValueError(f"no launcher knows such a tensor map: {call}")
    return name.removesuffix("_desc"), {
        "rank": rank,
        "dims": dims,
        "box": [int(size) for size in box],
        "element_bytes": 2,
        "swizzle_bytes": {"0": 0, "1": 32, "2": 64, "3": 128}[tail[1]],
    }


def parse_param(text: str, maps: dict) -> dict:
    """Read one parameter of the generated kernel."""
    name = text.split()[-1]
    if "CUtensorMap" in text:
        name = name.removesuffix("_desc")
        return {"name": name, "type": "tensor_map", **maps[name]}
    if "*" in text:
        return {"name": name, "type": "pointer"}
    return {"name": name, "type": {"int": "i32", "int64_t": "i64", "float": "f32"}[text.split()[0]]}


def compile_ptx(source: str, arch: str) -> str:
    """Compile generated CUDA C++."""
    from tilelang.env import CUTLASS_INCLUDE_DIR, TILELANG_TEMPLATE_PATH

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cu"
        path.write_text(source)
        command = [os.environ.get("NVCC", "nvcc"), *NVCC_FLAGS, "-ptx", f"-arch={arch}"]
        command += [f"-I{TILELANG_TEMPLATE_PATH}", f"-I{CUTLASS_INCLUDE_DIR}"]
        done = subprocess.run(
            [*command, path, "-o", path.with_suffix(".ptx")], stderr=subprocess.PIPE, text=True
        )
        if done.returncode:
            raise RuntimeError(f"{shlex.join(map(str, command))}:\n{done.stderr}")
        return path.with_suffix(".ptx").read_text()


def clean(ptx: str, entry: str, names: list[str]) -> tuple[str, str]:
    """Split PTX into header and function, with plain names and without comments."""
    ptx = re.sub(r"//.*", "", ptx)
    ptx = re.sub(r"^\.version .*", f".version {PTX_VERSION}", ptx, flags=re.M)
    ptx = re.sub(r"^\.global .*_INTERNAL_.*;$", "", ptx, flags=re.M)  # of unused library headers
    ptx = re.sub(r"_ZZ11main_kernelE\d+(\w+)_mem\b", r"\1", ptx)
    ptx = re.sub(r"\bmain_kernel_param_(\d+)", lambda match: f"arg_{names[int(match[1])]}", ptx)
    ptx = ptx.replace("main_kernel", entry).replace("buf_dyn_shmem", "shared")
    lines = (re.sub(r"\s+", " ", line).strip() for line in ptx.splitlines())
    header, body = "\n".join(filter(None, lines)).split(".visible", 1)
    return header, f".visible{body}\n"


def json_of(launches: dict) -> str:
    """Write one line for each parameter: short enough to read, long enough to compare."""
    entries = []
    for entry, launch in launches.items():
        params = ",\n   ".join(json.dumps(param) for param in launch["params"])
        fields = [f'"{key}": {json.dumps(launch[key])}' for key in launch if key != "params"]
        fields.append(f'"params": [\n   {params}]')
        entries.append(f'"{entry}": {{\n  ' + ",\n  ".join(fields) + "}")
    return "{\n " + ",\n ".join(entries) + "\n}\n"


def tiles_header(launches: dict) -> str:
    """Write the constants of the attention kernels for the launch plan."""
    rows = []
    for family in ("sm80", "sm90"):
        launch = launches[f"vidk_attention_{family}_bf16_d{HEAD_DIM}"]
        tile = launch["tile"]
        values = (tile["rows"], tile["keys"], launch["threads"], launch["shared_bytes"])
        rows.append(
            f"constexpr AttentionTile kAttention{family.title()} = "
            f"{{{', '.join(map(str, values))}}};"
        )
    constants = "\n".join(rows)
    return f"""// Written by kernels/export.py together with the PTX that these numbers describe.
#pragma once

#include <cstdint>

namespace vidk {{

struct AttentionTile {{
  uint32_t rows;  // of q in one thread block
  uint32_t keys;  // loaded at a time
  uint32_t threads;
  uint32_t shared_bytes;
}};

constexpr uint32_t kAttentionHeadDim = {HEAD_DIM};
{constants}

}}  // namespace vidk
"""


def main() -> int:
    """Write the files, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="compare with the files, write nothing"
    )
    args = parser.parse_args()
    sys.path.insert(0, str(HERE))
    import tilelang

    if tilelang.__version__.split("+")[0] != VERSION:
        parser.error(f"tilelang {tilelang.__version__} is installed, expected {VERSION}")
    files = export()
    stale = [path for path, text in files.items() if not path.exists() or path.read_text() != text]
    stale += set(PTX.glob("*")) - files.keys()
    for path in stale:
        print(path.relative_to(HERE.parent), "differs" if args.check else "written")
        if not args.check:
            path.parent.mkdir(exist_ok=True)
            path.write_text(files[path]) if path in files else path.unlink()
    return 1 if args.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
