"""The model's step as the public causal Wan code runs it: same weights, its op sequence, eager."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidk import reference
from vidk.bench.baselines import public_freqs
from vidk.cache import KVCache
from vidk.models.context import TextContext
from vidk.models.layers import timestep_embedding
from vidk.models.wan import Block, CausalWan
from vidk.reference.norm_rope import rms_norm

LinearFunction = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def per_frame(x: Tensor, scale: Tensor, shift: Tensor | None = None) -> Tensor:
    """`x scale + shift` with one scale and shift `[B, F, 1, C]` a frame of `[B, S, C]`."""
    y = x.unflatten(1, (scale.size(1), -1)) * scale
    return (y if shift is None else y + shift).flatten(1, 2)


class PublicForm:
    """Steps of new blocks on a full window, against a rolling cache of its own.

    Every call starts a block: all layers shift their cache by a block through a clone, append, and
    attend to the whole window. The text keys come from the context, as the public cache has them;
    its recomputation of the text embedding in every step is left out.

    Parameters
    ----------
    model, context : the model and its encoded prompt.
    cache : a full cache, not yet placed on the new block, with frame i in slot i; copied.
    start_frame : index in the video of the block's first frame.
    linear : how linear layers are computed: `F.linear`, or that of `vidk.models.layers`.
    """

    def __init__(
        self,
        model: CausalWan,
        context: TextContext,
        cache: KVCache,
        start_frame: int,
        linear: LinearFunction = F.linear,
    ) -> None:
        self.model, self.context, self.linear = model, context, linear
        self.k, self.v = cache.k.clone(), cache.v.clone()
        self.height, self.width = cache.height, cache.width
        self.start_frame = start_frame
        self.freqs = public_freqs(model.config.head_dim, str(cache.k.device))

    def __call__(self, latents: Tensor, timesteps: Tensor) -> Tensor:
        """Predict the flow of one block, `[B, F, C, h, w]`."""
        model, config = self.model, self.model.config
        patches = model.patch_embedding
        x = F.conv3d(latents.transpose(1, 2), patches.weight, patches.bias, config.patch_size)
        x = x.flatten(2).transpose(1, 2)
        emb = timestep_embedding(timesteps, config.freq_dim).type_as(x)
        emb = self._sequential(model.time_embedding, emb)
        time = self._sequential(model.time_projection, emb).unflatten(2, (6, -1))
        for i, block in enumerate(model.blocks):
            assert isinstance(block, Block)
            x = self._block(x, time, block, i)
        shift, scale = (model.head.modulation[:, None] + emb[:, :, None]).chunk(2, dim=2)
        x = self._linear(model.head.head, self._norm(x, shift, scale))
        return self._unpatchify(x, latents.size(1))

    def _linear(self, layer: nn.Linear, x: Tensor) -> Tensor:
        return self.linear(x, layer.weight, layer.bias)

    def _sequential(self, layers: nn.Sequential, x: Tensor) -> Tensor:
        for layer in layers:
            x = self._linear(layer, x) if isinstance(layer, nn.Linear) else layer(x)
        return x

    def _norm(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        y = F.layer_norm(x, x.shape[-1:], eps=self.model.config.eps)
        return per_frame(y, 1 + scale, shift)

    def _block(self, x: Tensor, time: Tensor, block: Block, i: int) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = (block.modulation[:, None] + time).chunk(
            6, dim=2
        )
        y = self._norm(x, shift1, scale1)
        x = x + per_frame(self._self_attention(y, block, i, time.size(1)), gate1)
        x = x + self._cross_attention(block.norm3(x), block, i)
        y = self._sequential(block.ffn, self._norm(x, shift2, scale2))
        return x + per_frame(y, gate2)

    def _self_attention(self, x: Tensor, block: Block, i: int, frames: int) -> Tensor:
        layer, heads = block.self_attn, (block.self_attn.heads, -1)
        q, k, v = (self._linear(f, x).unflatten(2, heads) for f in (layer.q, layer.k, layer.v))
        k_cache, v_cache = self.k[i], self.v[i]
        new, end = x.size(1), k_cache.size(1)
        for cache in (k_cache, v_cache):
            cache[:, : end - new] = cache[:, new:end].clone()
        q = reference.qk_norm_rope_kv_write_public(
            q,
            k,
            v,
            layer.norm_q.weight,
            layer.norm_k.weight,
            self.model.config.eps,
            self.freqs,
            self.start_frame,
            (frames, self.height, self.width),
            k_cache,
            v_cache,
            end - new,
        )
        out = reference.attention_public(q, k_cache, v_cache, 0, end)
        return self._linear(layer.o, out.flatten(2))

    def _cross_attention(self, x: Tensor, block: Block, i: int) -> Tensor:
        layer = block.cross_attn
        q = rms_norm(self._linear(layer.q, x), layer.norm_q.weight, self.model.config.eps)
        q = q.unflatten(2, (layer.heads, -1))
        out = reference.cross_attention_public(q, self.context.k[i], self.context.v[i])
        return self._linear(layer.o, out.flatten(2))

    def _unpatchify(self, x: Tensor, frames: int) -> Tensor:
        _, ph, pw = self.model.config.patch_size
        x = x.view(x.size(0), frames, self.height, self.width, ph, pw, -1)
        return torch.einsum("bfhwpqc->bfchpwq", x).flatten(5, 6).flatten(3, 4)
