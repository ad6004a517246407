"""Memory of a GPU that all ranks of a group store into."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor

_ALIGN = 256  # bytes


class GatherBuffer:
    """The buffers of `all_gather_rope` on GPUs that reach each other's memory.

    All ranks of the group make their buffers in the same order, of the same sizes, and give them
    up in the same order. The memory is torch's symmetric memory: every rank's is mapped on every
    rank. It lives as long as this object, whatever views and tables of it do.

    Calls wait for each other across ranks, from the first thread block on. So all ranks make them
    in the same order, a buffer is used on one stream, and two buffers are not used at once.

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
        If the GPUs do not reach each other's memory as `torch.distributed._symmetric_memory` does
        it by its backend "CUDA". Use `all_gather_rope` without `peers` then.
    """

    def __init__(
        self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, group_name: Any
    ) -> None:
        if device.type != "cuda":
            raise ValueError(f"GatherBuffer: device: got {device}, expected a GPU")
        from torch._C._distributed_c10d import _resolve_process_group
        from torch.distributed import _symmetric_memory as symmetric

        group = _resolve_process_group(group_name)
        self._ranks = group.size()
        self._dtype = dtype
        elements = self._ranks * math.prod(shape)
        signals_at = -(-elements * dtype.itemsize // _ALIGN) * _ALIGN
        size = signals_at + 4 * (2 * self._ranks + 2)
        self._memory = symmetric.empty(size, dtype=torch.uint8, device=device)
        self._memory.zero_()
        torch.cuda.synchronize(device)
        self._handle = cast(Any, symmetric.rendezvous(self._memory, group_name))
        # Addresses of whole allocations, but the multicast one, which is this tensor's.
        begin = [int(at) + self._handle.offset for at in self._handle.buffer_ptrs]
        backend = symmetric.get_backend(device)
        if backend != "CUDA" or begin[group.rank()] != self._memory.data_ptr() or 0 in begin:
            raise RuntimeError(
                f"GatherBuffer: device: got {device} with symmetric memory of {backend}, expected "
                "GPUs that reach each other's memory (use all_gather_rope without peers)"
            )
        self._handle.barrier()  # all signals are zero
        torch.cuda.synchronize(device)
        self._elements = elements
        multicast = int(self._handle.multicast_ptr or 0)
        table = [*begin, *(at + signals_at for at in begin), multicast]
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
