"""Latents of a video in .safetensors, with a JSON note of how they were made."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from vidk._files import atomic_path
from vidk.media.output import MediaError, check_output, media_errors

# One metadata key only: safetensors writes several in no fixed order.
_META = "vidk"


def write_latents(
    latents: Tensor | Iterable[Tensor],
    path: str | os.PathLike[str],
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write latents `[B, F, C, H, W]`, or blocks of them along F, and JSON-able metadata.

    Raises MediaError for a bad path, shape or dtype, or metadata that JSON cannot hold; like a
    video, the file is written whole or not at all, and the same input gives the same bytes.
    """
    target = check_output(path, (".safetensors",))
    try:
        note = json.dumps(dict(metadata or {}), sort_keys=True)
    except (TypeError, ValueError) as error:
        raise MediaError(f"metadata: cannot be written as JSON: {error}") from error
    blocks = [latents] if isinstance(latents, Tensor) else list(latents)
    if not blocks:
        raise MediaError(f"{path}: got no latents, expected at least 1 block")
    for block in blocks:
        _check(block, blocks[0])
    whole = torch.cat([block.detach().cpu() for block in blocks], dim=1).contiguous()
    with media_errors(path, "written"), atomic_path(target) as temp:
        save_file({"latents": whole}, temp, metadata={_META: note})


def read_latents(path: str | os.PathLike[str]) -> tuple[Tensor, dict[str, Any]]:
    """Return the latents `[B, F, C, H, W]` and the metadata of a file of `write_latents`.

    A file of other origin will do if it holds one tensor, or one named `latents`, of this shape.
    Raises MediaError.
    """
    with media_errors(path, "read"), safe_open(os.fspath(path), framework="pt") as file:
        names = list(file.keys())
        name = "latents" if "latents" in names else names[0] if len(names) == 1 else None
        if name is None:
            some = ", ".join(sorted(names)[:4]) or "none"
            raise MediaError(f"{path}: got tensors {some}, expected one named latents")
        latents: Tensor = file.get_tensor(name)
        note = (file.metadata() or {}).get(_META, "{}")
    _check(latents, latents)
    try:
        metadata = json.loads(note)
    except ValueError as error:
        raise MediaError(f"{path}: its metadata is not JSON: {error}") from error
    if not isinstance(metadata, dict):
        raise MediaError(f"{path}: its metadata is a {type(metadata).__name__}, expected an object")
    return latents, metadata


def _check(block: Tensor, first: Tensor) -> None:
    if not isinstance(block, Tensor):
        raise MediaError(f"latents: got {type(block).__name__}, expected a tensor")
    if block.dim() != 5 or not block.is_floating_point() or block.numel() == 0:
        raise MediaError(
            f"latents: got {list(block.shape)} {str(block.dtype).removeprefix('torch.')}, "
            "expected a non-empty float [B, F, C, H, W]"
        )
    if _but_frames(block) != _but_frames(first):
        raise MediaError(
            f"latents: got a block of {list(block.shape)} {block.dtype} after "
            f"{list(first.shape)} {first.dtype}, expected only F to differ"
        )


def _but_frames(block: Tensor) -> tuple[object, ...]:
    return (block.shape[0], *block.shape[2:], block.dtype)
