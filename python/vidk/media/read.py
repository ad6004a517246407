"""Pictures and videos as uint8 RGB tensors, for first frames and continuation."""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vidk.media.output import MediaError, media_errors

_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


def read_image(path: str | os.PathLike[str]) -> Tensor:
    """Return a picture file as uint8 `[H, W, 3]`, upright, transparency over black.

    Raises MediaError if the file is missing or is not a picture.
    """
    _must_exist(path)
    with media_errors(path, "read as a picture"):
        from PIL import Image, ImageOps

        with Image.open(path) as file:
            picture = ImageOps.exif_transpose(file).convert("RGBA")
        black = Image.new("RGBA", picture.size, (0, 0, 0, 255))
        flat = Image.alpha_composite(black, picture).convert("RGB")
    return torch.from_numpy(np.array(flat))


def read_video(
    path: str | os.PathLike[str], frames: int | None = None, tail: bool = False
) -> Tensor:
    """Return a video or picture file as uint8 `[n, H, W, 3]`, upright.

    Parameters
    ----------
    path : anything that FFmpeg decodes; a picture counts as a video of 1 frame.
    frames : how many to return; None means all of them (3*H*W bytes each).
    tail : take the last `frames` rather than the first, to continue where the video ends.

    Raises
    ------
    MediaError : the file is missing, damaged, holds no video, or fewer than `frames` frames.
    """
    if frames is not None and frames < 1:
        raise MediaError(f"frames: got {frames}, expected at least 1")
    if Path(path).suffix.lower() in _PICTURES:
        taken = [read_image(path)]
    else:
        _must_exist(path)
        with media_errors(path, "read as a video"):
            taken = _decode(os.path.realpath(path), frames, tail)
    if not taken or len(taken) < (frames or 1):
        raise MediaError(f"{path}: got {len(taken)} frames, expected at least {frames or 1}")
    return torch.stack(taken)


def fit_frames(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Return uint8 `[n, H, W, 3]` frames as `[n, *size, 3]`: scaled to cover, centre cropped."""
    from PIL import Image, ImageOps

    height, width = size
    if frames.shape[1:3] == (height, width):
        return frames
    fitted = [
        ImageOps.fit(Image.fromarray(frame.numpy()), (width, height), Image.Resampling.LANCZOS)
        for frame in frames.cpu()
    ]
    return torch.stack([torch.from_numpy(np.array(picture)) for picture in fitted])


def _decode(path: str, frames: int | None, tail: bool) -> list[Tensor]:
    import av
    from av.video.reformatter import Interpolation

    # Without these flags swscale darkens by up to 2 of 255; older PyAV does not have them.
    smooth = int(Interpolation.BILINEAR)
    for name in ("ACCURATE_RND", "FULL_CHR_H_INT"):
        smooth |= int(getattr(Interpolation, name, 0))
    kept: deque[Tensor] = deque(maxlen=frames if tail else None)
    with av.open(path) as file:
        if not file.streams.video:
            raise MediaError(f"{path}: holds no video")
        file.streams.video[0].thread_type = "AUTO"
        for picture in file.decode(video=0):
            pixels = picture.to_ndarray(format="rgb24", interpolation=smooth)
            # Phones store upright videos lying down, with a rotation in the header.
            turns = round(getattr(picture, "rotation", 0) / 90) % 4
            kept.append(torch.from_numpy(np.ascontiguousarray(np.rot90(pixels, turns))))
            if not tail and len(kept) == frames:
                break
    return list(kept)


def _must_exist(path: str | os.PathLike[str]) -> None:
    if not os.path.isfile(path):
        problem = "is a folder" if os.path.isdir(path) else "does not exist"
        raise MediaError(f"{path}: {problem}, expected a picture or video file")
