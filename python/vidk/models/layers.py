"""Small layers of the Wan model."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidk.models.config import WanConfig


@torch.compiler.assume_constant_result
def norm_eps(config: WanConfig) -> float:
    """Return the eps of the norms, as a number also while Dynamo traces.

    Under `dynamic=True` a plain attribute would become a symbol, which `torch.cond` refuses.
    """
    return config.eps


def _emulated_on_cpu() -> frozenset[torch.dtype]:
    native = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported(),
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported(),
    }
    return frozenset(dtype for dtype, ok in native.items() if not ok)


# 16-bit dtypes whose matrix products this CPU emulates, several times slower than float32.
EMULATED_ON_CPU = _emulated_on_cpu()


class Linear(nn.Linear):
    """A linear layer that computes in float32 where the CPU has no 16-bit matrix product."""

    def forward(self, x: Tensor) -> Tensor:
        """Map `[..., in_features]` to `[..., out_features]` in the dtype of x."""
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear`, in float32 with one rounding where the CPU has no 16-bit matrix product."""
    if x.device.type == "cpu" and x.dtype in EMULATED_ON_CPU:
        wide = F.linear(x.float(), weight.float(), None if bias is None else bias.float())
        return wide.type_as(x)
    return F.linear(x, weight, bias)


class RMSNorm(nn.Module):
    """RMSNorm over all channels: float32 statistics, rounded to the dtype of x, then weighted."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.ones(config.dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension of `[..., C]`."""
        x32 = x.float()
        scale = torch.rsqrt(x32.square().mean(-1, keepdim=True) + norm_eps(self.config))
        return (x32 * scale).type_as(x) * self.weight


def layer_norm(x: Tensor, config: WanConfig) -> Tensor:
    """LayerNorm of the last dimension without weight and bias."""
    return F.layer_norm(x, x.shape[-1:], eps=norm_eps(config))


class AffineLayerNorm(nn.Module):
    """LayerNorm with weight and bias over the last dimension."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.ones(config.dim))
        self.bias = nn.Parameter(torch.zeros(config.dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `[..., C]`."""
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, norm_eps(self.config))


def timestep_embedding(timesteps: Tensor, channels: int) -> Tensor:
    """Return `[cos | sin]` of `t * 10000^(-j / half)`, `[..., channels]` float64.

    Float64 as in the original: float32 angles move an fp32 model's output by 3e-5.
    """
    half = channels // 2
    j = torch.arange(half, dtype=torch.float64, device=timesteps.device)
    angles = timesteps.double().unsqueeze(-1) * 10000.0 ** (-j / half)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
