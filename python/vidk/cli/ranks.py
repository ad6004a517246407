"""`vidk generate` under torchrun: what is asked of ranks before anything large is loaded."""

from __future__ import annotations

import argparse
import hashlib
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vidk._version import __version__
from vidk.cli import values
from vidk.cli.values import OptionError, option
from vidk.models.config import WanConfig
from vidk.parallel.launch import Place, World
from vidk.parallel.layout import KINDS
from vidk.parallel.planner import PATTERNS, Sharding, choose_sharding

if TYPE_CHECKING:
    from vidk.cli.plan import Plan

# May differ from rank to rank, as machines do.
_OWN = ("run", "command", "device", "threads", "out", "json")
_SAMPLE = 4096  # bytes of each weight that ranks compare


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that matter under torchrun."""
    add = parser.add_argument_group(
        "ranks (under torchrun --nproc-per-node P -m vidk)"
    ).add_argument
    expected = ", ".join(PATTERNS)
    add(
        "--exchange",
        type=values.one_of(PATTERNS),
        metavar="NAME",
        help=f"{expected} (default: what moves the fewest bytes)",
    )
    add(
        "--layout",
        type=values.one_of(KINDS),
        metavar="NAME",
        help=f"{' or '.join(KINDS)} (default: what pads least)",
    )
    add(
        "--timeout",
        type=values.positive,
        metavar="S",
        default=600.0,
        help="seconds that a rank waits for another (default: 600)",
    )


def wants_gpu(args: argparse.Namespace) -> bool:
    """Tell whether ranks exchange through NCCL."""
    return torch.cuda.is_available() and not (args.device or "").startswith("cpu")


def device_name(args: argparse.Namespace, place: Place) -> str | None:
    """Return the device that a rank takes: the GPU with its local number."""
    if not wants_gpu(args):
        return args.device
    if args.device not in (None, "cuda"):
        raise OptionError(
            f"--device: got {args.device} for {place.ranks} ranks, expected cuda or cpu, since "
            "each rank takes the GPU with its own number"
        )
    count = torch.cuda.device_count()
    if place.local_ranks > count:
        raise OptionError(
            f"--nproc-per-node: got {place.local_ranks}, expected at most the {count} GPUs here, "
            "or --device cpu"
        )
    return f"cuda:{place.local_rank}"


def shard(
    args: argparse.Namespace, place: Place, config: WanConfig, plan: Plan, dtype: torch.dtype
) -> Sharding:
    """Choose how the ranks share a run; raise OptionError where they cannot."""
    _, ph, pw = config.patch_size
    with option("--nproc-per-node"):
        return choose_sharding(
            config,
            ranks=place.ranks,
            frame_tokens=(plan.latent[0] // ph) * (plan.latent[1] // pw),
            frames=args.block,
            first_frames=1 if args.independent_first_frame else None,
            itemsize=dtype.itemsize,
            pattern=args.exchange,
            kind=args.layout,
        )


def facts(args: argparse.Namespace) -> dict[str, Any]:
    """Return what must be the same on all ranks before they start."""
    options = {
        f"--{name.replace('_', '-')}": value
        for name, value in vars(args).items()
        if name not in _OWN
    }
    return {"vidk": __version__, "torch": torch.__version__, **options}


def fingerprint(module: nn.Module, *more: Tensor) -> str:
    """Return a digest of the beginning of every weight, and of all of some tensors."""
    digest = hashlib.sha256()
    for name, x in module.named_parameters():
        digest.update(f"{name} {tuple(x.shape)} {x.dtype}".encode())
        digest.update(_bytes(x.detach().flatten()[: _SAMPLE // x.itemsize]))
    for other in more:
        digest.update(_bytes(other.flatten()))
    return digest.hexdigest()[:16]


def _bytes(x: Tensor) -> bytes:
    return x.cpu().contiguous().view(torch.uint8).numpy().tobytes()


class NoOutput(AbstractContextManager["NoOutput"]):
    """Where blocks go on ranks that write nothing."""

    def __init__(self) -> None:
        self.codec: str | None = None
        self.notes: list[str] = []

    def __exit__(self, *error: object) -> None:
        pass

    def add(self, latents: Tensor) -> tuple[float, float]:
        """See `Output`."""
        return 0.0, 0.0


def leads(world: World | None) -> bool:
    """Tell whether this rank decodes, writes and reports."""
    return world is None or world.place.rank == 0
