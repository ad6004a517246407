"""H.264 (or MPEG-4) in .mp4 through PyAV, one frame at a time."""

from __future__ import annotations

from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

# The BT.709 limited-range matrix in 16-bit fixed point: integers give the same bytes everywhere.
_Y = (11966, 40254, 4064)
_CB = (-6596, -22189, 28784)
_CR = (28784, -26145, -2639)
_BT709, _LIMITED = 1, 1  # code points of ITU-T H.273; "limited" is AVCOL_RANGE_MPEG
_CONTAINER = {"movflags": "+faststart", "fflags": "+bitexact"}
# Rate control depends on the number of threads, and the bytes must not; nor may they change from
# run to run, as they do with macroblock trees on CPUs with AVX-512. The preset: twice as fast as
# "medium" here, at the same size within 25 %, and encoding sits between two blocks.
_OPTIONS = {
    "libx264": {
        "flags": "+bitexact",
        "threads": "1",
        "crf": "17",
        "preset": "veryfast",
        "mbtree": "0",
    },
    # 236: quantiser 2 in FFmpeg's unit of 1/118.
    "mpeg4": {"flags": "+bitexact+qscale", "threads": "1", "global_quality": "236"},
}


class Mp4Sink:
    """Encode `[H, W, 3]` frames at `fps` into the file `path`."""

    def __init__(self, path: Path, size: tuple[int, int], fps: Fraction) -> None:
        height, width = (n + n % 2 for n in size)
        self.codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        self.notes: list[str] = []
        if (height, width) != size:
            self.notes.append(
                f"padded {size[1]}x{size[0]} to {width}x{height} by repeating the edge, "
                "because yuv420p needs even sizes"
            )
        if self.codec != "libx264":
            self.notes.append("encoded as MPEG-4 part 2, because this PyAV has no libx264")
        self._pad = ((0, height - size[0]), (0, width - size[1]), (0, 0))
        self._file = av.open(str(path), "w", format="mp4", container_options=_CONTAINER)
        stream = self._file.add_stream(self.codec, rate=fps, options=_OPTIONS[self.codec])
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _LIMITED
        self._stream = stream

    def write(self, frame: np.ndarray) -> None:
        """Encode one frame `[H, W, 3]`."""
        planes = rgb_to_yuv420(np.pad(frame, self._pad, mode="edge"))
        picture = av.VideoFrame.from_ndarray(planes, format="yuv420p")
        self._file.mux(self._stream.encode(picture))

    def finish(self) -> None:
        """Flush the encoder and write the index."""
        self._file.mux(self._stream.encode(None))
        self._file.close()

    def abort(self) -> None:
        """Close the file without caring for what is in it."""
        with suppress(Exception):
            self._file.close()


def rgb_to_yuv420(rgb: np.ndarray) -> np.ndarray:
    """Return the planes of an even-sized uint8 `[H, W, 3]` picture as uint8 `[3H/2, W]`.

    Own arithmetic, because untagged conversions disagree about the matrix and the tagged ones
    of swscale are not bit-exact by default.
    """
    height, width, _ = rgb.shape
    wide = rgb.astype(np.int32)
    luma = _mix(wide, _Y, 16, shift=16)
    rows = wide[0::2] + wide[1::2]
    quads = rows[:, 0::2] + rows[:, 1::2]
    chroma = [_mix(quads, weights, 128, shift=18) for weights in (_CB, _CR)]
    planes = np.concatenate([luma.ravel(), *(plane.ravel() for plane in chroma)])
    return planes.astype(np.uint8).reshape(height * 3 // 2, width)


def _mix(rgb: np.ndarray, weights: tuple[int, int, int], offset: int, shift: int) -> np.ndarray:
    total = rgb[..., 0] * weights[0] + rgb[..., 1] * weights[1] + rgb[..., 2] * weights[2]
    mixed: np.ndarray = ((total + (1 << (shift - 1))) >> shift) + offset
    return mixed
