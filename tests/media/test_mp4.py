"""H.264: colours, sizes, timing, fall-back, and bytes that do not depend on the clock."""

import struct

import av
import numpy as np
import pytest

from vidk.media import read_video, write_video
from vidk.media.mp4 import rgb_to_yuv420


def test_frames_come_back(tmp_path, clip):
    frames = clip(13, 64, 96)
    writer = write_video(frames, tmp_path / "a.mp4", fps=24)
    assert writer.notes == []
    back = read_video(tmp_path / "a.mp4").numpy()
    assert back.shape == frames.shape
    # Per frame, so that a frame out of order (blue steps by 16) would show.
    assert np.abs(back.astype(int) - frames).mean(axis=(1, 2, 3)).max() < 3
    with av.open(str(tmp_path / "a.mp4")) as file:
        stream = file.streams.video[0]
        assert stream.average_rate == 24
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert float(stream.duration * stream.time_base) == pytest.approx(13 / 24)


@pytest.mark.parametrize(
    "colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (90, 140, 200)]
)
def test_colours_keep_their_value(tmp_path, colour):
    frames = np.full((2, 32, 32, 3), colour, np.uint8)
    write_video(frames, tmp_path / "a.mp4")
    assert np.abs(read_video(tmp_path / "a.mp4").numpy().astype(int) - frames).max() <= 4


def test_conversion_equals_the_bt709_formula():
    rgb = np.random.default_rng(0).integers(0, 256, (16, 8, 3), dtype=np.uint8)
    red, green, blue = (rgb[..., i] / 255.0 for i in range(3))
    luma = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    chroma = [(blue - luma) / 1.8556, (red - luma) / 1.5748]
    planes = [16 + 219 * luma]
    planes += [128 + 224 * c.reshape(8, 2, 4, 2).mean(axis=(1, 3)) for c in chroma]
    expected = np.concatenate([plane.ravel() for plane in planes])
    got = rgb_to_yuv420(rgb)
    assert got.shape == (24, 8)
    assert np.abs(got.ravel() - expected).max() <= 0.51


def test_odd_sizes_are_padded_by_the_edge_and_noted(tmp_path, clip):
    frames = clip(3, 31, 45)
    writer = write_video(frames, tmp_path / "a.mp4")
    assert writer.notes == [
        "padded 45x31 to 46x32 by repeating the edge, because yuv420p needs even sizes"
    ]
    back = read_video(tmp_path / "a.mp4").numpy().astype(int)
    assert back.shape == (3, 32, 46, 3)
    assert np.abs(back[:, :31, :45] - frames).mean() < 3
    assert np.abs(back[:, 31] - back[:, 30]).mean() < 4
    write_video(clip(1, 1, 1), tmp_path / "dot.mp4")
    assert read_video(tmp_path / "dot.mp4").shape == (1, 2, 2, 3)


def test_no_clock_and_no_version_in_the_file(tmp_path, clip):
    write_video(clip(5, 32, 32), tmp_path / "a.mp4")
    data = (tmp_path / "a.mp4").read_bytes()
    for box in (b"mvhd", b"tkhd", b"mdhd"):
        at = data.index(box) + 8  # past the name, version and flags
        assert struct.unpack(">II", data[at : at + 8]) == (0, 0)
    assert b"Lavf" not in data
    # The index comes first, so that a browser can start before the end has arrived.
    assert data.index(b"moov") < data.index(b"mdat")


def test_fall_back_without_libx264(tmp_path, clip, monkeypatch):
    monkeypatch.setattr(av, "codecs_available", {"mpeg4"})
    frames = clip(6, 48, 64)
    writer = write_video(frames, tmp_path / "a.mp4")
    assert writer.codec == "mpeg4"
    assert writer.notes == ["encoded as MPEG-4 part 2, because this PyAV has no libx264"]
    first = (tmp_path / "a.mp4").read_bytes()
    write_video(frames, tmp_path / "a.mp4")
    assert (tmp_path / "a.mp4").read_bytes() == first
    back = read_video(tmp_path / "a.mp4").numpy().astype(int)
    assert np.abs(back - frames).mean() < 5
