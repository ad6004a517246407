"""Read `.pt` files without running anything that stands in them."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidk.models.containers import (
    CONFIG_KEY,
    DTYPES,
    FLOATS,
    CheckpointError,
    Contents,
    Entry,
    regular_file,
)


def read_pickle(path: Path, key: str | None) -> Contents:
    """Return what a `.pt` file holds: a plain state dict, or the part named by `key`.

    Without a key `generator_ema` is taken, else `generator`, where the file has such parts. Only
    tensors and plain containers are unpickled: a file that asks for anything else is refused.
    """
    regular_file(path)
    data = _unpickle(path)
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: got a {type(data).__name__}, expected a dict of tensors")
    parts = [str(name) for name, value in data.items() if isinstance(value, dict) and value]
    if key is not None and key not in parts:
        have = ", ".join(parts) or "none"
        raise CheckpointError(f"{path}: key: got {key!r}, expected a part of the file ({have})")
    part = key or next((p for p in ("generator_ema", "generator") if p in parts), None)
    if part is None and parts and not any(isinstance(v, Tensor) for v in data.values()):
        raise CheckpointError(
            f"{path}: got the parts {', '.join(parts)}, expected generator_ema, generator or a "
            "plain state dict (name the part with key)"
        )
    state = data if part is None else data[part]
    note = data.get(CONFIG_KEY)
    entries = {
        str(name): _loaded(path, str(name), value)
        for name, value in state.items()
        if part or name != CONFIG_KEY
    }
    return Contents(entries, part, note if isinstance(note, str) else None)


def _unpickle(path: Path) -> Any:
    mapped = zipfile.is_zipfile(path)
    with path.open("rb") as f:
        if not mapped and f.read(4) == b"PK\x03\x04":
            raise CheckpointError(
                f"{path}: got a truncated file, expected one written by torch.save"
            )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as e:
        wanted = re.search(r"GLOBAL (\S+)", str(e))
        if wanted:
            raise CheckpointError(
                f"{path}: got a pickle that asks for {wanted[1]}, expected only tensors (refused, "
                "nothing of it was run)"
            ) from e
        reason: Exception = e
    except Exception as e:  # a corrupt pickle can raise anything
        reason = e
    raise CheckpointError(
        f"{path}: got a corrupt or foreign file, expected tensors written by torch.save (refused "
        f"with {type(reason).__name__}, nothing of it was run)"
    ) from reason


def _loaded(path: Path, name: str, value: object) -> Entry:
    if not isinstance(value, Tensor):
        raise CheckpointError(f"{path}: {name}: got a {type(value).__name__}, expected a tensor")
    dense = value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
    # An expanded view would let a file of a few bytes ask for any amount of memory.
    if not dense or value.untyped_storage().nbytes() < value.numel() * value.element_size():
        raise CheckpointError(
            f"{path}: {name}: got a sparse, quantized or expanded tensor, expected a dense one"
        )
    if value.dtype not in DTYPES.values():
        got = str(value.dtype).removeprefix("torch.")
        raise CheckpointError(f"{path}: {name}: got dtype {got}, expected {FLOATS}")
    tensor = value.detach()

    def fill(out: Tensor) -> None:
        out.copy_(tensor)

    return Entry(tuple(tensor.shape), tensor.dtype, fill)
