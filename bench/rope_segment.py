"""Time the RoPE segment of sequence-parallel attention on gloo processes of this machine.

`python bench/rope_segment.py [--ranks 4 8] [--models 1.3b 14b] [--rounds 3] [--json FILE]`

From a rank's tokens of q and k, projected and normalised, to its heads of all tokens, rotated:

- *gather, complex128*: q and k are gathered on every rank, all is rotated there as the public
  code does, and each rank cuts its heads out;
- *gather, rope_3d*: the same with this package's RoPE, which is what a good user would write;
- *all_gather_rope*: each rank rotates its own tokens and gets all heads of all tokens: what the
  gather pattern needs for keys, against the two above;
- *local*: each rank rotates its own tokens, packs them and exchanges tokens for heads.

The rotation alone is timed too, without any exchange. Forms run in turn, all ranks together; a
round's time is the slowest rank's. Ranks share the machine's cores, one thread each, so that times
are those of all ranks' work and not those of P machines.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import os
import statistics
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import vidk
from vidk.bench.machine import cpu_model
from vidk.models import CONFIGS
from vidk.parallel import Exchange, choose_sharding, make_exchange
from vidk.reference.rope import rope_3d_public
from vidk.rope import band_pairs, freq_table

GRID = (3, 30, 52)  # one block at 480 x 832
FRAME = GRID[1] * GRID[2]


def public_table(head_dim: int) -> Tensor:
    """Return `[positions, D / 2]` complex128, the three bands side by side."""
    bands = [band_pairs(head_dim)[0], *[band_pairs(head_dim)[1]] * 2]
    angles = [
        torch.arange(64.0, dtype=torch.float64)[:, None]
        * 10000.0 ** (-torch.arange(n, dtype=torch.float64) / n)
        for n in bands
    ]
    return torch.polar(torch.ones_like(torch.cat(angles, 1)), torch.cat(angles, 1))


def exchange_rotated(part: Exchange, x: Tensor) -> Tensor:
    """Return all tokens of the rank's heads, of the rank's rotated tokens `[B, S_r, H, D]`."""
    sharding = part.sharding
    packed = x.unflatten(2, (sharding.head_ranks, -1)).permute(2, 0, 1, 3, 4).contiguous()
    return part._received(part._to_tokens(part._to_heads(packed)))


def forms(part: Exchange, q: Tensor, k: Tensor) -> dict[str, Callable[[], Any]]:
    """Return what is timed, for a rank's `[1, S_r, H, D]`."""
    dim, ranks, rank = q.size(3), part.sharding.ranks, part.layout.rank
    pairs = band_pairs(dim)
    time_freqs = freq_table(torch.arange(64), pairs[0])
    space_freqs = freq_table(torch.arange(max(GRID[1:])), pairs[1])
    pos = torch.arange(6, 6 + GRID[0], dtype=torch.int32)
    table = public_table(dim)
    heads = part.local_heads
    own = slice(
        rank % part.sharding.head_ranks * heads, (rank % part.sharding.head_ranks + 1) * heads
    )

    def gather(x: Tensor) -> Tensor:
        whole = torch.ops._c10d_functional.all_gather_into_tensor(
            x.transpose(0, 1), ranks, part.world
        )
        whole = torch.ops._c10d_functional.wait_tensor(whole)
        return whole.transpose(0, 1)[:, : GRID[0] * FRAME]

    def public(x: Tensor) -> Tensor:
        return rope_3d_public(x, table, 6, GRID)

    def ours(x: Tensor) -> Tensor:
        return vidk.rope_3d(x, pos, time_freqs, space_freqs, *GRID[1:])

    def local(x: Tensor) -> Tensor:
        offset = part.layout.token_offset(GRID[0])
        return vidk.rope_3d(x, pos, time_freqs, space_freqs, *GRID[1:], token_offset=offset)

    buffer = torch.empty(ranks, *q.shape, dtype=q.dtype)

    def fused(x: Tensor) -> Tensor:
        tables = (time_freqs, space_freqs, *GRID[1:])
        vidk.all_gather_rope(x, pos, *tables, buffer, rank, part.world)
        return buffer

    whole = torch.randn(1, GRID[0] * FRAME, *q.shape[2:]).to(q.dtype)
    return {
        "gather, complex128": lambda: [public(gather(x))[:, :, own].contiguous() for x in (q, k)],
        "gather, rope_3d": lambda: [ours(gather(x))[:, :, own].contiguous() for x in (q, k)],
        "all_gather_rope": lambda: [fused(x) for x in (q, k)],
        "local": lambda: [exchange_rotated(part, local(x)) for x in (q, k)],
        "rotation of all tokens, complex128": lambda: [public(whole) for _ in (q, k)],
        "rotation of all tokens, rope_3d": lambda: [ours(whole) for _ in (q, k)],
        "rotation of own tokens, rope_3d": lambda: [local(x) for x in (q, k)],
    }


def rank_main(rank: int, ranks: int, port: int, models: list[str], rounds: int, queue: Any) -> None:
    """Time every form on one rank; rank 0 hands over the rounds of all."""
    torch.set_num_threads(1)
    store = dist.TCPStore("localhost", port)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=300)
    )
    for model in models:
        config = CONFIGS[f"wan-{model}"]
        sharding = choose_sharding(
            config, ranks=ranks, frame_tokens=FRAME, frames=GRID[0], itemsize=2, kind="contiguous"
        )
        part = make_exchange(sharding)
        assert part is not None
        shape = (1, part.layout.shard_tokens(GRID[0]), config.num_heads, config.head_dim)
        torch.manual_seed(rank)
        q, k = (torch.randn(shape).bfloat16() for _ in range(2))
        calls = forms(part, q, k)
        times: dict[str, list[float]] = {name: [] for name in calls}
        for i in range(rounds + 1):  # the first is not counted
            for name, call in calls.items():
                dist.barrier()
                begin = time.perf_counter()
                call()
                spent = torch.tensor([time.perf_counter() - begin])
                dist.all_reduce(spent, dist.ReduceOp.MAX)
                if i:
                    times[name].append(spent.item())
        if rank == 0:
            queue.put((model, str(sharding), times))
    dist.destroy_process_group()


def measure(ranks: int, models: list[str], rounds: int) -> list[dict[str, Any]]:
    """Run the ranks and return one record a model."""
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    context = mp.get_context("spawn")
    queue = context.Queue()
    args = (ranks, store.port, models, rounds, queue)
    processes = [context.Process(target=rank_main, args=(r, *args)) for r in range(ranks)]
    for process in processes:
        process.start()
    found = [queue.get(timeout=900) for _ in models]
    for process in processes:
        process.join()
    return [{"model": m, "ranks": ranks, "sharding": s, "seconds": times} for m, s, times in found]


def lines(record: dict[str, Any]) -> list[str]:
    """Return a record as text; ratios are medians over rounds."""
    seconds = record["seconds"]
    out = [f"{record['model']}: {record['sharding']}"]
    for name, values in seconds.items():
        reference = seconds["rotation of own tokens, rope_3d" if "rotation" in name else "local"]
        ratio = statistics.median(a / b for a, b in zip(values, reference, strict=True))
        out.append(
            f"  {name:36}{1e3 * statistics.median(values):9.1f} ms "
            f"({1e3 * min(values):.1f} .. {1e3 * max(values):.1f}) {ratio:7.2f}x"
        )
    return out


def main() -> None:
    """Measure, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--models", nargs="+", default=["1.3b", "14b"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json")
    options = parser.parse_args()
    before = os.getloadavg()[0]
    records = [r for n in options.ranks for r in measure(n, options.models, options.rounds)]
    machine = (
        f"{cpu_model()}, {os.cpu_count()} cores shared by all ranks, torch {torch.__version__}, "
        f"bfloat16; load average {before:.1f} before, {os.getloadavg()[0]:.1f} after"
    )
    print("\n".join([machine, *(line for record in records for line in lines(record))]))
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"machine": machine, "records": records}, file, indent=1)


if __name__ == "__main__":
    main()
