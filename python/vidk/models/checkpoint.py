"""Read a causal Wan checkpoint of any known container and layout: strictly, or not at all."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from tqdm import tqdm

from vidk.models.config import Shape, WanConfig, infer_config, load_config
from vidk.models.containers import (
    INDEX,
    PICKLES,
    CheckpointError,
    Contents,
    Entry,
    find_weights,
    listed,
    read_index,
    read_safetensors,
)
from vidk.models.names import (
    detect_layout,
    difference,
    is_image_to_video,
    rename,
    strip_wrappers,
)
from vidk.models.pickles import read_pickle

if TYPE_CHECKING:
    from vidk.models.wan import CausalWan

COMPUTE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_log = logging.getLogger("vidk")


class Checkpoint:
    """An opened checkpoint: complete, every shape checked, no weight read yet.

    Made by `open_checkpoint`; a context manager, since it holds files open.

    Attributes
    ----------
    path : the file, index or folder that was opened.
    layout : `original`, `diffusers` or `fastvideo`: whose names stand in the files.
    part : the part of a `.pt` that was taken, such as `generator_ema`; else None.
    config : the sizes of the model.
    entries : original name -> `Entry`.
    """

    def __init__(
        self,
        path: Path,
        contents: Contents,
        config: WanConfig | None,
        config_file: Path | None,
    ) -> None:
        self.path = path
        self.part = contents.part
        self.files = ExitStack()
        self.layout, self.entries = _original_names(path, contents.entries)
        shapes = {name: entry.shape for name, entry in self.entries.items()}
        self.config = config or _find_config(path, contents, config_file, shapes)
        if self.config.num_layers > len(shapes):
            # Before the expected names are listed: a wrong config can make that list endless.
            raise CheckpointError(
                f"{path}: got {len(shapes)} tensors, expected more for the "
                f"{self.config.num_layers} blocks of the config"
            )
        diff = difference(shapes, self.config, self.layout)
        if diff:
            raise CheckpointError(f"{path}: {diff}")

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *exc: object) -> None:
        self.files.close()

    @property
    def dtypes(self) -> list[str]:
        """Names of the dtypes in the files, sorted."""
        return sorted({str(e.dtype).removeprefix("torch.") for e in self.entries.values()})

    def describe(self) -> str:
        """Return one line: what was opened, which part was taken, how much it holds."""
        part = f", {self.part}" if self.part else ""
        size = sum(e.nbytes for e in self.entries.values()) / 1e6
        return (
            f"{self.path} ({self.layout} names{part}, {len(self.entries)} tensors, "
            f"{size:,.1f} MB, {'/'.join(self.dtypes)})"
        )

    def read_all(
        self,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        progress: bool = False,
    ) -> dict[str, Tensor]:
        """Read every tensor once, cast on the way, with up to 8 threads.

        Parameters
        ----------
        dtype : dtype of the result; None keeps each tensor's own.
        device : where the tensors go; each one travels when it has been read.
        progress : show a progress bar on a terminal.

        Returns
        -------
        Original name -> tensor, private copies in the order of `entries`.
        """
        # Large tensors first, so that no thread is left alone with one at the end.
        order = sorted(self.entries, key=lambda name: -self.entries[name].nbytes)

        def read(name: str) -> Tensor:
            return self.entries[name].read(dtype).to(device)

        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            bar = tqdm(
                pool.map(read, order),
                total=len(order),
                desc="weights",
                unit="tensor",
                disable=None if progress else True,
            )
            tensors = dict(zip(order, bar, strict=True))
        return {name: tensors[name] for name in self.entries}


def open_checkpoint(
    path: str | Path, *, key: str | None = None, config: WanConfig | None = None
) -> Checkpoint:
    """Open a checkpoint and check it against the model it claims to be.

    Parameters
    ----------
    path : str or Path
        A `.safetensors` file, a `.safetensors.index.json`, a `.pt`, `.pth` or `.bin`, a folder of
        diffusers or of original Wan (also the parent of a `transformer` folder).
    key : str, optional
        Part of a `.pt` to take; default `generator_ema`, then `generator`, then the file itself.
    config : WanConfig, optional
        Sizes to hold the file to; default what a `config.json`, the file or its shapes say.

    Raises
    ------
    CheckpointError
        Anything that is not a complete text-to-video checkpoint; the first line says why, a diff
        of names may follow.
    """
    try:
        return _open(Path(path), key, config)
    except OSError as e:
        raise CheckpointError(f"{path}: cannot be read ({e.strerror or e})") from e


def _open(path: Path, key: str | None, config: WanConfig | None) -> Checkpoint:
    target, config_file = find_weights(path)
    with ExitStack() as files:
        if target.suffix in PICKLES:
            contents = read_pickle(target, key)
        elif key is not None:
            raise CheckpointError(
                f"{target}: key: got {key!r}, expected none (only a .pt file has parts)"
            )
        elif target.name.endswith(INDEX):
            contents = read_index(target, files)
        else:
            contents = read_safetensors(target, files)
        if not contents.entries:
            raise CheckpointError(f"{target}: got no tensors, expected a checkpoint")
        checkpoint = Checkpoint(path, contents, config, config_file)
        # Until here an error closes the files; from here on the checkpoint does.
        checkpoint.files = files.pop_all()
    return checkpoint


def load_model(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    config: WanConfig | None = None,
    key: str | None = None,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> CausalWan:
    """Build a model from a checkpoint, in memory for one copy of its weights.

    Parameters
    ----------
    path, key, config : see `open_checkpoint`.
    dtype : torch.dtype, optional
        float32, bfloat16 or float16; default the checkpoint's, if it has only one of these.
    device : device of the model.
    progress : show a progress bar on a terminal.

    Returns
    -------
    The model in eval mode. It shares no memory with the files.

    Raises
    ------
    CheckpointError
        See `open_checkpoint`; also a dtype the model cannot run in.
    """
    from vidk.models.wan import CausalWan

    with open_checkpoint(path, key=key, config=config) as checkpoint:
        _log.info("loading %s", checkpoint.describe())
        found = {entry.dtype for entry in checkpoint.entries.values()}
        target = dtype or next(iter(found))
        if target not in COMPUTE_DTYPES or (dtype is None and len(found) > 1):
            got = str(dtype).removeprefix("torch.") if dtype else "/".join(checkpoint.dtypes)
            raise CheckpointError(
                f"{path}: dtype: got {got}, expected float32, bfloat16 or float16 (give dtype)"
            )
        state = checkpoint.read_all(target, device, progress)
    with torch.device("meta"):
        model = CausalWan(checkpoint.config)
    assign(model, state)
    return model.eval()


def assign(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a model built on the meta device its weights; fail if anything is left without."""
    model.load_state_dict(state, strict=True, assign=True)
    tensors = [*model.named_parameters(), *model.named_buffers()]
    left = [name for name, tensor in tensors if tensor.is_meta]
    if left:
        raise CheckpointError(f"model: got no values for {listed(left)}, expected all of them")


def _original_names(path: Path, entries: Mapping[str, Entry]) -> tuple[str, dict[str, Entry]]:
    """Return the layout, and the entries under their original names; unknown names stay."""
    layout = detect_layout(strip_wrappers(name) for name in entries)
    found: dict[str, Entry] = {}
    for name, entry in entries.items():
        bare = strip_wrappers(name)
        if is_image_to_video(bare):
            raise CheckpointError(
                f"{path}: {name}: got an image-to-video checkpoint, expected text-to-video (its "
                "image weights are not supported and are not left out silently)"
            )
        ours = rename(bare, layout, "original") or bare
        if ours in found:
            raise CheckpointError(
                f"{path}: {name}: got a duplicated entry for {ours}, expected one name for each"
            )
        found[ours] = entry
    return layout, found


def _find_config(
    path: Path, contents: Contents, config_file: Path | None, shapes: Mapping[str, Shape]
) -> WanConfig:
    try:
        noted = None
        if contents.config is not None:
            note = json.loads(contents.config)
            if not isinstance(note, dict):
                raise ValueError("config: got a note that is no JSON object, expected one")
            noted = WanConfig.from_original(note)
        if config_file is not None:
            return load_config(config_file, text_len=noted.text_len if noted else 512)
        return noted or infer_config(shapes)
    except (ValueError, RecursionError) as e:
        raise CheckpointError(str(e) if config_file else f"{path}: {e}") from e
