"""Video, picture and latent files: read, write, whole or not at all."""

from vidk.media.latents import read_latents, write_latents
from vidk.media.output import SUFFIXES, MediaError, check_output
from vidk.media.read import fit_frames, read_image, read_video
from vidk.media.writer import VideoWriter, write_video

__all__ = [
    "SUFFIXES",
    "MediaError",
    "VideoWriter",
    "check_output",
    "fit_frames",
    "read_image",
    "read_latents",
    "read_video",
    "write_latents",
    "write_video",
]
