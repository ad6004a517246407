"""all_gather_rope on one GPU: P virtual ranks, a stream each, that store into each other's memory.

What needs several GPUs or processes, NCCL and symmetric memory between them, is not tested here.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests.ops.helpers import DTYPES, assert_same_bits, dtype_id, ints, normal, tables
from vidk import all_gather_rope, rope_3d
from vidk.parallel import GatherBuffer

from .helpers import DEVICE, move

HEIGHT, WIDTH = 3, 5
FRAME = HEIGHT * WIDTH


class Ranks:
    """The buffers and the table of P ranks of one device."""

    def __init__(self, ranks: int, size: tuple[int, ...], dtype: torch.dtype) -> None:
        self.ranks = ranks
        self.streams = [torch.cuda.Stream() for _ in range(ranks)]
        self.out = [torch.zeros(ranks, *size, dtype=dtype, device=DEVICE) for _ in range(ranks)]
        self.signals = torch.zeros(ranks, 2 * ranks + 2, dtype=torch.int32, device=DEVICE)
        table = [*(t.data_ptr() for t in self.out), *(t.data_ptr() for t in self.signals), 0]
        self.peers = torch.tensor(table, device=DEVICE)

    def run(self, x: list[Tensor], index: tuple[Any, ...], slice_tokens: int | None) -> None:
        """Call the op as every rank; few blocks each, so that all run at once."""
        torch.cuda.synchronize()
        for rank, stream in enumerate(self.streams):
            with torch.cuda.stream(stream):
                all_gather_rope(
                    x[rank], *index, self.out[rank], rank, "", slice_tokens=slice_tokens,
                    peers=self.peers,
                )  # fmt: skip
        torch.cuda.synchronize()


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("slices", [False, True])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
def test_every_rank_has_everything(ranks: int, slices: bool, dtype: torch.dtype) -> None:
    """Again and again with other tokens: signals count calls and are never reset."""
    c = -(-FRAME // ranks) if slices else None
    run = c or -(-3 * FRAME // ranks)
    size = (2, 3 * c if c else run, 2, 64)
    make = normal(dtype, ranks, slices)
    index = (ints(4, 9, 2), *tables(64, HEIGHT, WIDTH), HEIGHT, WIDTH)
    there = (*move(*index[:3]), HEIGHT, WIDTH)
    world = Ranks(ranks, size, dtype)
    for call in range(1, 6):
        x = [make(*size) for _ in range(ranks)]
        expected = torch.stack(
            [rope_3d(x[r], *index, token_offset=r * run, slice_tokens=c) for r in range(ranks)]
        )
        world.run([t.to(DEVICE) for t in x], there, c)
        for out in world.out:
            assert_same_bits(out.cpu(), expected)
        assert world.signals.cpu().tolist() == [[call] * (2 * ranks) + [0, call]] * ranks


def test_in_a_captured_graph() -> None:
    size, index = (1, 20, 2, 128), (ints(5, 6), *tables(128, 2, 10), 2, 10)
    x = normal(torch.bfloat16)(*size)
    there, on_gpu = (*move(*index[:3]), 2, 10), x.to(DEVICE)
    world = Ranks(1, size, torch.bfloat16)
    world.run([on_gpu], there, None)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        all_gather_rope(on_gpu, *there, world.out[0], 0, "", peers=world.peers)
    for _ in range(3):
        on_gpu.neg_()
        graph.replay()
    assert_same_bits(world.out[0][0].cpu(), rope_3d(-x, *index))


def test_in_a_compiled_graph() -> None:
    """Inductor hands the op the buffer itself, not a copy, which would trap."""
    size, index = (1, 20, 2, 128), (ints(5, 6), *tables(128, 2, 10), 2, 10)
    x = normal(torch.bfloat16)(*size)
    there, world = (*move(*index[:3]), 2, 10), Ranks(1, size, torch.bfloat16)

    @torch.compile(fullgraph=True)
    def step(x: Tensor, out: Tensor, peers: Tensor) -> Tensor:
        all_gather_rope(-x, *there, out, 0, "", peers=peers)
        return out + 0

    for _ in range(3):
        result = step(x.to(DEVICE), world.out[0], world.peers)
    assert_same_bits(result[0].cpu(), rope_3d(-x, *index))


def test_buffer_of_one_process() -> None:
    """Symmetric memory of a group of one: the table's own address is the buffer's."""
    if dist.is_initialized():
        pytest.skip("this process already has a process group")
    store = dist.HashStore()
    dist.init_process_group("nccl", store=store, rank=0, world_size=1)
    try:
        name = dist.group.WORLD.group_name
        buffer = GatherBuffer((1, 20, 2, 128), torch.bfloat16, torch.device(DEVICE, 0), name)
        index = (ints(5, 6), *tables(128, 2, 10), 2, 10)
        x = normal(torch.bfloat16)(1, 17, 2, 128)  # less than the buffer is for
        out = buffer.view(tuple(x.shape))
        assert int(buffer.peers[0]) == out.data_ptr()
        there = (*move(*index[:3]), 2, 10)
        for _ in range(2):
            all_gather_rope(x.to(DEVICE), *there, out, 0, name, peers=buffer.peers)
        assert_same_bits(out[0].cpu(), rope_3d(x, *index))
        with pytest.raises(ValueError, match="expected at most 5120 elements"):
            buffer.view((1, 21, 2, 128))
    finally:
        dist.destroy_process_group()
