"""The training of the bundled model: its forward is the product's, and it can be resumed."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "train_bundled"))
import export
import train
from clips import FARTHEST_BLOCK, STAGES, Clips, block_places, make_clips, sigmas
from encoder import fit
from forward import TrainForward
from world import LatentWorld

from vidk.bundled.codec import patches
from vidk.bundled.grammar import Scene, embed_words
from vidk.bundled.noise import BLOCK
from vidk.bundled.scenes import GRID, render
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
    generator = torch.Generator().manual_seed(3)
    model = seeded_model(CONFIG)
    stage = STAGES[2]
    many = make_clips(world, 40, stage, 1.0, generator)
    # A clip that begins with the video, one that does so a block later, and one far from it.
    chosen = [int((many.numbers[:, 2] == n).nonzero()[0]) for n in (0, 1)]
    chosen.append(int(many.numbers[:, 1].argmax()))
    clips = Clips(many.x0[chosen], many.words[chosen], many.numbers[chosen])
    sigma = sigmas(clips.x0.shape[:2], 3.0, generator)
    sigma[:, list(stage.clean)] = 0
    noise = torch.randn(clips.x0.shape, generator=generator)
    x = clips.x0 + sigma[:, :, None, None, None, None] * noise
    embeds = embed_words(clips.words, CONFIG.text_len, CONFIG.text_dim)
    forward = TrainForward(CONFIG, GRID, compile=False)
    params = dict(model.named_parameters())
    found = forward(params, x, sigma, embeds, clips.numbers, stage.plan)
    lens = torch.full((1,), 4, dtype=torch.int32)

    def run(cache, context, clip, instance):
        model.encode_text(embeds[clip, instance][None], lens, context)
        cache.place(int(clips.numbers[clip, instance]) * BLOCK, BLOCK)
        times = torch.full((1, BLOCK), float(sigma[clip, instance]) * 1000)
        return model(x[clip, instance][None], times, cache, context)[0]

    for clip in range(len(chosen)):
        for noisy in stage.noisy:
            cache = model.new_cache(GRID, GRID, 12, sink=BLOCK)
            context = model.new_context()
            # The clean blocks before it; one that comes twice takes the same slots.
            for instance in stage.clean:
                if clips.numbers[clip, instance] < clips.numbers[clip, noisy]:
                    run(cache, context, clip, instance)
            expected = run(cache, context, clip, noisy)
            assert torch.allclose(found[clip, noisy], expected, atol=2e-4), (clip, noisy)


def test_clips(world):
    clips = make_clips(world, 64, STAGES[2], 0.5, torch.Generator().manual_seed(2))
    numbers = clips.numbers
    assert clips.x0.shape == (64, 9, BLOCK, 16, GRID, GRID)
    assert torch.equal(clips.x0[:, 0], clips.x0[:, 4])
    assert torch.equal(clips.x0[:, 6], clips.x0[:, 8])
    assert (numbers[:, 0] == 0).all() and numbers.max() < FARTHEST_BLOCK + 3
    assert (numbers[:, 6] == numbers[:, 3] + 1).all()
    assert {0, 1, 2} <= set(numbers[:, 2].tolist()) and (numbers[:, 1] > 10).any()
    changed = (clips.words[:, 6] != clips.words[:, 0]).any(1)
    assert 0.2 < changed.float().mean() < 0.6
    for i in (1, 2):
        same = numbers[:, i] == 0
        assert torch.equal(clips.x0[same][:, 0], clips.x0[same][:, i])


def test_shapes_move_on_where_they_were():
    words = torch.tensor([[[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 3, 0], [0, 0, 3, 0]]])
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        found = block_places(words, torch.tensor([[0, 1, 2, 3]]), generator)[0]
        steps = found.flatten(0, 1).diff(dim=0)
        assert steps.tolist() == [[1, 0]] * 5 + [[0, 1]] * 6
        far = block_places(words, torch.tensor([[0, 0, 1, 9]]), generator)[0]
        assert torch.equal(far[0], far[1])
        assert (far[2, 0] - far[1, 2]).tolist() == [0, 1]
        assert far[3].diff(dim=0).tolist() == [[0, 1]] * 2


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


def test_an_export_tells_all_stages_and_figures_of_its_own_weights(tmp_path):
    early, late = ({"steps": n, "clips": 4 * n, "seconds": 0.5 * n} for n in (3, 5))
    done = {"step": 8, "clips": 32, "seconds": 4.0, "stages": [late]}
    assert export.all_stages(done, [early]) == [early, late]
    with pytest.raises(SystemExit, match="got 5 steps, expected the 8 of "):
        export.all_stages(done, [])
    report = tmp_path / "eval.json"
    report.write_text('{"model": {"steps": 7, "weights": "ema"}}')
    with pytest.raises(SystemExit, match="got a report on ema weights of 7 steps, expected ema"):
        export.measured(report, done, "ema")
