"""Parameter names of a causal Wan model in the layouts that checkpoints use.

`original` names (Wan, Self-Forcing) are vidk's own. Every rule maps one whole name to one whole
name: rewriting substrings in order, as is often done, mixes up the norms and the modulations.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache

from vidk.models.config import Shape, WanConfig

LAYOUTS = ("original", "diffusers", "fastvideo")

# What trainers and wrappers leave in a name: `model.` is the attribute of Self-Forcing's wrapper.
WRAPPERS = {"model", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod"}

_BOTH = (".weight", ".bias")
_WEIGHT = (".weight",)
_BARE = ("",)

_LINES_SHOWN = 6
_T = "condition_embedder"

# original, diffusers, FastVideo, the tensors of the module.
_Row = tuple[str, str, str, tuple[str, ...]]
_TOP: list[_Row] = [
    ("patch_embedding", "patch_embedding", "patch_embedding.proj", _BOTH),
    ("text_embedding.0", f"{_T}.text_embedder.linear_1", f"{_T}.text_embedder.fc_in", _BOTH),
    ("text_embedding.2", f"{_T}.text_embedder.linear_2", f"{_T}.text_embedder.fc_out", _BOTH),
    ("time_embedding.0", f"{_T}.time_embedder.linear_1", f"{_T}.time_embedder.mlp.fc_in", _BOTH),
    ("time_embedding.2", f"{_T}.time_embedder.linear_2", f"{_T}.time_embedder.mlp.fc_out", _BOTH),
    ("time_projection.1", f"{_T}.time_proj", f"{_T}.time_modulation.linear", _BOTH),
    ("head.head", "proj_out", "proj_out", _BOTH),
    ("head.modulation", "scale_shift_table", "scale_shift_table", _BARE),
]
_BLOCK: list[_Row] = [
    ("modulation", "scale_shift_table", "scale_shift_table", _BARE),
    ("self_attn.q", "attn1.to_q", "to_q", _BOTH),
    ("self_attn.k", "attn1.to_k", "to_k", _BOTH),
    ("self_attn.v", "attn1.to_v", "to_v", _BOTH),
    ("self_attn.o", "attn1.to_out.0", "to_out", _BOTH),
    ("self_attn.norm_q", "attn1.norm_q", "norm_q", _WEIGHT),
    ("self_attn.norm_k", "attn1.norm_k", "norm_k", _WEIGHT),
    ("norm3", "norm2", "self_attn_residual_norm.norm", _BOTH),
    ("cross_attn.q", "attn2.to_q", "attn2.to_q", _BOTH),
    ("cross_attn.k", "attn2.to_k", "attn2.to_k", _BOTH),
    ("cross_attn.v", "attn2.to_v", "attn2.to_v", _BOTH),
    ("cross_attn.o", "attn2.to_out.0", "attn2.to_out", _BOTH),
    ("cross_attn.norm_q", "attn2.norm_q", "attn2.norm_q", _WEIGHT),
    ("cross_attn.norm_k", "attn2.norm_k", "attn2.norm_k", _WEIGHT),
    ("ffn.0", "ffn.net.0.proj", "ffn.fc_in", _BOTH),
    ("ffn.2", "ffn.net.2", "ffn.fc_out", _BOTH),
]
_BLOCK_NAME = re.compile(r"(blocks\.(?:0|[1-9][0-9]{0,8})\.)(.+)")
_IMAGE_NAME = re.compile(
    r"img_emb\..+|condition_embedder\.image_embedder\..+"
    r"|blocks\.[0-9]+\.(cross_attn\.(k_img|v_img|norm_k_img)"
    r"|attn2\.(add_k_proj|add_v_proj|norm_added_k|norm_added_q))\..+"
)


@cache
def _rules(source: str, target: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return name -> name of the top level and of one block."""
    s, t = LAYOUTS.index(source), LAYOUTS.index(target)

    def table(rows: list[_Row]) -> dict[str, str]:
        return {str(row[s]) + leaf: str(row[t]) + leaf for row in rows for leaf in row[3]}

    return table(_TOP), table(_BLOCK)


def rename(name: str, source: str, target: str) -> str | None:
    """Return a parameter's name in another layout; None if `source` has no such parameter."""
    top, block = _rules(source, target)
    if name in top:
        return top[name]
    m = _BLOCK_NAME.fullmatch(name)
    return m[1] + block[m[2]] if m and m[2] in block else None


def strip_wrappers(name: str) -> str:
    """Remove the path segments that trainers and `torch.compile` put into names, at any depth."""
    *path, leaf = name.split(".")
    return ".".join([part for part in path if part not in WRAPPERS] + [leaf])


def is_image_to_video(name: str) -> bool:
    """Tell whether a stripped name belongs to the image branch of an I2V or FLF2V model."""
    return _IMAGE_NAME.fullmatch(name) is not None


def detect_layout(names: Iterable[str]) -> str:
    """Return the layout that knows most of the names; `original` if they are equal."""
    names = list(names)
    return max(LAYOUTS, key=lambda x: sum(rename(name, x, x) is not None for name in names))


def parameter_shapes(config: WanConfig) -> dict[str, Shape]:
    """Return the shape of every parameter under its original name: 27 a block and 15 more."""
    c, f, patch = config.dim, config.ffn_dim, config.patch_size
    square, affine = {".weight": (c, c), ".bias": (c,)}, {".weight": (c,), ".bias": (c,)}

    def linear(out: int, inp: int) -> Mapping[str, Shape]:
        return {".weight": (out, inp), ".bias": (out,)}

    top: dict[str, Mapping[str, Shape]] = {
        "patch_embedding": {".weight": (c, config.in_channels, *patch), ".bias": (c,)},
        "text_embedding.0": linear(c, config.text_dim),
        "text_embedding.2": square,
        "time_embedding.0": linear(c, config.freq_dim),
        "time_embedding.2": square,
        "time_projection.1": linear(6 * c, c),
        "head.head": linear(config.out_channels * patch[0] * patch[1] * patch[2], c),
        "head.modulation": {"": (1, 2, c)},
    }
    block: dict[str, Mapping[str, Shape]] = {
        "modulation": {"": (1, 6, c)},
        "ffn.0": linear(f, c),
        "ffn.2": linear(c, f),
    }
    for attn in ("self_attn", "cross_attn"):
        block |= {f"{attn}.{x}": square for x in "qkvo"}
        if config.qk_norm:
            block |= {f"{attn}.{x}": {".weight": (c,)} for x in ("norm_q", "norm_k")}
    if config.cross_attn_norm:
        block["norm3"] = affine
    modules = top | {
        f"blocks.{i}.{stem}": leaves
        for i in range(config.num_layers)
        for stem, leaves in block.items()
    }
    return {
        stem + leaf: shape for stem, leaves in modules.items() for leaf, shape in leaves.items()
    }


def difference(shapes: Mapping[str, Shape], config: WanConfig, layout: str) -> str:
    """Compare a state dict with a model.

    Parameters
    ----------
    shapes : shape of every tensor under its original name.
    config : sizes of the model.
    layout : layout whose names the text uses.

    Returns
    -------
    Empty if names and shapes are those of the model; else one sentence with the counts, and the
    first names of each kind on the lines that follow.
    """
    expected = parameter_shapes(config)

    def shown(name: str) -> str:
        return rename(name, "original", layout) or name

    kinds = {
        "missing": [shown(name) for name in expected if name not in shapes],
        "unexpected": [f"{shown(n)} {list(s)}" for n, s in shapes.items() if n not in expected],
        "wrongly shaped": [
            f"{shown(name)}: got {list(shapes[name])}, expected {list(shape)}"
            for name, shape in expected.items()
            if shapes.get(name, shape) != shape
        ],
    }
    kinds = {kind: lines for kind, lines in kinds.items() if lines}
    if not kinds:
        return ""
    counts = ", ".join(f"{len(lines)} {kind}" for kind, lines in kinds.items())
    text = (
        f"got {counts} tensors, expected the {len(expected)} of a model with dim {config.dim}, "
        f"ffn_dim {config.ffn_dim} and {config.num_layers} blocks"
    )
    for kind, lines in kinds.items():
        more = len(lines) - _LINES_SHOWN
        tail = [f"... and {more} more"] if more > 0 else []
        text += "\n  ".join([f"\n{kind} ({len(lines)}):", *lines[:_LINES_SHOWN], *tail])
    return text
