"""The writer's promises that hold for every format."""

import errno
import os

import numpy as np
import pytest
import torch

from vidk.media import SUFFIXES, MediaError, VideoWriter, check_output, write_video

VIDEO = (".mp4", ".gif", ".png")


@pytest.fixture(params=VIDEO)
def out(request, tmp_path):
    return tmp_path / f"out{request.param}"


def assert_untouched(path, before=b"precious"):
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_blocks_of_any_kind_give_the_bytes_of_one_array(out, clip):
    frames = clip(9, 32, 48)
    write_video(frames, out)
    whole = out.read_bytes()
    strided = np.repeat(frames, 2, axis=2)[:, :, ::2]
    blocks = [frames[:1], torch.from_numpy(frames[1:4]), frames[4:4], strided[4:]]
    writer = write_video(iter(blocks), out)
    assert out.read_bytes() == whole
    assert writer.frames == 9
    assert [p.name for p in out.parent.iterdir()] == [out.name]


def test_streaming_writes_nothing_visible_before_the_end(out, clip):
    with VideoWriter(out, fps=8, size=(32, 48)) as writer:
        writer.write(clip(3, 32, 48))
        assert not out.exists()
    assert out.stat().st_size > 100
    umask = os.umask(0)
    os.umask(umask)
    assert out.stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, GeneratorExit])
def test_an_exception_leaves_an_existing_file_alone(out, clip, error):
    out.write_bytes(b"precious")
    with pytest.raises(error), VideoWriter(out) as writer:
        writer.write(clip(3, 32, 48))
        raise error
    assert_untouched(out)


def test_a_failing_iterator_leaves_an_existing_file_alone(out, clip):
    def blocks():
        yield clip(3, 32, 48)
        raise ZeroDivisionError

    out.write_bytes(b"precious")
    with pytest.raises(ZeroDivisionError):
        write_video(blocks(), out)
    assert_untouched(out)


def test_a_full_disk_at_the_end_leaves_an_existing_file_alone(out, clip, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    out.write_bytes(b"precious")
    monkeypatch.setattr("vidk._files.Path.replace", full)
    with pytest.raises(MediaError, match=r"out\.\w+: cannot be written: No space left on device"):
        write_video(clip(3, 32, 48), out)
    assert_untouched(out)


@pytest.mark.parametrize("stop", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
def test_a_failing_encoder_leaves_an_existing_file_alone(tmp_path, clip, monkeypatch, stop):
    def fail(_):
        raise stop

    out = tmp_path / "out.mp4"
    out.write_bytes(b"precious")
    monkeypatch.setattr("vidk.media.mp4.Mp4Sink.finish", fail)
    expected = MediaError if isinstance(stop, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        write_video(clip(3, 32, 48), out)
    assert_untouched(out)


def test_no_frames(out):
    for blocks in ([], [np.zeros((0, 8, 8, 3), np.uint8)]):
        out.write_bytes(b"precious")
        with pytest.raises(MediaError, match="got no frames, expected at least 1"):
            write_video(blocks, out)
        assert_untouched(out)


def test_changing_size(out, clip):
    with pytest.raises(MediaError, match=r"got 32 x 32 .* after frame 2, expected 32 x 48"):
        write_video([clip(2, 32, 48), clip(1, 32, 32)], out)
    assert list(out.parent.iterdir()) == []
    with pytest.raises(MediaError, match="expected 16 x 16"), VideoWriter(out, size=(16, 16)) as w:
        w.write(clip(1, 32, 48))


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.zeros((2, 8, 8, 4), np.uint8), r"shape \[2, 8, 8, 4\], expected \[n, H, W, 3\]"),
        (np.zeros((8, 8, 3), np.uint8), r"shape \[8, 8, 3\]"),
        (np.zeros((1, 0, 8, 3), np.uint8), r"shape \[1, 0, 8, 3\]"),
        (np.zeros((2, 8, 8, 3), np.float32), "dtype float32, expected uint8"),
        (torch.zeros(2, 8, 8, 3), "dtype float32, expected uint8"),
        ([[1, 2]], "got list, expected a NumPy array or a torch tensor"),
    ],
)
def test_bad_frames(tmp_path, frames, message):
    with pytest.raises(MediaError, match=message), VideoWriter(tmp_path / "a.mp4") as writer:
        writer.write(frames)


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf"), "16", 1e-9])
def test_bad_fps(tmp_path, fps):
    with pytest.raises(MediaError, match=r"fps: got .*, expected"):
        VideoWriter(tmp_path / "a.mp4", fps=fps)


def test_write_needs_the_with_block(tmp_path, clip):
    with pytest.raises(MediaError, match=r"write\(\) outside of 'with VideoWriter"):
        VideoWriter(tmp_path / "a.mp4").write(clip(1, 8, 8))


@pytest.mark.parametrize("name", ["a.avi", "a", ".mp4", "a.mp4.tmp"])
def test_unknown_suffix_lists_the_known_ones(tmp_path, name):
    known = r"expected one of \.mp4, \.gif, \.png, \.safetensors"
    with pytest.raises(MediaError, match=known):
        check_output(tmp_path / name)
    with pytest.raises(MediaError, match=r"expected one of \.mp4, \.gif, \.png$"):
        VideoWriter(tmp_path / "latents.safetensors")


def test_bad_paths(tmp_path):
    with pytest.raises(MediaError, match=r"the folder .*missing does not exist"):
        check_output(tmp_path / "missing" / "a.mp4")
    (tmp_path / "dir.mp4").mkdir()
    with pytest.raises(MediaError, match="not a regular file"):
        check_output(tmp_path / "dir.mp4")
    (tmp_path / "file").write_bytes(b"")
    for bad in (tmp_path / "file" / "a.mp4", tmp_path / ("x" * 300 + ".mp4"), "a\0.mp4"):
        with pytest.raises(MediaError):
            check_output(bad)


def test_not_writable(tmp_path, monkeypatch):
    # Root may write anywhere, so the permission is denied by hand.
    denied = tmp_path / "kept.mp4"
    denied.write_bytes(b"precious")
    monkeypatch.setattr("vidk.media.output.os.access", lambda path, _: path != denied)
    with pytest.raises(MediaError, match=r"kept\.mp4: exists and is not writable"):
        VideoWriter(denied)
    monkeypatch.setattr("vidk.media.output.os.access", lambda path, _: path != tmp_path)
    with pytest.raises(MediaError, match=r"the folder .* is not writable"):
        VideoWriter(tmp_path / "new.mp4")


def test_a_folder_that_vanishes_after_the_check(tmp_path):
    folder = tmp_path / "gone"
    folder.mkdir()
    writer = VideoWriter(folder / "a.mp4")
    folder.rmdir()
    with pytest.raises(MediaError, match=r"a\.mp4: cannot be written: No such file"), writer:
        pass


def test_a_link_is_followed(tmp_path, clip):
    (tmp_path / "real.png").write_bytes(b"old")
    (tmp_path / "link.png").symlink_to(tmp_path / "real.png")
    write_video(clip(1, 8, 8), tmp_path / "link.png")
    assert (tmp_path / "link.png").is_symlink()
    assert (tmp_path / "real.png").read_bytes().startswith(b"\x89PNG")


def test_upper_case_suffix_and_good_paths(tmp_path, clip):
    write_video(clip(1, 8, 8), tmp_path / "A.GIF")
    assert (tmp_path / "A.GIF").read_bytes().startswith(b"GIF89a")
    for suffix in SUFFIXES:
        assert check_output(tmp_path / f"b{suffix}").name == f"b{suffix}"
