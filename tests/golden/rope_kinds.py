"""Golden files of RoPE: tables, application, shards, other positions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import vidk
from tests.golden.files import Golden, bits, close
from vidk.rope import RopeTable, band_pairs, freq_table


def check_tables(golden: Golden) -> None:
    """Tables at listed positions: the float64 values, rounded once."""
    positions = torch.tensor(golden.params["positions"])
    for entry in golden.params["head_dims"]:
        d = entry["d"]
        time, space = band_pairs(d)
        assert [time, space, space] == entry["pairs_t_h_w"]
        bands = [freq_table(positions, n) for n in (time, space, space)]
        cos, sin = torch.cat(bands, dim=1).unbind(-1)
        close(cos, golden[f"d{d}.cos"], 6e-8, f"cos, head dim {d}")
        close(sin, golden[f"d{d}.sin"], 6e-8, f"sin, head dim {d}")


def check_application(golden: Golden) -> None:
    """Rotation of whole blocks, padded blocks, ragged batches, and single rows of a large grid."""
    for name, p in golden.params["cases"].items():
        dtype = getattr(torch, p.get("dtype", "float32"))
        if "idx" in "".join(k for k in golden.tensors if k.startswith(f"{name}.")):
            _check_rows(golden, name, p, dtype)
            continue
        x = golden[f"{name}.x"].to(dtype)
        grids = golden[f"{name}.grid"].tolist() if f"{name}.grid" in golden else [p["grid"]]
        rows = x.split(1) if len(grids) > 1 else [x]
        y = torch.cat([rotate(row, grid, p) for row, grid in zip(rows, grids, strict=True)])
        check_rotated(y, golden[f"{name}.y"], name, p)


def _check_rows(golden: Golden, name: str, p: dict[str, Any], dtype: torch.dtype) -> None:
    frames, height, width = p["grid"]
    index = golden[f"{name}.idx"]
    x = torch.zeros(1, frames * height * width, 1, p["D"], dtype=dtype)
    x[0, index, 0] = golden[f"{name}.x_rows"].to(dtype)
    y = rotate(x, p["grid"], p)[0, index, 0]
    check_rotated(y, golden[f"{name}.y_rows"], name, p)


def check_shards(golden: Golden) -> None:
    """Every rank rotates its own tokens with their global index, in both layouts."""
    for name, p in golden.params["cases"].items():
        expected = golden[f"{name}.y_ranks"].float()
        ranks, n = p["world_size"], p["tokens_per_rank"]
        if f"{name}.x" in golden:
            x = golden[f"{name}.x"].float()[0]
            padded = torch.cat([x, x.new_zeros(ranks * n - x.size(0), *x.shape[1:])])
            shards = padded.unflatten(0, (ranks, n))
        else:
            shards = golden[f"{name}.x_ranks"].float()
        for rank in range(ranks):
            shard: dict[str, int] = {"token_offset": rank * n}
            if "spatial slices" in p.get("layout", ""):
                per_frame = n // p["grid"][0]
                shard = {"token_offset": rank * per_frame, "slice_tokens": per_frame}
            y = rotate(shards[rank : rank + 1], p["grid"], p, **shard)
            check_rotated(y[0], expected[rank], f"{name} rank {rank}", p)
            check_packed(shards[rank : rank + 1], expected[rank], f"{name} rank {rank}", p, **shard)
            out = torch.zeros(ranks, *y.shape)
            c = shard.get("slice_tokens")
            local = torch.ops.vidk_local.all_gather_rope
            local(shards[rank : rank + 1], *index(p, y.size(-1)), out, rank, c, None)
            assert torch.equal(out[rank], y), f"{name} rank {rank}, all_gather_rope"


def check_packed(x: Tensor, expected: Tensor, name: str, p: dict[str, Any], **shard: int) -> None:
    """Packing rotates in the same way, after a norm of weight one: undo that and the packing."""
    heads, dim = x.shape[2:]
    packed = vidk.qk_norm_rope_pack(
        x, None, None, torch.ones(heads * dim), None, 0.0, *index(p, dim), heads, **shard
    )
    scale = x[0].flatten(1).double().square().mean(-1).sqrt()[:, None, None]
    y = packed[:, 0, 0, :, 0].transpose(0, 1).double() * scale
    # Relative to the rank's largest value: the norm has roundings of its own.
    error = (y - expected).abs().max() / expected.abs().max().clamp_min(1)
    assert not error > 1e-6, f"{name}, packed: {error:.2g}"


def rotate(x: Tensor, grid: list[int], p: dict[str, Any], **shard: int) -> Tensor:
    """Rotate with the positions of a case: `(start + i + offset) * scale`."""
    return vidk.rope_3d(x, *index(p | {"grid": grid}, x.size(-1)), **shard)


def index(p: dict[str, Any], head_dim: int) -> tuple[Any, ...]:
    """Return the positions of a case's frames, the tables and the grid."""
    frames, height, width = p["grid"]
    table = RopeTable(head_dim, height, width)
    offset, scale = p.get("temporal_offset", 0.0), p.get("t_scale", 1.0)
    rows = table.rows_of([(p["start_frame"] + i + offset) * scale for i in range(frames)])
    frame_pos = torch.tensor(rows, dtype=torch.int32)
    return frame_pos, table.time, table.space, height, width


def check_rotated(y: Tensor, expected: Tensor, name: str, p: dict[str, Any]) -> None:
    """Float32 to 1e-6 (far positions carry the table's own rounding), 16 bits to the bit."""
    if y.dtype == torch.float32:
        far = p["start_frame"] + p.get("temporal_offset", 0.0) + p.get("frames", 8) >= 64
        close(y, expected, 2e-6 if far else 1e-6, name)
        return
    assert expected.dtype == y.dtype
    off = (bits(y) - bits(expected)).abs()
    assert off.max() <= 1, f"{name}: {int(off.max())} ulp"
    assert (off == 0).double().mean() >= 0.999, f"{name}: {int((off > 0).sum())} elements differ"
