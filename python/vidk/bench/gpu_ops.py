"""Kernels against the device's own limits: `python -m vidk.bench.gpu_ops --json OUT`.

Ops that are bound by memory against a copy of as many bytes, attention against every back end of
torch's `scaled_dot_product_attention`, all by `device_clock`.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from vidk.bench.cases import SHAPES, Call
from vidk.bench.device_clock import GraphClock, calls_in_graph, graph_seconds
from vidk.bench.machine import copy_call, environment
from vidk.bench.report import align, check_writable, number, write_json
from vidk.bench.timer import Stat, Thunk
from vidk.ops.attention import attention
from vidk.ops.registry import OPS, BlockShape

SCHEMA = 1
MEMORY_BOUND = (
    "rope_3d",
    "kv_cache_write",
    "qk_norm_rope_kv_write",
    "qk_norm_rope_pack",
    "unpack_kv_write",
)
COPY_BYTES = 2**32
QUERIES, HEADS, KEYS, HEAD_DIM = 4680, (12, 40), (4680, 18720, 32760), 128
FRAME_TOKENS = 1560  # a slot of FP4 keys ends in a tile of 24
BACKENDS = ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION")


def op_call(call: Call) -> Thunk:
    """Return the op on the arguments of a call."""
    return lambda: call.op.function(**call.args)


def memory_cases(
    dtype: torch.dtype, device: str, l2_bytes: int, clock: GraphClock
) -> Iterator[dict[str, Any]]:
    """Time each op and a copy of its bytes, at the sizes of the 1.3B and the 14B model."""
    names = ("1.3b-480p", "14b-480p") if device == "cuda" else ("tiny",)
    for shape in names:
        for op in MEMORY_BOUND:
            block = SHAPES[shape].block
            cost = OPS[op].cost(block, dtype)
            count = calls_in_graph(cost.bytes, l2_bytes)
            calls = [op_call(Call.sample(OPS[op], block, dtype, device)) for _ in range(count)]
            mine = clock(calls)
            copies = [copy_call(cost.bytes, dtype, device) for _ in range(count)]
            copy = clock(copies)
            yield {
                "op": op,
                "shape": shape,
                "dtype": str(dtype).removeprefix("torch."),
                "bytes": cost.bytes,
                "calls": count,
                "seconds": mine.to_json(),
                "copy_seconds": copy.to_json(),
                "bytes_per_s": cost.bytes / mine.median,
                "fraction_of_same_copy": copy.median / mine.median,
            }
            del calls, copies


def sdpa(q: Tensor, k: Tensor, v: Tensor, backend: str) -> Thunk:
    """Return the library's attention through one back end, on its own layout."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))

    def call() -> Tensor:
        with sdpa_kernel(getattr(SDPBackend, backend)):
            return F.scaled_dot_product_attention(q, k, v)

    return call


def attention_case(
    heads: int, queries: int, keys: int, dtype: torch.dtype, device: str, clock: GraphClock
) -> dict[str, Any]:
    """Time vidk's attention and every back end that takes the sizes."""
    generator = torch.Generator(device).manual_seed(0)

    def randn(tokens: int) -> Tensor:
        size = (1, tokens, heads, HEAD_DIM)
        return torch.randn(size, generator=generator, dtype=dtype, device=device)

    q, k, v = randn(queries), randn(keys), randn(keys)
    length = torch.tensor([keys], dtype=torch.int32, device=device)
    times: dict[str, Stat] = {"vidk": clock([lambda: attention(q, k, v, length)] * 2)}
    refused = {}
    for name in BACKENDS:
        try:
            times[name] = clock([sdpa(q, k, v, name)] * 2)
        except RuntimeError as error:
            refused[name] = str(error).splitlines()[0]
    flops = 4 * queries * keys * heads * HEAD_DIM
    others = {name: t.median for name, t in times.items() if name != "vidk"}
    best = min(others, key=lambda name: others[name]) if others else None
    return {
        "heads": heads,
        "queries": queries,
        "keys": keys,
        "flops": flops,
        "seconds": {name: t.to_json() for name, t in times.items()},
        "flops_per_s": {name: flops / t.median for name, t in times.items()},
        "refused": refused,
        "best": best,
        "speedup_over_best": others[best] / times["vidk"].median if best else None,
    }


def fp4_attention_case(
    heads: int, queries: int, keys: int, dtype: torch.dtype, device: str, clock: GraphClock
) -> dict[str, Any]:
    """Time attention on FP4 keys, under the default recipe, and on as many keys in 16 bits."""
    frame = BlockShape(1, 1, math.gcd(queries, keys, FRAME_TOKENS), heads, HEAD_DIM)
    n = keys // frame.width
    shape = replace(frame, frames=queries // frame.width, cache_frames=n, kv_frames=n)
    seconds = {}
    for name in ("fp4_attention", "attention"):
        call = Call.sample(OPS[name], shape, dtype, device)
        seconds[name] = clock([op_call(call)] * 2)
    return {
        "heads": heads,
        "queries": queries,
        "keys": keys,
        "seconds": {name: t.to_json() for name, t in seconds.items()},
        "speed_of_attention": seconds["attention"].median / seconds["fp4_attention"].median,
    }


def run(device: str, l2_bytes: int, clock: GraphClock, *, tiny: bool = False) -> dict[str, Any]:
    """Return the document; `tiny` sizes are for a machine that only checks this code."""
    dtype = torch.bfloat16
    large = 2**20 if tiny else COPY_BYTES
    copy = clock([copy_call(large, dtype, device)])
    sizes = [(2, 9, 20)] if tiny else [(h, QUERIES, n) for h in HEADS for n in KEYS]
    memory = list(memory_cases(dtype, device, l2_bytes, clock))
    bandwidth = large / copy.median
    for case in memory:
        case["fraction_of_copy_bandwidth"] = case["bytes_per_s"] / bandwidth
    return {
        "schema": SCHEMA,
        "environment": environment(device),
        "copy_bytes_per_s": bandwidth,
        "memory": memory,
        "attention": [attention_case(*size, dtype, device, clock) for size in sizes],
        "fp4_attention": [fp4_attention_case(*size, dtype, device, clock) for size in sizes],
    }


def table(document: dict[str, Any]) -> str:
    """Return the document for reading."""
    rows = [("op", "shape", "us", "GB/s", "of copy", "of same-size copy")]
    for c in document["memory"]:
        shares = (c["fraction_of_copy_bandwidth"], c["fraction_of_same_copy"])
        figures = (1e6 * c["seconds"]["median"], c["bytes_per_s"] / 1e9)
        cells = (*map(number, figures), *(f"{100 * x:.0f}%" for x in shares))
        rows.append((c["op"], c["shape"], *cells))
    parts = [
        f"copy: {number(document['copy_bytes_per_s'] / 1e9)} GB/s, read and written",
        align(rows),
    ]
    names = ("vidk", *BACKENDS)
    head = ("heads", "queries", "keys", *(f"{n} TFLOP/s" for n in names), "vidk over best")
    rates = [head]
    for a in document["attention"]:
        found = a["flops_per_s"]
        cells = tuple(number(found[n] / 1e12) if n in found else "-" for n in names)
        over = f"{a['speedup_over_best']:.2f}x {a['best']}" if a["best"] else "-"
        rates.append((*(str(a[n]) for n in ("heads", "queries", "keys")), *cells, over))
    parts.append(align(rates, text_columns=0))
    rates = [("heads", "queries", "keys", "FP4 us", "16-bit us", "FP4 over 16-bit")]
    for a in document["fp4_attention"]:
        times = (1e6 * a["seconds"][name]["median"] for name in ("fp4_attention", "attention"))
        sizes = (str(a[n]) for n in ("heads", "queries", "keys"))
        rates.append((*sizes, *map(number, times), f"{a['speed_of_attention']:.2f}x"))
    parts.append(align(rates, text_columns=0))
    reasons = {n: r for a in document["attention"] for n, r in a["refused"].items()}
    return "\n\n".join([*parts, *(f"{name} refused: {why}" for name, why in reasons.items())])


def command(run: Callable[[], dict[str, Any]], table: Callable[[dict[str, Any]], str]) -> int:
    """Run a benchmark of this folder as a program: a table, and JSON if asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", metavar="OUT", help="write all figures to a file")
    out = parser.parse_args().json
    if not torch.cuda.is_available():
        raise SystemExit("vidk bench: got no CUDA device, expected one")
    if out:
        check_writable(out)
    with torch.no_grad():
        document = run()
    print(table(document))
    if out:
        write_json(document, out)
    return 0


def main() -> int:
    """Measure this machine's GPU."""

    def measure() -> dict[str, Any]:
        l2_bytes = torch.cuda.get_device_properties(0).L2_cache_size
        return run("cuda", l2_bytes, graph_seconds)

    return command(measure, table)


if __name__ == "__main__":
    sys.exit(main())
