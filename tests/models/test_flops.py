"""FLOPs of a forward, against what torch counts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vidk import cache_kinds
from vidk.models import CONFIGS, CausalWan, wan
from vidk.models.flops import forward_flops

TINY = CONFIGS["tiny"]
HEIGHT, WIDTH, TEXT = 4, 6, 5


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return ((q @ k.mT).softmax(-1) @ v).transpose(1, 2)


@pytest.mark.parametrize("clean", [False, True])
@pytest.mark.parametrize(("frames", "start"), [(3, 0), (3, 6), (1, 3)])
def test_the_same_as_torch_counts(monkeypatch, frames, start, clean):
    # torch counts plain matrix products, so attention is that here, over the same keys.
    monkeypatch.setattr(
        cache_kinds, "attention", lambda q, k, v, n: plain(q, k[:, : int(n)], v[:, : int(n)])
    )
    keys = TEXT + 1
    monkeypatch.setattr(
        wan, "cross_attention", lambda q, k, v, n: plain(q, k[:, :keys], v[:, :keys])
    )
    model = CausalWan(TINY).eval()
    cache = model.new_cache(2 * HEIGHT, 2 * WIDTH, 9)
    for first in range(0, start, 3):
        cache.place(first, 3)
    cache.place(start, frames)
    context = model.new_context()
    context.lens.fill_(TEXT)
    latents = torch.randn(1, frames, 16, 2 * HEIGHT, 2 * WIDTH)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(latents, torch.full((1, frames), 500.0), cache, context, torch.tensor(clean))
    assert counter.get_total_flops() == forward_flops(
        TINY,
        frames=frames,
        frame_tokens=HEIGHT * WIDTH,
        kv_frames=start + frames,
        text_keys=keys,
        clean=clean,
    )


def test_published_arithmetic_of_the_large_models():
    # 4680 new tokens; TFLOP of the matrix products, and with 32760 keys. The two count text keys
    # differently, hence the tolerance of the totals.
    for name, linear, total in (("wan-1.3b", 11.7, 40.4), ("wan-14b", 111.9, 239)):
        sizes = {"frames": 3, "frame_tokens": 1560}
        config = CONFIGS[name]
        nothing = forward_flops(config, **sizes, kv_frames=0, text_keys=0)
        everything = forward_flops(config, **sizes, kv_frames=21, text_keys=512)
        assert nothing / 1e12 == pytest.approx(linear, abs=0.06)
        assert everything / 1e12 == pytest.approx(total, rel=2e-3)
