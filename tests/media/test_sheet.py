"""The contact sheet: which frames, where, and how large."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vidk.media import write_video
from vidk.media.sheet import MAX_FRAMES, SheetSink, choose


def levels(count: int, height: int = 4, width: int = 200) -> np.ndarray:
    # Frame k is one flat colour that spells k, so that a sheet can be read back.
    index = np.arange(count)
    colours = np.stack([200 + 0 * index, index // 256, index % 256], axis=-1)
    return np.broadcast_to(colours[:, None, None], (count, height, width, 3)).astype(np.uint8)


def shown(path) -> list[int]:
    sheet = np.asarray(Image.open(path)).astype(int)
    flat = sheet[sheet[..., 0] == 200]
    return sorted({int(g * 256 + b) for _, g, b in flat if g < 4})


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 700))
def test_the_choice_is_even_whatever_the_length(tmp_path_factory, count):
    sink = SheetSink(tmp_path_factory.mktemp("sheet") / "a.png", (4, 200), Fraction(16))
    for frame in levels(count):
        sink.write(frame)
        assert len(sink._kept) <= 2 * MAX_FRAMES  # memory does not grow with the video
    sink.finish()
    got = shown(sink._path)
    assert len(got) == min(count, MAX_FRAMES)
    assert (got[0], got[-1]) == (0, count - 1)
    assert set(got) <= set(range(count))
    if count > MAX_FRAMES:
        assert np.diff(got).max() <= 3 * (count - 1) / (MAX_FRAMES - 1)
        assert sink.notes == [f"shows {MAX_FRAMES} of {count} frames"]


def test_choose_keeps_all_of_a_few():
    assert choose([0, 5, 9], 24) == [0, 5, 9]
    assert choose(list(range(100)), 4) == [0, 33, 66, 99]


def test_frames_are_whole_and_exact(tmp_path, clip):
    frames = clip(6, 180, 300)
    write_video(frames, tmp_path / "a.png")
    sheet = np.asarray(Image.open(tmp_path / "a.png"))
    assert sheet.shape[1] > sheet.shape[0]
    windows = np.lib.stride_tricks.sliding_window_view(sheet[:, :, 0], (1, 300))
    tops, lefts, _, _ = np.nonzero((windows == frames[0, 0, :, 0]).all((2, 3))[..., None, None])
    corners = sorted({(int(t), int(x)) for t, x in zip(tops, lefts, strict=True)})
    found = [sheet[t : t + 180, x : x + 300] for t, x in corners]
    found = [picture for picture in found if picture.shape == (180, 300, 3)]
    for frame in frames:
        assert any((picture == frame).all() for picture in found)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 5), (480, 832), (2000, 30)])
def test_extreme_sizes_give_a_sheet_of_reasonable_size(tmp_path, height, width):
    write_video(np.full((5, height, width, 3), 90, np.uint8), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as sheet:
        assert 40 < max(sheet.size) < 2200
        assert (np.asarray(sheet) == 90).all(-1).any()


def test_every_frame_has_a_label(tmp_path):
    write_video(np.full((3, 100, 100, 3), 24, np.uint8), tmp_path / "a.png", fps=2)
    sheet = np.asarray(Image.open(tmp_path / "a.png")).astype(int)
    # Frames as dark as the paper: whatever is bright is a label.
    bright = (sheet.min(-1) > 120).any(axis=0)
    starts = np.flatnonzero(np.diff(bright.astype(int)) == 1)
    groups = 1 + (np.diff(starts) > 40).sum()
    assert groups == 3
