"""Sizes of a causal Wan model, and how other projects write them down."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Shape = tuple[int, ...]

# A head count leaves no trace in the weights; every published Wan model has heads of 128.
WAN_HEAD_DIM = 128


_SHARED = (
    "in_channels",
    "out_channels",
    "patch_size",
    "freq_dim",
    "text_dim",
    "cross_attn_norm",
    "eps",
    "prediction",
)
_ORIGINAL = {
    "in_dim": "in_channels",
    "out_dim": "out_channels",
    "patch_size": "patch_size",
    "freq_dim": "freq_dim",
    "text_dim": "text_dim",
    "text_len": "text_len",
    "qk_norm": "qk_norm",
    "cross_attn_norm": "cross_attn_norm",
    "eps": "eps",
}
_I2V = "config: got an image-to-video model, expected text-to-video (its weights are not supported)"


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _expect(cond: bool, field: str, got: object, expected: str) -> None:
    if not cond:
        raise ValueError(f"config: {field}: got {got!r}, expected {expected}")


def _get(config: Mapping[str, Any], key: str) -> Any:
    if key not in config:
        raise ValueError(f"config: {key}: got no such key, expected a value")
    return config[key]


def _present(config: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields a file has, under our names; absent ones keep their defaults."""
    found = {ours: config[theirs] for theirs, ours in keys.items() if theirs in config}
    if isinstance(found.get("patch_size"), list):
        found["patch_size"] = tuple(found["patch_size"])
    return found


@dataclass(frozen=True)
class WanConfig:
    """Sizes of a causal Wan model.

    Parameters
    ----------
    dim : int
        Channels of the residual stream, C.
    ffn_dim : int
        Hidden channels of the feed-forward layer.
    num_heads : int
        Attention heads, H; `dim / num_heads` is the head dim D, an even number.
    num_layers : int
        Transformer blocks.
    in_channels, out_channels : int
        Channels of the latents that go in and of the flow that comes out.
    patch_size : tuple of 3 ints
        Latent (frames, rows, columns) of one token; a token never spans frames.
    freq_dim : int
        Width of the timestep sinusoid, an even number.
    text_dim : int
        Channels of the text encoder's output.
    text_len : int
        Text positions the model was trained with, padding included.
    qk_norm : bool
        RMSNorm on q and k over all heads.
    cross_attn_norm : bool
        Affine LayerNorm before the cross-attention.
    eps : float
        Epsilon of every norm.
    prediction : str
        What the head was trained to return: "flow" (noise less clean latents, as every Wan model)
        or "x0" (the clean latents).

    Raises
    ------
    ValueError
        A size no model can have; the message names the field.
    """

    dim: int
    ffn_dim: int
    num_heads: int
    num_layers: int
    in_channels: int = 16
    out_channels: int = 16
    patch_size: tuple[int, int, int] = (1, 2, 2)
    freq_dim: int = 256
    text_dim: int = 4096
    text_len: int = 512
    qk_norm: bool = True
    cross_attn_norm: bool = True
    eps: float = 1e-6
    prediction: str = "flow"

    def __post_init__(self) -> None:
        for name, kind in WanConfig.__annotations__.items():
            value = getattr(self, name)
            if kind == "int":
                _expect(_is_int(value) and value >= 1, name, value, "an integer of at least 1")
            elif kind == "bool":
                _expect(isinstance(value, bool), name, value, "a bool")
        patch = self.patch_size
        _expect(
            isinstance(patch, tuple) and len(patch) == 3 and all(_is_int(n) for n in patch),
            "patch_size",
            patch,
            "three integers (frames, rows, columns)",
        )
        _expect(patch[0] == 1, "patch_size", patch, "1 frame a token (tokens never span frames)")
        _expect(min(patch) >= 1, "patch_size", patch, "sizes of at least 1")
        _expect(
            isinstance(self.eps, float) and 0.0 < self.eps < 1.0, "eps", self.eps, "0 < eps < 1"
        )
        _expect(self.prediction in ("flow", "x0"), "prediction", self.prediction, "'flow' or 'x0'")
        _expect(
            self.dim % self.num_heads == 0,
            "num_heads",
            self.num_heads,
            f"a divisor of dim {self.dim}",
        )
        _expect(self.head_dim % 2 == 0, "dim / num_heads", self.head_dim, "an even head dim")
        _expect(self.freq_dim % 2 == 0, "freq_dim", self.freq_dim, "an even number")

    @property
    def head_dim(self) -> int:
        """Channels of one head, D."""
        return self.dim // self.num_heads

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any], text_len: int = 512) -> WanConfig:
        """Read the `config.json` of a diffusers `WanTransformer3DModel`.

        Parameters
        ----------
        config : mapping
            The parsed file; keys that do not concern sizes are ignored.
        text_len : int
            Text positions, which that format does not record.

        Raises
        ------
        ValueError
            A key is missing or has a value that cannot be run.
        """
        if config.get("image_dim") is not None or config.get("added_kv_proj_dim") is not None:
            raise ValueError(_I2V)
        norm = config.get("qk_norm", "rms_norm_across_heads")
        _expect(
            norm in ("rms_norm_across_heads", None),
            "qk_norm",
            norm,
            "rms_norm_across_heads or null",
        )
        heads = _get(config, "num_attention_heads")
        head_dim = _get(config, "attention_head_dim")
        for name, value in (("num_attention_heads", heads), ("attention_head_dim", head_dim)):
            _expect(_is_int(value) and value >= 1, name, value, "an integer of at least 1")
        return cls(
            dim=heads * head_dim,
            num_heads=heads,
            ffn_dim=_get(config, "ffn_dim"),
            num_layers=_get(config, "num_layers"),
            qk_norm=norm is not None,
            text_len=text_len,
            **_present(config, {name: name for name in _SHARED}),
        )

    def _own_keys(self) -> dict[str, Any]:
        """Return keys that no other project's files have, where their absence says otherwise."""
        return {} if self.prediction == "flow" else {"prediction": self.prediction}

    def to_diffusers(self) -> dict[str, Any]:
        """Return what `from_diffusers` reads, as diffusers writes it (`text_len` is lost)."""
        return {
            **self._own_keys(),
            "_class_name": "WanTransformer3DModel",
            "added_kv_proj_dim": None,
            "attention_head_dim": self.head_dim,
            "cross_attn_norm": self.cross_attn_norm,
            "eps": self.eps,
            "ffn_dim": self.ffn_dim,
            "freq_dim": self.freq_dim,
            "image_dim": None,
            "in_channels": self.in_channels,
            "num_attention_heads": self.num_heads,
            "num_layers": self.num_layers,
            "out_channels": self.out_channels,
            "patch_size": list(self.patch_size),
            "pos_embed_seq_len": None,
            "qk_norm": "rms_norm_across_heads" if self.qk_norm else None,
            "rope_max_seq_len": 1024,
            "text_dim": self.text_dim,
        }

    @classmethod
    def from_original(cls, config: Mapping[str, Any]) -> WanConfig:
        """Read the `config.json` of an original Wan or Self-Forcing model.

        Raises
        ------
        ValueError
            A key is missing or has a value that cannot be run.
        """
        kind = config.get("model_type", "t2v")
        if kind in ("i2v", "flf2v", "vace"):
            raise ValueError(_I2V)
        required = {name: _get(config, name) for name in ("dim", "ffn_dim", "num_heads")}
        return cls(
            **required,
            num_layers=_get(config, "num_layers"),
            **_present(config, {**_ORIGINAL, "prediction": "prediction"}),
        )

    def to_original(self) -> dict[str, Any]:
        """Return what `from_original` reads, with every field that format can hold."""
        return {
            **self._own_keys(),
            "_class_name": "WanModel",
            "model_type": "t2v",
            "dim": self.dim,
            "ffn_dim": self.ffn_dim,
            "num_heads": self.num_heads,
            "num_layers": self.num_layers,
            **{theirs: getattr(self, ours) for theirs, ours in _ORIGINAL.items()},
            "patch_size": list(self.patch_size),
        }


CONFIGS: dict[str, WanConfig] = {
    "wan-1.3b": WanConfig(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30),
    "wan-14b": WanConfig(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40),
    "wan-5b": WanConfig(
        dim=3072, ffn_dim=14336, num_heads=24, num_layers=30, in_channels=48, out_channels=48
    ),
    "tiny": WanConfig(
        dim=64, ffn_dim=128, num_heads=2, num_layers=2, freq_dim=64, text_dim=32, text_len=16
    ),
    "bundled": WanConfig(
        dim=256,
        ffn_dim=512,
        num_heads=2,
        num_layers=4,
        freq_dim=64,
        text_dim=64,
        text_len=8,
        prediction="x0",
    ),
}


def load_config(source: str | Path, text_len: int = 512) -> WanConfig:
    """Return a config of `CONFIGS` by name, or read a `config.json` of either style.

    Parameters
    ----------
    source : str or Path
        A key of `CONFIGS`, or a file.
    text_len : int
        Text positions, for a file of diffusers, which does not record them.

    Raises
    ------
    ValueError
        Neither a known name nor a file that holds a config.
    """
    if str(source) in CONFIGS:
        return CONFIGS[str(source)]
    path = Path(source)
    if not path.is_file():
        known = ", ".join(CONFIGS)
        raise ValueError(f"config: got {str(source)!r}, expected one of {known} or a config.json")
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as e:
        raise ValueError(f"{path}: cannot be read as JSON ({e})") from e
    if not isinstance(data, dict):
        raise ValueError(f"{path}: got a JSON {type(data).__name__}, expected an object")
    try:
        if "attention_head_dim" in data:
            return WanConfig.from_diffusers(data, text_len)
        return WanConfig.from_original(data)
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from e


def infer_config(
    shapes: Mapping[str, Sequence[int]], *, num_heads: int | None = None, text_len: int = 512
) -> WanConfig:
    """Derive a config from a state dict's original names and shapes.

    Parameters
    ----------
    shapes : mapping of str to sequence of ints
        Shape of every parameter, under the original Wan names.
    num_heads : int, optional
        Heads, which no shape shows; without it heads of 128 are assumed, as all Wan models have.
    text_len : int
        Text positions, which no shape shows.

    Raises
    ------
    ValueError
        A parameter that is needed is absent or has the wrong rank, the blocks are not numbered
        0 .. n-1, or `dim` is no multiple of 128 and `num_heads` is not given.
    """
    ids = {int(m[1]) for name in shapes if (m := re.match(r"blocks\.(\d{1,9})\.", name))}
    if not ids or max(ids) + 1 != len(ids):
        gap = min(set(range(len(ids) + 1)) - ids)
        raise ValueError(f"config: got {len(ids)} blocks without block {gap}, expected 0 .. n-1")

    def shape(name: str, rank: int) -> Shape:
        got = shapes.get(name)
        if got is None or len(got) != rank:
            found = "no such parameter" if got is None else f"shape {list(got)}"
            raise ValueError(f"config: {name}: got {found}, expected {rank} dimensions")
        return tuple(got)

    patch = shape("patch_embedding.weight", 5)
    dim = patch[0]
    area = max(patch[2] * patch[3] * patch[4], 1)
    if num_heads is None:
        if dim % WAN_HEAD_DIM:
            raise ValueError(
                f"config: dim {dim}: got no number of heads, expected one, since the shapes do "
                f"not show it and {dim} is no multiple of {WAN_HEAD_DIM} (give a config)"
            )
        num_heads = dim // WAN_HEAD_DIM
    return WanConfig(
        dim=dim,
        ffn_dim=shape("blocks.0.ffn.0.weight", 2)[0],
        num_heads=num_heads,
        num_layers=len(ids),
        in_channels=patch[1],
        out_channels=shape("head.head.weight", 2)[0] // area,
        patch_size=(patch[2], patch[3], patch[4]),
        freq_dim=shape("time_embedding.0.weight", 2)[1],
        text_dim=shape("text_embedding.0.weight", 2)[1],
        text_len=text_len,
        qk_norm="blocks.0.self_attn.norm_q.weight" in shapes,
        cross_attn_norm="blocks.0.norm3.weight" in shapes,
    )
