"""Models with random weights."""

from __future__ import annotations

import pytest
import torch

from vidk.models import CONFIGS, CausalWan, WanConfig
from vidk.models.seeded import seeded_model

TINY = CONFIGS["tiny"]


def test_same_seed_same_weights():
    a, b, c = (seeded_model(TINY, seed=seed).state_dict() for seed in (0, 0, 1))
    assert a.keys() == CausalWan(TINY).state_dict().keys()
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert not torch.equal(a["blocks.0.ffn.0.weight"], c["blocks.0.ffn.0.weight"])
    assert not torch.equal(a["blocks.0.ffn.0.weight"], a["blocks.1.ffn.0.weight"])


def test_known_value():
    # Uniform numbers come out of the generator's bits alone: the same on every machine.
    weight = seeded_model(TINY).state_dict()["patch_embedding.weight"].flatten()
    assert weight[0].item() == -0.05668950080871582
    assert weight.std().item() == pytest.approx(1 / 8, rel=0.02)  # a fan-in of 64


def test_another_dtype_is_a_rounding_of_the_same_numbers():
    dtypes = (torch.float32, torch.bfloat16)
    wide, narrow = (seeded_model(TINY, dtype=dtype).state_dict() for dtype in dtypes)
    assert all(torch.equal(wide[n].bfloat16(), narrow[n]) for n in wide)


def test_tensors_longer_than_a_chunk_do_not_repeat():
    config = WanConfig(dim=64, ffn_dim=40000, num_heads=2, num_layers=1, text_dim=32, text_len=4)
    weight = seeded_model(config).state_dict()["blocks.0.ffn.0.weight"].flatten()
    chunk = 1 << 20
    assert weight.numel() > 2 * chunk
    assert not torch.equal(weight[:chunk], weight[chunk : 2 * chunk])


def test_activations_keep_their_size_with_depth():
    config = WanConfig(
        dim=128, ffn_dim=256, num_heads=2, num_layers=24, freq_dim=64, text_dim=32, text_len=8
    )
    model = seeded_model(config)
    cache, context = model.new_cache(8, 8, 3), model.new_context()
    model.encode_text(torch.randn(1, 8, 32), torch.tensor([8]), context)
    cache.place(0, 3)
    with torch.no_grad():
        flow = model(torch.randn(1, 3, 16, 8, 8), torch.full((1, 3), 900.0), cache, context)
    assert flow.isfinite().all()
    assert 0.5 < flow.std() < 2.0
