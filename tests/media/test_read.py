"""Reading first frames: whole, upright, counted, and damaged."""

import struct

import numpy as np
import pytest
import torch
from PIL import Image

from vidk.media import MediaError, fit_frames, read_image, read_video, write_video


@pytest.fixture
def video(tmp_path, clip):
    frames = clip(11, 32, 48)
    write_video(frames, tmp_path / "v.mp4")
    return tmp_path / "v.mp4", frames


def test_head_and_tail(video):
    path, _ = video
    whole = read_video(path)
    assert whole.dtype == torch.uint8
    assert torch.equal(read_video(path, 5), whole[:5])
    assert torch.equal(read_video(path, 5, tail=True), whole[-5:])
    assert torch.equal(read_video(path, 11), whole)
    assert not torch.equal(whole[:5], whole[-5:])


def test_too_few_frames(video):
    with pytest.raises(MediaError, match=r"v\.mp4: got 11 frames, expected at least 12"):
        read_video(video[0], 12)
    with pytest.raises(MediaError, match="frames: got 0, expected at least 1"):
        read_video(video[0], 0)


def test_a_picture_is_a_video_of_one_frame(tmp_path, clip):
    frame = clip(1, 10, 14)[0]
    Image.fromarray(frame).save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png").numpy() == frame).all()
    assert (read_video(tmp_path / "a.png").numpy() == frame[None]).all()


def test_modes_and_orientation(tmp_path):
    picture = Image.new("RGBA", (4, 2), (200, 100, 50, 0))
    picture.putpixel((0, 0), (200, 100, 50, 255))
    picture.save(tmp_path / "alpha.png")
    pixels = read_image(tmp_path / "alpha.png")
    assert pixels[0, 0].tolist() == [200, 100, 50]
    assert pixels[1, 3].tolist() == [0, 0, 0]

    Image.new("L", (4, 2), 77).save(tmp_path / "grey.png")
    assert (read_image(tmp_path / "grey.png") == 77).all()

    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    Image.new("RGB", (40, 20)).save(tmp_path / "phone.jpg", exif=exif)
    assert read_image(tmp_path / "phone.jpg").shape == (40, 20, 3)


def test_a_rotated_video_is_turned_upright(video):
    path, frames = video
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # the display matrix of a version 0 track header
    # As a phone held upright writes it: show the stored picture turned clockwise.
    data[at : at + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 32 << 16, 0, 1 << 30)
    path.write_bytes(data)
    back = read_video(path).numpy().astype(int)
    assert back.shape == (11, 48, 32, 3)
    assert np.abs(back - np.rot90(frames, -1, axes=(1, 2))).mean() < 3


def test_missing_and_wrong_files(tmp_path):
    for read in (read_image, read_video):
        with pytest.raises(MediaError, match=r"none\.mp4: does not exist"):
            read(tmp_path / "none.mp4")
        with pytest.raises(MediaError, match="is a folder"):
            read(tmp_path)
        (tmp_path / "text.mp4").write_text("not a video")
        with pytest.raises(MediaError, match=r"text\.mp4: cannot be read as a "):
            read(tmp_path / "text.mp4")


def test_a_truncated_video_is_an_error_or_shorter_never_a_crash(video):
    path, frames = video
    data = path.read_bytes()
    for keep in (0, 20, data.index(b"mdat") - 8, len(data) - 40, len(data) // 2):
        path.write_bytes(data[:keep])
        with pytest.raises(MediaError, match=r"v\.mp4: "):
            read_video(path, len(frames))


def test_a_truncated_picture(tmp_path, clip):
    Image.fromarray(clip(1, 64, 64)[0]).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(MediaError, match=r"a\.png: cannot be read as a picture"):
        read_image(tmp_path / "a.png")


def test_sound_alone_is_no_video(tmp_path):
    samples = b"\0\0" * 800
    header = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + len(samples), b"WAVE", b"fmt ", 16,
                         1, 1, 8000, 16000, 2, 16, b"data", len(samples))  # fmt: skip
    (tmp_path / "a.wav").write_bytes(header + samples)
    with pytest.raises(MediaError, match=r"a\.wav: holds no video"):
        read_video(tmp_path / "a.wav")


def test_fit_covers_and_crops_the_centre():
    frames = torch.zeros(2, 20, 60, 3, dtype=torch.uint8)
    frames[:, :, 20:40] = 255
    fitted = fit_frames(frames, (40, 40))
    assert fitted.shape == (2, 40, 40, 3)
    assert (fitted[:, :, 1:-1] > 240).all()  # Lanczos rings at the edge
    assert fit_frames(frames, (20, 60)) is frames
