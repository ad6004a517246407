"""The training of the bundled model: its forward is the product's, and it can be resumed."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "train_bundled"))
import train
from clips import FARTHEST_BLOCK, STAGES, make_clips, sigmas
from encoder import fit
from forward import TrainForward
from world import LatentWorld

from vidk.bundled.codec import patches
from vidk.bundled.grammar import Scene, embed_words
from vidk.bundled.noise import BLOCK
from vidk.bundled.scenes import GRID, PLACES, render
from vidk.models.config import CONFIGS
from vidk.models.seeded import seeded_model

CONFIG = CONFIGS["bundled"]


@pytest.fixture(scope="module")
def world():
    generator = torch.Generator().manual_seed(0)
    return LatentWorld.build(torch.randn(16, 768, generator=generator) / 28, torch.zeros(768))


@pytest.fixture(scope="module")
def encoder():
    return fit()


def test_latents_are_those_of_rendered_frames(encoder):
    weight, mean = encoder
    world = LatentWorld.build(weight, mean)
    words = torch.tensor([[0, 0, 0, 0], [3, 2, 1, 2], [2, 1, 3, 1]])
    places = torch.tensor([[12, 12], [1, 22], [5, 0]])
    frames = render([Scene.from_indices(w) for w in words.tolist()], places)
    flat = patches(frames.float() / 255) - mean
    expected = torch.einsum("nyxk,ck->ncyx", flat, weight)
    # Rendered frames are rounded to 8 bits.
    assert torch.allclose(world.latents(words, places), expected, atol=0.04)
    assert world.latents(words, places).square().mean() == pytest.approx(1, abs=0.5)


@torch.no_grad()
def test_the_forward_is_that_of_the_product(world):
    generator = torch.Generator().manual_seed(1)
    model = seeded_model(CONFIG)
    stage = STAGES[2]
    clips = make_clips(world, 4, stage, 1.0, generator)
    near, far = (int((clips.sink < 0).nonzero()[0]), int((clips.sink == 0).nonzero()[0]))
    sigma = sigmas(clips.x0.shape[:2], 3.0, generator)
    sigma[:, list(stage.clean)] = 0
    x = torch.randn(clips.x0.shape, generator=generator)
    x[near, 1] = x[near, 0]  # the same block, the first
    embeds = embed_words(clips.words, CONFIG.text_len, CONFIG.text_dim)
    forward = TrainForward(CONFIG, GRID, compile=False)
    params = dict(model.named_parameters())
    found = forward(params, x, sigma, embeds, clips.positions, clips.sink, stage.plan)
    lens = torch.full((1,), 4, dtype=torch.int32)

    def run(cache, context, clip, instance):
        model.encode_text(embeds[clip, instance][None], lens, context)
        cache.place(int(clips.positions[clip, instance, 0]), BLOCK)
        times = torch.full((1, BLOCK), float(sigma[clip, instance]) * 1000)
        return model(x[clip, instance][None], times, cache, context)[0]

    for clip in (near, far):
        for clean, last in (((0, 1), 4), ((0, 1, 2), 5), ((0, 1), 6), ((0, 1, 2), 7), ((), 3)):
            cache = model.new_cache(GRID, GRID, 9, sink=BLOCK)
            context = model.new_context()
            for instance in clean:
                # Next to the sink, block p is the sink: nothing is written twice.
                if not (clip == near and instance == 1):
                    run(cache, context, clip, instance)
            expected = run(cache, context, clip, last)
            assert torch.allclose(found[clip, last], expected, atol=2e-4), (clip, last)


def test_clips(world):
    clips = make_clips(world, 64, STAGES[2], 0.5, torch.Generator().manual_seed(2))
    assert clips.x0.shape == (64, 8, BLOCK, 16, GRID, GRID)
    assert torch.equal(clips.x0[:, 0], clips.x0[:, 3]) and torch.equal(
        clips.x0[:, 5], clips.x0[:, 7]
    )
    starts = clips.positions[:, :, 0]
    assert (starts[:, 0] == 0).all() and (starts[:, 2] - starts[:, 1] == BLOCK).all()
    assert (starts[:, 1] == 0).equal(clips.sink < 0) and starts.max() < BLOCK * (FARTHEST_BLOCK + 2)
    changed = (clips.words[:, 5] != clips.words[:, 0]).any(1)
    assert 0.2 < changed.float().mean() < 0.6
    assert torch.equal(clips.x0[clips.sink < 0][:, 0], clips.x0[clips.sink < 0][:, 1])


def test_shapes_move_on_where_they_were():
    from clips import block_places

    words = torch.tensor([[[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 3, 0], [0, 0, 3, 0]]])
    for seed in range(4):
        found = block_places(words, torch.tensor([1]), torch.Generator().manual_seed(seed))[0]
        steps = found.flatten(0, 1).diff(dim=0)
        assert steps[:2].tolist() == [[1, 0]] * 2
        assert steps[3:5].tolist() == [[1, 0]] * 2
        assert steps[5:].tolist() == [[0, 1]] * 6
        assert ((found[1, 0] - found[0, 2]) % PLACES).tolist() == [1, 0] or steps[2].any()


def options(**changes: object) -> argparse.Namespace:
    return argparse.Namespace(**{"shift": 3.0, "context_noise": 0.1, **changes})


def one_step(training: train.Training, world: LatentWorld) -> float:
    generator = torch.Generator().manual_seed(training.done["step"])
    clips = make_clips(world, 1, STAGES[1], 0.3, generator)
    forward = TrainForward(CONFIG, GRID, compile=False)
    loss = train.losses(training, forward, clips, 1, options(), generator, torch.float32).mean()
    grads = torch.autograd.grad(loss, list(training.params.values()))
    training.apply(dict(zip(training.params, grads, strict=True)), 1e-3)
    return float(loss)


def test_a_resumed_training_is_the_same_training(world, tmp_path):
    whole = train.Training(0)
    losses = [one_step(whole, world) for _ in range(2)]
    assert losses[0] != losses[1]
    first = train.Training(0)
    assert one_step(first, world) == losses[0]
    first.save(tmp_path / "state.pt")
    second = train.Training(5)
    second.load(tmp_path / "state.pt")
    assert one_step(second, world) == losses[1]
    assert second.done == whole.done
    for name, param in whole.params.items():
        assert torch.equal(param, second.params[name])
        assert torch.equal(whole.ema[name], second.ema[name])
