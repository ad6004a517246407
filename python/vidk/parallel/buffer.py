"""Memory of a GPU that all ranks of a group store into."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

_ALIGN = 256  # bytes


class GatherBuffer:
    """The buffers of `all_gather_rope` on GPUs that reach each other's memory.

    All ranks of the group make one at the same time, of the same size. The memory is torch's
    symmetric memory: every rank's is mapped on every rank.

    Parameters
    ----------
    shape : `[B, S_r, H, D]` of the largest shard of a rank.
    dtype, device : of the shards.
    group_name : name of the process group of the P ranks.

    Raises
    ------
    ValueError
        If the device is no GPU.
    RuntimeError
        If the GPUs do not reach each other's memory. Use `all_gather_rope` without `peers` then.
    """

    def __init__(
        self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, group_name: Any
    ) -> None:
        if device.type != "cuda":
            raise ValueError(f"GatherBuffer: device: got {device}, expected a GPU")
        from torch._C._distributed_c10d import _resolve_process_group
        from torch.distributed import _symmetric_memory as symmetric

        self._ranks = _resolve_process_group(group_name).size()
        self._dtype = dtype
        elements = self._ranks * math.prod(shape)
        signals_at = -(-elements * dtype.itemsize // _ALIGN) * _ALIGN
        size = signals_at + 4 * (2 * self._ranks + 2)
        self._memory = symmetric.empty(size, dtype=torch.uint8, device=device)
        self._memory.zero_()
        torch.cuda.synchronize(device)
        handle = symmetric.rendezvous(self._memory, group_name)
        handle.barrier()  # all signals are zero
        torch.cuda.synchronize(device)
        self._elements = elements
        begin = [int(at) for at in handle.buffer_ptrs]
        table = [*begin, *(at + signals_at for at in begin), int(handle.multicast_ptr or 0)]
        self.peers: Tensor = torch.tensor(table, dtype=torch.int64, device=device)

    def view(self, shape: tuple[int, ...]) -> Tensor:
        """Return the rank's own buffer `[P, B, S_r, H, D]` for shards `[B, S_r, H, D]`."""
        elements = self._ranks * math.prod(shape)
        if elements > self._elements:
            raise ValueError(
                f"GatherBuffer: shape: got {list(shape)}, expected at most "
                f"{self._elements // self._ranks} elements"
            )
        memory = self._memory[: elements * self._dtype.itemsize].view(self._dtype)
        return memory.view(self._ranks, *shape)
