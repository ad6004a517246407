"""Streaming sessions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.tiny import tiny_model, tiny_prompt
from vidk.models import CausalWan
from vidk.rollout import Schedule, Session

SIZE = (4, 6)
Prompt = tuple[Tensor, Tensor]


def session(model: CausalWan, prompt: Prompt, **options: object) -> Session:
    return Session(model, *prompt, SIZE, **{"frames": 6, "sink": 1, "seed": 7, **options})


def clip(s: Session, frames: int, **options: object) -> Tensor:
    return torch.cat([b.latents for b in s.generate(frames, **options)], dim=1)


def test_streamed_is_one_shot(model: CausalWan, prompt: Prompt) -> None:
    whole = clip(session(model, prompt), 15)
    streamed = session(model, prompt)
    parts = [clip(streamed, n) for n in (3, 6, 6)]
    assert torch.equal(torch.cat(parts, dim=1), whole)


def test_a_block_is_there_before_the_next_is_made(model: CausalWan, prompt: Prompt) -> None:
    s = session(model, prompt)
    stream = s.generate(9)
    for start in (0, 3, 6):
        block = next(stream)
        assert block.start_frame == start
        assert s.frame == start + 3
        assert len(block.forward_seconds) == 5
        assert 0 < block.seconds == sum(block.forward_seconds)
    assert next(stream, None) is None


def test_seeds(model: CausalWan, prompt: Prompt) -> None:
    a, b = (clip(session(model, prompt, seed=3), 6) for _ in range(2))
    assert torch.equal(a, b)
    assert not torch.allclose(a, clip(session(model, prompt, seed=4), 6), atol=0.1)


def test_every_part_of_the_past_matters(model: CausalWan, prompt: Prompt) -> None:
    """The sink, the window and the prompt reach the last block."""
    base = clip(session(model, prompt), 15)[:, -3:]
    changed = {
        "sink": session(model, prompt, sink=0),
        "window": session(model, prompt, frames=5),
        "prompt": session(model, tiny_prompt(model, seed=1)),
        "steps": session(model, prompt, schedule=Schedule(2)),
        "context noise": session(model, prompt, context_noise=100.0),
    }
    for name, other in changed.items():
        assert (clip(other, 15)[:, -3:] - base).abs().max() > 1e-3, name


def test_independent_first_frame(model: CausalWan, prompt: Prompt) -> None:
    s = session(model, prompt, independent_first_frame=True)
    sizes = [b.latents.size(1) for b in s.generate(7)]
    assert sizes == [1, 3, 3]
    assert [b.latents.size(1) for b in s.generate(3)] == [3]


def test_initial_latents_are_continued(model: CausalWan, prompt: Prompt) -> None:
    whole = clip(session(model, prompt), 9)
    continued = session(model, prompt)
    rest = clip(continued, 3, initial_latents=whole[:, :6])
    assert torch.equal(rest, whole[:, 6:])
    with pytest.raises(ValueError, match="got them at frame 9, expected only at the start"):
        continued.condition(whole[:, :3])


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ((1, 4, 16, 4, 6), "got 4 frames, expected whole blocks of 3"),
        ((1, 3, 16, 4, 8), "got shape [1, 3, 16, 4, 8], expected [B, F, C, h, w] with"),
        ((3, 16, 4, 6), "got shape [3, 16, 4, 6]"),
    ],
)
def test_wrong_initial_latents(
    model: CausalWan, prompt: Prompt, shape: tuple[int, ...], text: str
) -> None:
    with pytest.raises(ValueError) as error:
        session(model, prompt).condition(torch.zeros(shape))
    assert text in str(error.value)


def test_snapshot_and_restore(model: CausalWan, prompt: Prompt) -> None:
    s = session(model, prompt)
    clip(s, 9)
    saved = s.snapshot()
    expected = clip(s, 9)
    s.set_prompt(*tiny_prompt(model, seed=1), recache=True)
    clip(s, 3)
    s.restore(saved)
    assert s.frame == 9
    assert torch.equal(clip(s, 9), expected)


def test_cancel_and_go_on(model: CausalWan, prompt: Prompt) -> None:
    whole = clip(session(model, prompt), 9)
    s = session(model, prompt)
    calls = 0
    forward = s._forward

    def cancelling(*args: object) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 7:
            s.cancel()
        return forward(*args)

    s._forward = cancelling
    done = clip(s, 9)
    assert calls == 7
    assert s.frame == 3
    assert torch.equal(torch.cat([done, clip(s, 6)], dim=1), whole)


def test_prompt_switch_keeps_or_recaches(model: CausalWan, prompt: Prompt) -> None:
    other = tiny_prompt(model, seed=1, tokens=4)
    kept, recached = session(model, prompt), session(model, prompt)
    past = clip(kept, 12)
    clip(recached, 12)
    before = kept.cache.k.clone()
    kept.set_prompt(*other)
    assert torch.equal(kept.cache.k, before)
    recached.set_prompt(*other, recache=True)

    fresh = session(model, other)
    for start in sorted(recached._history):
        fresh.frame = start
        fresh.cache.place(start, 3)
        fresh._commit(past[:, start : start + 3])
    n = int(fresh.cache.kv_len)
    assert n == int(recached.cache.kv_len)
    assert torch.equal(recached.cache.k[:, :, :n], fresh.cache.k[:, :, :n])
    a, b, c = (clip(s, 3) for s in (kept, recached, fresh))
    assert torch.equal(b, c)
    assert not torch.allclose(a, b, atol=1e-4)


def test_progress_bar(model: CausalWan, prompt: Prompt, capfd: pytest.CaptureFixture[str]) -> None:
    clip(session(model, prompt), 6, progress=True)
    assert "10/10" in capfd.readouterr().err


def test_batch_rows_are_independent(model: CausalWan, prompt: Prompt) -> None:
    other = tiny_prompt(model, seed=1, tokens=4)
    both = tuple(torch.cat(pair) for pair in zip(prompt, other, strict=True))
    noise = {0: torch.randn(2, 3, 16, *SIZE), 1: torch.randn(2, 3, 16, *SIZE)}

    def rows(index: slice):  # type: ignore[no-untyped-def]
        return lambda start, step, shape: noise[step % 2][index]

    double = Session(model, *both, SIZE, noise=rows(slice(0, 2)))
    single = Session(model, *other, SIZE, noise=rows(slice(1, 2)))
    assert torch.allclose(clip(double, 6)[1:], clip(single, 6), atol=2e-5)


def test_euler_draws_noise_only_at_the_start_of_a_block(model: CausalWan, prompt: Prompt) -> None:
    drawn = []

    def noise(start: int, step: int, shape: tuple[int, ...]) -> Tensor:
        drawn.append((start, step))
        return torch.ones(tuple(shape))

    schedule = Schedule(3, sampler="euler")
    clip(session(model, prompt, noise=noise, schedule=schedule), 6)
    assert drawn == [(0, 0), (3, 0)]


def test_a_model_that_predicts_x0(model: CausalWan, prompt: Prompt) -> None:
    for sampler in ("renoise", "euler"):
        schedule = Schedule(2, sampler=sampler)
        flow = session(model, prompt, schedule=schedule)
        # The same x0, by a model that says it at once.
        wrapped = tiny_model(prediction="x0")
        plain = wrapped.forward

        def x0(x: Tensor, times: Tensor, *rest: object, plain=plain) -> Tensor:
            level = (times / 1000)[:, :, None, None, None]
            return x - level * plain(x, times, *rest)

        wrapped.forward = x0
        expected, found = clip(flow, 6), clip(session(wrapped, prompt, schedule=schedule), 6)
        assert torch.allclose(found, expected, atol=1e-4)
