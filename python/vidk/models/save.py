"""Write a checkpoint in any layout: whole, or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn
from tqdm import tqdm

from vidk._files import published, sync_folder
from vidk.models.checkpoint import COMPUTE_DTYPES, Checkpoint
from vidk.models.config import WanConfig, infer_config
from vidk.models.containers import (
    CONFIG_KEY,
    DTYPES,
    PICKLES,
    WEIGHTS,
    CheckpointError,
    Entry,
)
from vidk.models.names import difference, rename, strip_wrappers

OUTPUT_LAYOUTS = ("original", "diffusers", "self_forcing")
_FILES = {"config.json", f"{WEIGHTS}.safetensors"}
_FORMAT_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def save_checkpoint(
    source: Checkpoint | nn.Module | Mapping[str, Tensor],
    path: str | Path,
    layout: str = "original",
    *,
    dtype: torch.dtype | None = None,
    config: WanConfig | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> None:
    """Write a checkpoint.

    Parameters
    ----------
    source : what `open_checkpoint` returned, a model, or a state dict with original names.
    path : str or Path
        `original` and `diffusers`: a `.safetensors` file, or else a folder with the weights and a
        `config.json`. They need memory for one tensor. `self_forcing`: a `.pt` file, which
        needs memory for all of them.
    layout : `original`, `diffusers` or `self_forcing`.
    dtype : dtype of every tensor; None keeps each one's own.
    config : sizes of a state dict; default what its shapes say. A model or checkpoint has its own.
    overwrite : replace a file, or a folder that holds nothing but a checkpoint.
    progress : show a progress bar on a terminal.

    Raises
    ------
    CheckpointError
        A source that is not a whole model, a path that cannot or must not be written, an error
        while writing. What was there before is then unharmed, and nothing else is left.
    """
    entries, sizes = _entries(source, config)
    if layout not in OUTPUT_LAYOUTS:
        raise CheckpointError(f"layout: got {layout!r}, expected {', '.join(OUTPUT_LAYOUTS)}")
    if dtype not in (None, *COMPUTE_DTYPES):
        raise CheckpointError(f"dtype: got {dtype}, expected float32, bfloat16 or float16")
    # A link keeps pointing where it points; what it points to is replaced.
    target = Path(os.path.realpath(path))
    _check_target(target, layout, overwrite)
    bar = tqdm(
        total=len(entries), unit="tensor", desc="weights", disable=None if progress else True
    )
    try:
        with bar, published(target) as temporary:
            if layout == "self_forcing":
                with _synced(temporary) as f:
                    _write_pickle(f, entries, sizes, dtype, bar)
                return
            weights = temporary
            if target.suffix != ".safetensors":
                temporary.mkdir()
                weights = temporary / f"{WEIGHTS}.safetensors"
                about = sizes.to_diffusers() if layout == "diffusers" else sizes.to_original()
                with _synced(temporary / "config.json") as f:
                    f.write(json.dumps(about, indent=2).encode() + b"\n")
            named = {rename(name, "original", layout) or name: e for name, e in entries.items()}
            with _synced(weights) as f:
                _write_safetensors(f, named, sizes, dtype, bar)
            if weights != temporary:
                sync_folder(temporary)
    except (OSError, RuntimeError) as e:
        reason = getattr(e, "strerror", None) or (str(e) or type(e).__name__).splitlines()[0]
        raise CheckpointError(f"{path}: cannot be written ({reason}; nothing was changed)") from e


def _entries(
    source: Checkpoint | nn.Module | Mapping[str, Tensor], config: WanConfig | None
) -> tuple[dict[str, Entry], WanConfig]:
    """Return what is to be written, held to the sizes of the model as strictly as on reading."""
    if isinstance(source, Checkpoint):
        return source.entries, source.config
    state = source.state_dict() if isinstance(source, nn.Module) else source
    entries: dict[str, Entry] = {}
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor) or tensor.is_meta or tensor.dtype not in _FORMAT_NAMES:
            raise CheckpointError(f"state: {name}: got no float values, expected a float tensor")
        bare = strip_wrappers(name)
        if bare in entries:
            raise CheckpointError(f"state: {name}: got a duplicated entry, expected one")
        entries[bare] = Entry(tuple(tensor.shape), tensor.dtype, _copier(tensor))
    shapes = {name: entry.shape for name, entry in entries.items()}
    own = getattr(source, "config", None)
    try:
        sizes = config or (own if isinstance(own, WanConfig) else infer_config(shapes))
    except ValueError as e:
        raise CheckpointError(f"state: {e}") from e
    diff = difference(shapes, sizes, "original")
    if diff:
        raise CheckpointError(f"state: {diff}")
    return entries, sizes


def _copier(tensor: Tensor) -> Any:
    source = tensor.detach()
    return lambda out: out.copy_(source)


def _write_safetensors(
    f: BinaryIO,
    entries: Mapping[str, Entry],
    config: WanConfig,
    dtype: torch.dtype | None,
    bar: Any,
) -> None:
    # The library's writer wants all tensors in memory at once. Its order is kept: widest dtype
    # first, then by name, so that every tensor is aligned.
    kinds = {name: dtype or entry.dtype for name, entry in entries.items()}
    order = sorted(entries, key=lambda name: (-kinds[name].itemsize, str(kinds[name]), name))
    header: dict[str, Any] = {
        "__metadata__": {"format": "pt", CONFIG_KEY: json.dumps(config.to_original())}
    }
    offset = 0
    for name in order:
        end = offset + prod(entries[name].shape) * kinds[name].itemsize
        header[name] = {
            "dtype": _FORMAT_NAMES[kinds[name]],
            "shape": list(entries[name].shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    f.write(len(text).to_bytes(8, "little") + text)
    for name in order:
        f.write(entries[name].read(kinds[name]).view(-1).view(torch.uint8).numpy().data)
        bar.update()


def _write_pickle(
    f: BinaryIO,
    entries: Mapping[str, Entry],
    config: WanConfig,
    dtype: torch.dtype | None,
    bar: Any,
) -> None:
    state = {}
    for name, entry in entries.items():
        state[f"model.{name}"] = entry.read(dtype)
        bar.update()
    # Self-Forcing picks a part by a switch of its own; both stand for the same storages.
    torch.save(
        {"generator": state, "generator_ema": state, CONFIG_KEY: json.dumps(config.to_original())},
        f,
    )


def _check_target(target: Path, layout: str, overwrite: bool) -> None:
    pickled = target.suffix in PICKLES
    wants_file = pickled or target.suffix == ".safetensors"
    if pickled != (layout == "self_forcing") or (not wants_file and target.suffix[1:].isalpha()):
        kinds = ".pt" if layout == "self_forcing" else ".safetensors, or a folder without a suffix"
        raise CheckpointError(
            f"{target}: got layout {layout}, expected a path that ends in {kinds}"
        )
    if not target.parent.is_dir():
        raise CheckpointError(f"{target}: got no folder {target.parent}, expected one that exists")
    if not target.exists():
        return
    if not overwrite:
        raise CheckpointError(f"{target}: got a path that exists, expected a new one (or force)")
    if not (target.is_file() if wants_file else target.is_dir()):
        kind = "file" if wants_file else "folder"
        raise CheckpointError(f"{target}: got something else, expected a {kind} to replace")
    others = [] if wants_file else [p.name for p in target.iterdir() if p.name not in _FILES]
    if others:
        raise CheckpointError(
            f"{target}: got a folder with {min(others)}, expected only a checkpoint to replace"
        )


@contextmanager
def _synced(path: Path) -> Iterator[BinaryIO]:
    """Open a new file whose content is on the disk when the block ends."""
    with path.open("xb") as f:
        yield f
        f.flush()
        os.fsync(f.fileno())
