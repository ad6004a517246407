"""The KV cache of a rollout: frame slots on the device, a slot policy on the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from vidk.cache_kinds import Place, Sizes, key_row_bytes, make_kind
from vidk.rope import RopeTable

EMPTY = -1


class SlotPolicy:
    """Which frame lies in which slot, and which slot a new frame takes.

    A new frame takes the first empty slot, so that the valid slots are always a prefix; when none
    is left it takes the slot of the oldest frame that is neither a sink nor pinned. A frame that is
    already held keeps its slot: denoising steps and the clean re-run overwrite their own keys.
    Keys are stored rotated and attention has no mask, so the order of slots has no meaning.
    """

    def __init__(self, slots: int, sink: int) -> None:
        self.frame_in = [EMPTY] * slots
        self.sink = sink
        self.pinned: set[int] = set()

    def assign(self, frames: Sequence[int]) -> list[int]:
        """Return the slot of each frame of a block, and record it unless the block cannot fit."""
        held = list(self.frame_in)
        chosen: list[int] = []
        for frame in frames:
            if frame in held:
                slot = held.index(frame)
            elif EMPTY in held:
                slot = held.index(EMPTY)
            else:
                free = [s for s, f in enumerate(held) if self._evictable(f) and s not in chosen]
                if not free:
                    kept = sum(not self._evictable(f) for f in self.frame_in)
                    raise ValueError(
                        f"vidk.KVCache: block: got {len(frames)} frames, expected at most "
                        f"{len(held) - kept}: {len(held)} slots less {kept} sink or pinned frames"
                    )
                slot = min(free, key=held.__getitem__)
            held[slot] = frame
            chosen.append(slot)
        self.frame_in = held
        return chosen

    def _evictable(self, frame: int) -> bool:
        return frame >= self.sink and frame not in self.pinned

    @property
    def used(self) -> int:
        """Number of slots that hold a frame."""
        return len(self.frame_in) - self.frame_in.count(EMPTY)


@dataclass(frozen=True)
class CacheSnapshot:
    """A copy of a cache's valid part and of its policy, made by `KVCache.snapshot`."""

    tensors: dict[str, Tensor]
    frame_in: tuple[int, ...]
    pinned: frozenset[int]


class KVCache(nn.Module):
    """Rotated keys and values of the last frames, for all layers, in buffers of fixed address.

    Nothing that changes from block to block is a Python number for the graph: `place` writes
    `frame_pos`, `frame_slot` and `kv_len` in place, and one compiled graph serves the filling
    cache, the full cache and every re-run.

    Parameters
    ----------
    layers, heads, head_dim : the model's.
    height, width : tokens in a column and in a row of one latent frame.
    frames : slots, in latent frames. The whole video for a global cache, or the window, which
        includes the sink and the block at work (Self-Forcing's `local_attn_size`).
    sink : leading frames of the video that are never evicted.
    batch : batch size.
    block_frames : the most frames of one block.
    dtype, device : of the model, and of what is not quantised.
    kind : "plain" keeps keys and values in `dtype`; "nvfp4" quantises keys by `recipe` ("plain",
        "default", "accurate", "accurate256"); "fp8" has MXFP8 keys and float8_e4m3fn values. See
        `docs/fp4.md`.
    perm : `[layers, heads, head_dim]` int32, the order of each head's channels, for the accurate
        recipes; see `cache_kinds.channel_order`.

    Attributes
    ----------
    k, v : `[layers, B, frames * height * width, heads, head_dim]`; quantised keys are `k_codes`,
        `k_scales` and `k_mean` instead, as `fp4_attention` takes them, behind `[layers]`.
    frame_pos, frame_slot : `[block_frames]` int32, row of `rope.time` and slot of each frame.
    kv_len : `[1]` int32, valid tokens, always a prefix.
    rope : the frequency tables, see `vidk.rope.RopeTable`.
    """

    k: Tensor
    v: Tensor
    perm: Tensor | None
    frame_pos: Tensor
    frame_slot: Tensor
    kv_len: Tensor

    def __init__(
        self,
        *,
        layers: int,
        heads: int,
        head_dim: int,
        height: int,
        width: int,
        frames: int,
        sink: int = 0,
        batch: int = 1,
        block_frames: int = 3,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        kind: str = "plain",
        recipe: str = "default",
        perm: Tensor | None = None,
    ) -> None:
        super().__init__()
        if frames < 1:
            raise ValueError(f"vidk.KVCache: frames: got {frames}, expected at least 1")
        if not 0 <= sink < frames:
            raise ValueError(
                f"vidk.KVCache: sink: got {sink}, expected 0 <= sink < {frames}, the cache's frames"
            )
        self.height, self.width = height, width
        self.policy = SlotPolicy(frames, sink)
        self.rope = RopeTable(head_dim, height, width, device=device)
        self.kind = make_kind(kind, recipe, head_dim)
        self.sizes = Sizes(layers, batch, heads, head_dim, frames, height * width, dtype)
        stored = self.kind.stored(self.sizes)
        for name, value in {
            **{n: torch.zeros(s.shape, dtype=s.dtype, device=device) for n, s in stored.items()},
            "frame_pos": torch.zeros(block_frames, dtype=torch.int32, device=device),
            "frame_slot": torch.zeros(block_frames, dtype=torch.int32, device=device),
            "kv_len": torch.zeros(1, dtype=torch.int32, device=device),
        }.items():
            self.register_buffer(name, value, persistent=False)
        if perm is None:
            self.perm = None
        else:
            self.register_buffer("perm", perm, persistent=False)
        self._slot_dims = {name: s.slot_dim for name, s in stored.items()}

    @property
    def frame_tokens(self) -> int:
        """Tokens of one latent frame."""
        return self.height * self.width

    @property
    def frames(self) -> int:
        """Number of slots."""
        return len(self.policy.frame_in)

    @property
    def key_row_bytes(self) -> float:
        """Bytes of a cached key of one head: codes, and its share of scales and means."""
        return key_row_bytes(self.kind.stored(self.sizes), self.sizes)

    def write(
        self,
        layer: int,
        frames: int,
        qkv: tuple[Tensor, Tensor, Tensor],
        weights: tuple[Tensor, Tensor],
        eps: float,
    ) -> tuple[Tensor, ...]:
        """Normalise and rotate q and k of a block, keep k and v; return the query for `read`.

        Parameters
        ----------
        layer : whose keys and values these are.
        frames : latent frames of the block.
        qkv : `[B, S, H, D]` each.
        weights : `[H * D]`, of the norms of q and k.
        eps : of the norms.
        """
        return self.kind.write(self._layer(layer), qkv, weights, eps, self._place(frames))

    def receive(
        self, layer: int, frames: int, k: Tensor, v: Tensor, slice_tokens: int | None
    ) -> None:
        """Keep a block's keys and values as ranks sent them, the keys normalised and rotated.

        Parameters
        ----------
        layer : whose keys and values these are.
        frames : latent frames of the block.
        k, v : `[P, B, S_r, H, D]`, the cache's heads of each rank's tokens.
        slice_tokens : how tokens lie on ranks, see `vidk.unpack_kv_write`.
        """
        self.kind.receive(self._layer(layer), k, v, self._place(frames), slice_tokens)

    def query(self, layer: int, q: Tensor) -> tuple[Tensor, ...]:
        """Return the query for `read`, of normalised and rotated queries `[B, S, H, D]`."""
        return self.kind.query(self._layer(layer), q)

    def read(self, layer: int, query: tuple[Tensor, ...]) -> Tensor:
        """Attend to the valid part of a layer; `[B, S, H, D]`."""
        return self.kind.read(self._layer(layer), query, self.kv_len, self._place(1))

    def _layer(self, layer: int) -> dict[str, Tensor]:
        kept = {name: getattr(self, name).select(0, layer) for name in self._slot_dims}
        return kept if self.perm is None else {**kept, "perm": self.perm.select(0, layer)}

    def _place(self, frames: int) -> Place:
        return Place(
            self.frame_pos.narrow(0, 0, frames),
            self.frame_slot.narrow(0, 0, frames),
            self.rope.time,
            self.rope.space,
            self.height,
            self.width,
        )

    def place(
        self, start_frame: int, frames: int, *, positions: Sequence[float] | None = None
    ) -> None:
        """Make room for a block and point the device state at it. Call once per block.

        Parameters
        ----------
        start_frame : index in the video of the block's first frame.
        frames : latent frames of the block.
        positions : temporal RoPE position of each frame; default `start_frame + arange(frames)`.
        """
        if not 1 <= frames <= self.frame_slot.numel():
            raise ValueError(
                f"vidk.KVCache: frames: got a block of {frames}, expected 1 to "
                f"{self.frame_slot.numel()}, the cache's block_frames"
            )
        if start_frame < 0:
            raise ValueError(f"vidk.KVCache: start_frame: got {start_frame}, expected at least 0")
        block = range(start_frame, start_frame + frames)
        positions = block if positions is None else positions
        if len(positions) != frames:
            raise ValueError(
                f"vidk.KVCache: positions: got {len(positions)}, expected one for each of the "
                f"{frames} frames"
            )
        slots = self.policy.assign(block)
        self._publish(self.frame_pos, self.rope.rows_of(positions))
        self._publish(self.frame_slot, slots)
        self._publish_length()

    def pin(self, frames: Sequence[int]) -> None:
        """Keep frames that the cache holds now until `unpin`: the anchors of a shot."""
        absent = [f for f in frames if f not in self.policy.frame_in]
        if absent:
            raise ValueError(
                f"vidk.KVCache: pin: got frames {absent}, expected frames that the cache holds"
            )
        self.policy.pinned.update(frames)

    def unpin(self, frames: Sequence[int]) -> None:
        """Let pinned frames be evicted again."""
        self.policy.pinned.difference_update(frames)

    def reset(self) -> None:
        """Forget every frame; storage and addresses stay."""
        self.policy = SlotPolicy(self.frames, self.policy.sink)
        self._publish_length()

    def grow(self, frames: int) -> None:
        """Give the cache more slots and keep its content; compiled graphs recompile."""
        more = frames - self.frames
        if more <= 0:
            return
        for name, old in self._valid(self.frames).items():
            dim = self._slot_dims[name]
            shape = list(old.shape)
            shape[dim] += more * (shape[dim] // self.frames)
            setattr(self, name, old.new_zeros(shape))
            getattr(self, name).narrow(dim, 0, old.size(dim)).copy_(old)
        self.sizes = replace(self.sizes, frames=frames)
        self.policy.frame_in += [EMPTY] * more

    def snapshot(self) -> CacheSnapshot:
        """Copy the valid part of the cache."""
        valid = self._valid(self.policy.used)
        return CacheSnapshot(
            {name: x.clone() for name, x in valid.items()},
            tuple(self.policy.frame_in),
            frozenset(self.policy.pinned),
        )

    def restore(self, snapshot: CacheSnapshot) -> None:
        """Put a snapshot of this cache back, in place."""
        used = len(snapshot.frame_in) - snapshot.frame_in.count(EMPTY)
        valid = self._valid(min(used, self.frames))
        got = {name: list(x.shape) for name, x in snapshot.tensors.items()}
        expected = {name: list(x.shape) for name, x in valid.items()}
        if len(snapshot.frame_in) != self.frames or got != expected:
            raise ValueError(
                f"vidk.KVCache: snapshot: got {len(snapshot.frame_in)} slots and {got}, expected "
                f"{self.frames} slots and {expected}"
            )
        for name, x in valid.items():
            x.copy_(snapshot.tensors[name])
        self.policy.frame_in = list(snapshot.frame_in)
        self.policy.pinned = set(snapshot.pinned)
        self._publish_length()

    def _valid(self, frames: int) -> dict[str, Tensor]:
        """Return views of the first slots."""
        views = {}
        for name, dim in self._slot_dims.items():
            x = getattr(self, name)
            views[name] = x.narrow(dim, 0, x.size(dim) // self.frames * frames)
        return views

    def _publish(self, buffer: Tensor, values: Sequence[int]) -> None:
        # The dtype of the buffer, or a GPU would have to be waited for.
        source = torch.tensor(values, dtype=buffer.dtype)
        buffer[: len(values)].copy_(source, non_blocking=True)

    def _publish_length(self) -> None:
        self.kv_len.fill_(self.policy.used * self.frame_tokens)
