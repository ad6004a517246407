"""all_gather_rope between processes: what every rank holds then, and that it is one graph."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests.ops.helpers import DTYPES, dtype_id, ints, normal, tables
from vidk import all_gather_rope, kv_cache_write, reference, rope_3d, unpack_kv_write
from vidk.cli.report import GraphCount

from .ranks import Ranks

HEIGHT, WIDTH, FRAMES, HEADS, DIM = 3, 5, 3, 2, 32
FRAME = HEIGHT * WIDTH
TOKENS = FRAMES * FRAME
every_layout = pytest.mark.parametrize("kind", ["contiguous", "slices"])


@functools.cache
def group_of(ranks: int) -> str:
    """Return the name of the group of the first ranks; every rank calls this."""
    group = dist.new_group(range(ranks))
    return group.group_name if dist.get_rank() < ranks else ""


def where() -> tuple[Any, ...]:
    return (ints(5, 63, 0), *tables(DIM, HEIGHT, WIDTH), HEIGHT, WIDTH)


def slice_of(ranks: int, kind: str) -> int | None:
    """Return the tokens of each frame that a rank holds: 15 that 2, 4 and 8 do not divide."""
    return -(-FRAME // ranks) if kind == "slices" else None


def shards(ranks: int, kind: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Return a block `[B, F * n, H, D]` and what each rank holds of it `[P, B, S_r, H, D]`."""
    block = normal(dtype, ranks, kind)(2, TOKENS, HEADS, DIM)
    c, padding = slice_of(ranks, kind), torch.nn.functional.pad
    if c is None:
        run = -(-TOKENS // ranks)
        return block, torch.stack(
            padding(block, (0, 0, 0, 0, 0, ranks * run - TOKENS)).split(run, 1)
        )
    frames = block.unflatten(1, (FRAMES, FRAME))
    parts = padding(frames, (0, 0, 0, 0, 0, ranks * c - FRAME)).split(c, 2)
    return block, torch.stack([part.flatten(1, 2) for part in parts])


def gathered(ranks: int, kind: str, dtype: torch.dtype) -> bool | None:
    """Return whether the buffer and a cache hold what one process computes of the block."""
    name, rank = group_of(ranks), dist.get_rank()
    if rank >= ranks:
        return None
    (block, x), c = shards(ranks, kind, dtype), slice_of(ranks, kind)
    with torch.inference_mode():
        out = torch.zeros_like(x)
    expected = torch.zeros_like(x)
    all_gather_rope(x[rank], *where(), out, rank, name, slice_tokens=c)
    reference.all_gather_rope(x[rank], *where(), expected, rank, name, slice_tokens=c)
    near = {"rtol": 0, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 2**-7, "atol": 1e-6}
    torch.testing.assert_close(out.clone(), expected, **near)
    caches = [torch.zeros(2, 4 * FRAME, HEADS, DIM, dtype=dtype) for _ in range(4)]
    slots = ints(3, 0, 1)
    unpack_kv_write(out, x, caches[0], caches[1], slots, FRAME, TOKENS, slice_tokens=c)
    kv_cache_write(rope_3d(block, *where()), block, caches[2], caches[3], slots, FRAME)
    return torch.equal(caches[0], caches[2]) and torch.equal(caches[1], caches[3])


def compiled(ranks: int, kind: str, backend: str) -> tuple[dict[str, Any], bool] | None:
    """Call a graph that holds the op again and again; return its counts, and if it is right."""
    name, rank = group_of(ranks), dist.get_rank()
    if rank >= ranks:
        return None
    (_, x), c = shards(ranks, kind), slice_of(ranks, kind)

    _, *grid = where()

    def step(x: Tensor, pos: Tensor, out: Tensor) -> Tensor:
        all_gather_rope(2 * x, pos, *grid, out, rank, name, slice_tokens=c)
        return out + 1

    torch._dynamo.reset()
    graphs = GraphCount()
    again = torch.compile(step, fullgraph=True, backend=backend)
    right, out = True, torch.zeros_like(x)
    for start in range(3):  # one buffer for all calls; positions are data
        pos = ints(start, start + 1, start + 2)
        result, expected = again(x[rank], pos, out), torch.zeros_like(x)
        step(x[rank], pos, expected)
        right &= torch.equal(out, expected) and torch.equal(result, expected + 1)
    return graphs.result(), right


def refusals() -> list[str] | None:
    """Return what a wrong rank and a wrong number of ranks raise; nothing is written then."""
    name, rank = group_of(3), dist.get_rank()
    if rank >= 3:
        return None
    _, x = shards(3, "contiguous")
    said = []
    for ranks, claimed in ((3, (rank + 1) % 3), (4, rank)):
        out = torch.zeros(ranks, *x.shape[1:])
        try:
            all_gather_rope(x[rank], *where(), out, claimed, name)
        except RuntimeError as error:
            said.append(str(error).replace(f"'{name}'", "'NAME'"))
        assert not out.any()
    return said


@every_layout
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
def test_every_rank_has_the_block(world: Ranks, ranks: int, dtype: torch.dtype, kind: str) -> None:
    """In buffers of inference mode, as models have them."""
    assert world.run(gathered, ranks, kind, dtype) == [True] * ranks


@pytest.mark.parametrize(
    ("ranks", "kind", "backend"),
    [(4, "contiguous", "aot_eager"), (3, "slices", "aot_eager"), (2, "slices", "inductor")],
)
def test_one_graph(world: Ranks, ranks: int, kind: str, backend: str) -> None:
    one = {"graphs": 1, "breaks": 0, "recompiles": []}
    assert world.run(compiled, ranks, kind, backend) == [(one, True)] * ranks


def test_another_rank_or_size_than_the_group_has(world: Ranks) -> None:
    for rank, said in enumerate(world.run(refusals)):
        text = f"vidk::all_gather_rope: group_name: got 'NAME', rank {rank} of 3 ranks, expected a "
        assert said == [
            text + f"process group in which this is rank {(rank + 1) % 3} of 3",
            text + f"process group in which this is rank {rank} of 4",
        ]
