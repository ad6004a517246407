"""The files weights come in: what they hold, without reading it, and without trusting them."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vidk.models.config import Shape


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or written; the first line is the whole reason."""


@dataclass(frozen=True)
class Entry:
    """One tensor of a container, not read yet."""

    shape: Shape
    dtype: torch.dtype
    fill: Callable[[Tensor], None]
    """Writes the values into a contiguous CPU tensor of this shape, cast to its dtype."""

    @property
    def nbytes(self) -> int:
        """Bytes the tensor takes in its container."""
        return prod(self.shape) * self.dtype.itemsize

    def read(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return a private copy, cast in the one pass that reads it."""
        out = torch.empty(self.shape, dtype=dtype or self.dtype)
        self.fill(out)
        return out


@dataclass
class Contents:
    """What a container holds, under the names that stand in it."""

    entries: dict[str, Entry] = field(default_factory=dict)
    part: str | None = None
    """The part of a pickle that was taken, such as `generator_ema`."""
    config: str | None = None
    """vidk's own note of the config, as JSON text."""


WEIGHTS = "diffusion_pytorch_model"
INDEX = ".safetensors.index.json"
PICKLES = (".pt", ".pth", ".bin")
CONFIG_KEY = "vidk_config"
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
FLOATS = "one of float64, float32, float16, bfloat16, float8_e4m3fn, float8_e5m2"
_SHARD = re.compile(r".*-[0-9]+-of-[0-9]+\.safetensors")
_NAMES_SHOWN = 6
_MAX_HEADER = 100_000_000  # the format's own limit
# Elements read at a time when a cast follows: they stay in the core's cache in between.
_PIECE = 64 * 1024


def listed(names: Iterable[str]) -> str:
    """Return the first names, and how many more there are."""
    names = list(names)
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def regular_file(path: Path) -> int:
    """Return a file's size; refuse what is absent or is no file (a FIFO would block for ever)."""
    try:
        status = path.stat()
    except (OSError, ValueError) as e:
        raise CheckpointError(f"{path}: got no such file, expected a checkpoint") from e
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{path}: got something that is not a file, expected a checkpoint")
    return status.st_size


def find_weights(path: Path) -> tuple[Path, Path | None]:
    """Return the file that leads to a checkpoint's weights, and the `config.json` of the same."""
    if not path.is_dir():
        regular_file(path)
        known = (".safetensors", INDEX, *PICKLES)
        if not path.name.endswith(known):
            raise CheckpointError(
                f"{path}: got a file named {path.name!r}, expected one of {', '.join(known)}"
            )
        # Only weights with this name are known to belong to the config.json beside them.
        beside = path.parent / "config.json"
        return path, beside if path.name.startswith(WEIGHTS) and beside.is_file() else None
    whole = sorted(p for p in path.glob("*.safetensors") if not _SHARD.fullmatch(p.name))
    found = [*sorted(path.glob("*" + INDEX)), *whole]
    standard = [p for p in found if p.name in (WEIGHTS + INDEX, WEIGHTS + ".safetensors")]
    found = standard or found
    if len(found) == 1:
        config = path / "config.json"
        return found[0], config if config.is_file() else None
    if found:
        raise CheckpointError(
            f"{path}: got {listed(p.name for p in found)}, expected one file (name it)"
        )
    shards = sorted(path.glob("*.safetensors"))
    if shards:
        raise CheckpointError(
            f"{path}: got {len(shards)} shards without an index, expected a *{INDEX} beside them"
        )
    experts = [p.name for p in sorted(path.glob("transformer*")) if p.is_dir()]
    if experts == ["transformer"]:
        return find_weights(path / "transformer")
    if experts:
        raise CheckpointError(
            f"{path}: got the models {', '.join(experts)}, expected one (name its folder)"
        )
    pickles = [p.name for p in sorted(path.iterdir()) if p.suffix in PICKLES]
    hint = f" (name the file: {listed(pickles)})" if pickles else ""
    raise CheckpointError(f"{path}: got a folder without safetensors, expected a checkpoint{hint}")


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; refuse other values and keys that stand there twice."""
    regular_file(path)
    return _json_object(path, "file", path.read_bytes())


def read_safetensors(path: Path, files: ExitStack) -> Contents:
    """Return what a `.safetensors` file holds; `files` keeps it open until the tensors are read."""
    size = regular_file(path)
    fd = os.open(path, os.O_RDONLY)
    files.callback(os.close, fd)
    prefix = os.pread(fd, 8, 0)
    if prefix == b"version ":
        raise CheckpointError(f"{path}: got a Git LFS pointer, expected weights (git lfs pull)")
    length = int.from_bytes(prefix, "little")
    if size < 8 or length > min(size - 8, _MAX_HEADER):
        raise CheckpointError(
            f"{path}: got a header of {length} bytes in a file of {size}, expected one that fits "
            "(the file is truncated or no safetensors file)"
        )
    header = _json_object(path, "header", os.pread(fd, length, 8))
    metadata = header.pop("__metadata__", None)
    start = 8 + length
    try:
        end = start + max((int(info["data_offsets"][1]) for info in header.values()), default=0)
        names = {name: str(info["dtype"]) for name, info in header.items()}
    except (TypeError, KeyError, IndexError, ValueError, OverflowError) as e:
        raise CheckpointError(f"{path}: got a corrupt header, expected dtype and offsets") from e
    if end != size:
        raise CheckpointError(
            f"{path}: got a file of {size} bytes, expected the {end} its header describes "
            "(the file is truncated or corrupt)"
        )
    for name, dtype in names.items():
        if dtype not in DTYPES:
            raise CheckpointError(f"{path}: {name}: got dtype {dtype}, expected {FLOATS}")
    try:
        # The library checks the rest: overlaps, holes, offsets against shapes.
        with safe_open(str(path), "pt"):
            pass
    except (SafetensorError, OSError) as e:
        raise CheckpointError(f"{path}: cannot be read as safetensors ({e})") from e
    entries = {
        name: _stored(path, fd, start + info["data_offsets"][0], info)
        for name, info in header.items()
    }
    note = metadata.get(CONFIG_KEY) if isinstance(metadata, dict) else None
    return Contents(entries, config=note)


def _stored(path: Path, fd: int, offset: int, info: Mapping[str, Any]) -> Entry:
    dtype = DTYPES[info["dtype"]]

    def fill(out: Tensor) -> None:
        flat = out.view(-1)
        if out.dtype == dtype:
            _read_exactly(path, fd, offset, flat)
            return
        staging = torch.empty(min(_PIECE, flat.numel()), dtype=dtype)
        for first in range(0, flat.numel(), _PIECE):
            piece = staging[: flat.numel() - first]
            _read_exactly(path, fd, offset + first * dtype.itemsize, piece)
            flat[first : first + _PIECE].copy_(piece)

    return Entry(tuple(info["shape"]), dtype, fill)


def _read_exactly(path: Path, fd: int, offset: int, flat: Tensor) -> None:
    # Reads into the tensor's own memory. A mapped file would be charged to the process page by
    # page, and touching one that shrinks meanwhile kills it; a read comes back short instead.
    left = flat.view(torch.uint8).numpy().data
    while left:
        try:
            got = os.preadv(fd, [left], offset)
        except OSError as e:
            raise CheckpointError(f"{path}: cannot be read ({e.strerror})") from e
        if got == 0:
            raise CheckpointError(f"{path}: got shorter while it was read, expected its full size")
        left, offset = left[got:], offset + got


def read_index(path: Path, files: ExitStack) -> Contents:
    """Return what the shards of a `.safetensors.index.json` hold; the index must name it all."""
    where = read_json(path).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(v, str) for v in where.values()):
        raise CheckpointError(f"{path}: got no weight_map, expected one of names to shards")
    merged = Contents()
    home: dict[str, str] = {}
    for shard in sorted(set(where.values())):
        if Path(shard).name != shard:
            raise CheckpointError(
                f"{path}: got the shard {shard!r}, expected a file beside the index"
            )
        contents = read_safetensors(path.parent / shard, files)
        merged.config = merged.config or contents.config
        for name, entry in contents.entries.items():
            if name in home:
                raise CheckpointError(
                    f"{path}: {name}: got a duplicated entry, in {home[name]} and in {shard}, "
                    "expected one"
                )
            home[name] = shard
            merged.entries[name] = entry
    for name, shard in where.items():
        if home.get(name) != shard:
            raise CheckpointError(f"{path}: {name}: got no such tensor in {shard}, expected one")
    unlisted = [name for name in home if name not in where]
    if unlisted:
        raise CheckpointError(f"{path}: got no word of {listed(unlisted)}, expected all tensors")
    return merged


def _json_object(path: Path, what: str, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise CheckpointError(f"{path}: {name}: got a duplicated entry, expected one")
            found[name] = value
        return found

    try:
        data = json.loads(text.decode(), object_pairs_hook=unique)
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as e:
        raise CheckpointError(f"{path}: got a corrupt {what}, expected JSON ({e})") from e
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: got a corrupt {what}, expected a JSON object")
    return data
