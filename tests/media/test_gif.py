"""GIF: duration, loop and palette."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vidk.media import MediaError, read_video, write_video
from vidk.media.gif import delays


@given(st.integers(1, 300), st.fractions(min_value=1, max_value=50, max_denominator=1001))
def test_delays_never_drift(count, fps):
    times = delays(count, fps)
    assert len(times) == count
    assert all(time % 10 == 0 and time >= 20 for time in times)
    assert abs(sum(times) - 1000 * count / fps) <= 5


def test_duration_loop_and_pixels(tmp_path, clip):
    frames = clip(9, 48, 64)
    write_video(frames, tmp_path / "a.gif", fps=16)
    with Image.open(tmp_path / "a.gif") as file:
        assert file.info["loop"] == 0
        assert file.n_frames == 9
        total = 0
        for index in range(file.n_frames):
            file.seek(index)
            total += file.info["duration"]
    assert total == 560  # 9/16 s in whole 1/100 s
    back = read_video(tmp_path / "a.gif").numpy().astype(int)
    assert np.abs(back - frames).mean(axis=(1, 2, 3)).max() < 12
    # Dithering: off by some levels at a pixel, hardly at all on average.
    assert np.abs(back.mean(axis=(1, 2)) - frames.mean(axis=(1, 2))).max() < 1.5


def test_a_still_lasts_as_long_as_its_frames(tmp_path, clip):
    write_video(np.repeat(clip(1, 16, 16), 8, axis=0), tmp_path / "a.gif", fps=4)
    with Image.open(tmp_path / "a.gif") as file:
        assert (file.n_frames, file.info["duration"]) == (1, 2000)


def test_few_colours_are_exact(tmp_path):
    frames = np.zeros((2, 20, 20, 3), np.uint8)
    frames[0, :10] = (200, 30, 60)
    frames[1, 10:] = (10, 250, 90)
    write_video(frames, tmp_path / "a.gif")
    assert (read_video(tmp_path / "a.gif").numpy() == frames).all()


@pytest.mark.parametrize("fps", [60, 0.0011])
def test_too_fast_or_slow(tmp_path, clip, fps):
    with pytest.raises(MediaError, match=r"fps: got [0-9.]+, expected 0\.002 to 50 for \.gif"):
        write_video(clip(2, 16, 16), tmp_path / "a.gif", fps=fps)
    assert list(tmp_path.iterdir()) == []


def test_the_slowest_and_the_fastest(tmp_path, clip):
    write_video(clip(2, 16, 16), tmp_path / "a.gif", fps=0.002)
    with Image.open(tmp_path / "a.gif") as file:
        assert file.info["duration"] == 500_000
    assert delays(3, Fraction(50)) == [20, 20, 20]
