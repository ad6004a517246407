"""What the cache of a run keeps: `--kv`, `--attention`, `--fp4-recipe`."""

from __future__ import annotations

import argparse

import torch

from vidk.cache_kinds import KINDS, Kind, make_kind
from vidk.cli.values import OptionError, option
from vidk.models.config import WanConfig

DEFAULT_RECIPE = "default"
# What the GPU's kernels for quantised keys take.
_CUDA_DTYPE, _CUDA_HEAD_DIM = torch.bfloat16, 128


def kind_name(args: argparse.Namespace) -> str:
    """Return the kind of `vidk.cache_kinds` that the options name, if they agree."""
    if args.attention == "fp4" and args.kv == "bf16":
        raise OptionError(
            "--attention: got fp4 with --kv bf16, expected --kv nvfp4 or fp8, whose keys it reads"
        )
    kind = "nvfp4" if args.attention == "fp4" and args.kv is None else args.kv
    if args.fp4_recipe and kind != "nvfp4":
        raise OptionError(
            f"--fp4-recipe: got {args.fp4_recipe} without --kv nvfp4, whose keys it is for"
        )
    return kind if kind in KINDS else "plain"


def choose_kind(
    args: argparse.Namespace, config: WanConfig, dtype: torch.dtype, device: torch.device
) -> Kind:
    """Return the kind for a model; raise OptionError where the model has no such cache."""
    name = kind_name(args)
    if args.kv == "bf16" and dtype != torch.bfloat16:
        raise OptionError(
            f"--kv: got bf16 for a model in {str(dtype).removeprefix('torch.')}, expected "
            "--dtype bfloat16, or no --kv: an unquantised cache has the dtype of the model"
        )
    with option("--kv"):
        kind = make_kind(name, args.fp4_recipe or DEFAULT_RECIPE, config.head_dim)
    gpu_takes = dtype == _CUDA_DTYPE and config.head_dim == _CUDA_HEAD_DIM
    if name != "plain" and device.type == "cuda" and not gpu_takes:
        raise OptionError(
            f"--kv: got {name} on {device} for heads of {config.head_dim} in "
            f"{str(dtype).removeprefix('torch.')}, expected heads of {_CUDA_HEAD_DIM} in bfloat16 "
            "(--dtype), which GPU kernels are for"
        )
    return kind
