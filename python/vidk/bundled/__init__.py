"""The model that comes with the package: coloured shapes that move as a prompt says."""

from vidk.bundled.codec import BundledCodec
from vidk.bundled.grammar import Scene, WordEncoder
from vidk.bundled.load import bundled_codec, bundled_model, provenance

__all__ = [
    "BundledCodec",
    "Scene",
    "WordEncoder",
    "bundled_codec",
    "bundled_model",
    "provenance",
]
