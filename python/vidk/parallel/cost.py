"""What a run on P ranks should take: arithmetic and links at their peak rates, nothing measured."""

from __future__ import annotations

from dataclasses import dataclass

from vidk.parallel.planner import Sharding


@dataclass(frozen=True)
class Link:
    """How ranks are joined: one direction of a GPU's link.

    `bandwidth` in bytes a second is what the vendor publishes; `reach` is the share of it that
    large transfers usually see, and `latency` the seconds that a message costs: both assumptions.
    """

    name: str
    bandwidth: float
    latency: float
    reach: float = 0.8


LINKS = {
    "nvlink4": Link("NVLink 4, 18 links of a Hopper GPU", 450e9, 4e-6),
    "nvlink5": Link("NVLink 5, 18 links of a Blackwell GPU", 900e9, 4e-6),
    "pcie5": Link("PCIe 5.0 x16", 64e9, 8e-6),
    "pcie4": Link("PCIe 4.0 x16", 32e9, 8e-6),
    "ib": Link("InfiniBand NDR, 400 Gbit/s a GPU", 50e9, 12e-6),
}


@dataclass(frozen=True)
class Accelerator:
    """Peak rates as the vendor publishes them, and the share that is assumed to be reached."""

    name: str
    flops: float
    memory: float
    reach: float = 0.5


ACCELERATORS = {
    "h200": Accelerator("H200 SXM", 989e12, 141e9),
    "h100": Accelerator("H100 SXM", 989e12, 80e9),
    "b200": Accelerator("B200", 2250e12, 180e9),
    "a100": Accelerator("A100 80 GB SXM", 312e12, 80e9),
    "rtx5090": Accelerator("RTX 5090", 210e12, 32e9),
}


@dataclass(frozen=True)
class Estimate:
    """One denoising forward on P ranks, in seconds, and the bytes that a rank holds.

    `efficiency` is the speed-up over one rank, over P.
    """

    sharding: Sharding
    compute: float
    communication: float
    weights: int
    cache: int
    efficiency: float

    @property
    def seconds(self) -> float:
        """Time of the forward if nothing overlaps: the exchange's upper bound."""
        return self.compute + self.communication


def estimate(
    sharding: Sharding,
    flops: int,
    *,
    weights: int,
    cache: int,
    link: Link,
    accelerator: Accelerator,
) -> Estimate:
    """Estimate a forward.

    Parameters
    ----------
    sharding : how the ranks share the model.
    flops : of the forward on one rank, without padding.
    weights, cache : bytes of the whole model and of the whole cache.
    link, accelerator : what the ranks have.
    """
    tokens = sharding.frames * sharding.frame_tokens
    padded = sharding.ranks * sharding.layout().shard_tokens(sharding.frames)
    alone = flops / (accelerator.flops * accelerator.reach)
    compute = alone * padded / tokens / sharding.ranks
    bandwidth = link.bandwidth * link.reach
    messages = sharding.layers * sharding.layer_messages + sharding.ranks - 1
    communication = sharding.forward_bytes / bandwidth + messages * link.latency
    if sharding.ranks == 1:
        communication = 0.0
    return Estimate(
        sharding,
        compute,
        communication,
        weights,
        cache // sharding.head_ranks,
        alone / sharding.ranks / (compute + communication),
    )
