"""How much arithmetic a forward of the model is."""

from __future__ import annotations

from vidk.models.config import WanConfig


def forward_flops(
    config: WanConfig,
    *,
    frames: int,
    frame_tokens: int,
    kv_frames: int,
    text_keys: int,
    batch: int = 1,
    clean: bool = False,
) -> int:
    """Return the FLOPs of one forward: its matrix products, two for each multiply-add.

    Parameters
    ----------
    config : sizes of the model.
    frames : latent frames of the block.
    frame_tokens : tokens of one latent frame.
    kv_frames : latent frames that are attended to, the block included.
    text_keys : text keys that are attended to: the real tokens, and one more for all the padding.
    batch : batch size.
    clean : the clean re-run, which leaves out the last layer's tail and the head.
    """
    c = config.dim
    tokens = frames * frame_tokens
    _, ph, pw = config.patch_size

    def linear(rows: int, *sizes: tuple[int, int]) -> int:
        return sum(2 * rows * fan_in * fan_out for fan_in, fan_out in sizes)

    def attention(keys: int) -> int:
        return 4 * tokens * keys * c

    square = (c, c)
    fill = linear(tokens, square, square, square)
    cross = linear(tokens, square, square) + attention(text_keys)
    ffn = linear(tokens, (c, config.ffn_dim), (config.ffn_dim, c))
    attend = attention(kv_frames * frame_tokens) + linear(tokens, square) + cross + ffn
    patches = linear(tokens, (config.in_channels * ph * pw, c))
    head = linear(tokens, (c, config.out_channels * ph * pw))
    time = linear(frames, (config.freq_dim, c), square, (c, 6 * c))
    layers = config.num_layers
    tails = (layers - 1) * attend if clean else layers * attend + head
    return batch * (time + patches + layers * fill + tails)
