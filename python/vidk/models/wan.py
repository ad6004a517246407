"""The causal Wan transformer: original parameter names, vidk ops, one traceable graph.

Source: Wan 2.1 `WanModel`, Self-Forcing `CausalWanModel`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vidk.cache import KVCache
from vidk.cache_kinds import SORTED_RECIPES, channel_order
from vidk.models.config import WanConfig
from vidk.models.context import TextContext
from vidk.models.layers import (
    AffineLayerNorm,
    Linear,
    RMSNorm,
    layer_norm,
    linear,
    norm_eps,
    timestep_embedding,
)
from vidk.ops.attention import cross_attention
from vidk.parallel.exchange import Exchange

# What a cache's `write` and `query` return and its `read` takes.
Query = tuple[Tensor, ...]


class SelfAttention(nn.Module):
    """Causal self-attention: new tokens against every cached token, no mask."""

    exchange: Exchange | None = None

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.config, self.heads = config, config.num_heads
        self.q, self.k, self.v, self.o = (Linear(config.dim, config.dim) for _ in range(4))
        self.norm_q = RMSNorm(config)
        self.norm_k = RMSNorm(config)

    def write(self, x: Tensor, cache: KVCache, layer: int, frames: int) -> Query:
        """Cache the keys and values of `[B, F, n, C]`; return the query as the cache reads it.

        On a rank of several the query is still to be exchanged, see `Exchange.write`.
        """
        weights = (self.norm_q.weight, self.norm_k.weight)
        eps = norm_eps(self.config)
        if self.exchange is not None:
            projections = (self.q, self.k, self.v)
            return (self.exchange.write(x, projections, weights, eps, cache, layer, frames),)
        heads = (self.heads, -1)
        q, k, v = (f(x).flatten(1, 2).unflatten(2, heads) for f in (self.q, self.k, self.v))
        return cache.write(layer, frames, (q, k, v), weights, eps)

    def read(self, q: Query, cache: KVCache, layer: int) -> Tensor:
        """Attend to the valid part of the cache; return `[B, F, n, C]`."""
        if self.exchange is not None:
            q = cache.query(layer, self.exchange.queries(*q))
        # Attention over FP8 values has bfloat16 results.
        out = cache.read(layer, q).type_as(self.o.weight)
        if self.exchange is None:
            return self.o(out.flatten(2)).unflatten(1, (-1, cache.frame_tokens))
        mine = self.exchange.outputs(out)
        return self.o(mine).unflatten(1, (-1, self.exchange.layout.group_tokens))

    def channel_order(self) -> Tensor:
        """Return `cache_kinds.channel_order` of the heads, `[H, D]`, as far as weights tell it.

        Hidden states are layer-normed: were their channels independent, a projected channel would
        have the squared norm of its row of weights, and the square of its bias.
        """

        def energy(linear: nn.Linear, norm: RMSNorm) -> Tensor:
            sizes = linear.weight.float().square().sum(1)
            if linear.bias is not None:
                sizes = sizes + linear.bias.float().square()
            return (sizes * norm.weight.float().square()).unflatten(0, (self.heads, -1))

        return channel_order(energy(self.q, self.norm_q), energy(self.k, self.norm_k))


class CrossAttention(nn.Module):
    """Attention to the prompt; its keys and values are computed once per prompt."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.heads = config.num_heads
        self.q, self.k, self.v, self.o = (Linear(config.dim, config.dim) for _ in range(4))
        self.norm_q = RMSNorm(config)
        self.norm_k = RMSNorm(config)

    def encode(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and values `[B, L, H, D]` of embedded text `[B, L, C]`."""
        heads = (self.heads, -1)
        return self.norm_k(self.k(text)).unflatten(2, heads), self.v(text).unflatten(2, heads)

    def forward(self, x: Tensor, context: TextContext, layer: int) -> Tensor:
        """Attend to the prompt; `[B, F, n, C]` to `[B, F, n, C]`."""
        q = self.norm_q(self.q(x)).flatten(1, 2).unflatten(2, (self.heads, -1))
        out = cross_attention(
            q, context.k.select(0, layer), context.v.select(0, layer), context.lens
        )
        return self.o(out.flatten(2)).view_as(x)


def spread(parts: Sequence[Tensor], groups: Tensor | None) -> Sequence[Tensor]:
    """Give modulations `[B, F, 1, C]` of frames to groups of tokens, by each group's frame."""
    return parts if groups is None else [part.index_select(1, groups) for part in parts]


class Block(nn.Module):
    """One transformer layer, in two halves: what fills the cache, and what reads it.

    Hidden states are `[B, F, n, C]`, n tokens a frame, and modulations `[B, F, 1, C]`. On a rank of
    several they are `[B, G, m, C]`, see `vidk.parallel.Layout`, with the frames of the `groups`.
    """

    def __init__(self, config: WanConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        self.modulation = nn.Parameter(torch.zeros(1, 6, config.dim))
        self.self_attn = SelfAttention(config)
        self.norm3 = AffineLayerNorm(config) if config.cross_attn_norm else nn.Identity()
        self.cross_attn = CrossAttention(config)
        self.ffn = nn.Sequential(
            Linear(config.dim, config.ffn_dim),
            nn.GELU(approximate="tanh"),
            Linear(config.ffn_dim, config.dim),
        )

    def fill(self, x: Tensor, time: Tensor, cache: KVCache, groups: Tensor | None) -> Query:
        """Write this layer's keys and values; return the queries."""
        parts = (self.modulation.unsqueeze(1) + time).chunk(6, dim=2)[:2]
        shift, scale = spread(parts, groups)
        y = layer_norm(x, self.config) * (1 + scale) + shift
        return self.self_attn.write(y, cache, self.layer, time.size(1))

    def attend(
        self,
        x: Tensor,
        q: Query,
        time: Tensor,
        cache: KVCache,
        context: TextContext,
        groups: Tensor | None,
    ) -> Tensor:
        """Self-attention over the cache, cross-attention and FFN; return the new `[B, F, n, C]`."""
        parts = (self.modulation.unsqueeze(1) + time).chunk(6, dim=2)[2:]
        gate1, shift, scale, gate2 = spread(parts, groups)
        x = x + self.self_attn.read(q, cache, self.layer) * gate1
        x = x + self.cross_attn(self.norm3(x), context, self.layer)
        y = self.ffn(layer_norm(x, self.config) * (1 + scale) + shift)
        return x + y * gate2


class Head(nn.Module):
    """Projection of the tokens to the patches of the flow."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.config = config
        _, ph, pw = config.patch_size
        self.head = Linear(config.dim, config.out_channels * ph * pw)
        self.modulation = nn.Parameter(torch.zeros(1, 2, config.dim))

    def forward(self, x: Tensor, time: Tensor, groups: Tensor | None) -> Tensor:
        """Map `[B, F, n, C]` and the time embedding `[B, F, 1, C]` to `[B, F, n, patch values]`."""
        shift, scale = spread((self.modulation.unsqueeze(1) + time).chunk(2, dim=2), groups)
        return self.head(layer_norm(x, self.config) * (1 + scale) + shift)


class CausalWan(nn.Module):
    """A Wan transformer that generates a video block by block against a KV cache.

    Parameters carry the names of the original Wan / Self-Forcing checkpoints. The whole forward is
    one graph: where a block lies in the video and in the cache is device data of `KVCache`.
    """

    blocks: Sequence[Block]

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        if not config.qk_norm:
            raise ValueError(
                "vidk.CausalWan: qk_norm: got False, expected True: the fused op normalises q and k"
            )
        self.config = config
        self.exchange: Exchange | None = None
        self.patch_embedding = nn.Conv3d(
            config.in_channels, config.dim, config.patch_size, config.patch_size
        )
        self.text_embedding = nn.Sequential(
            Linear(config.text_dim, config.dim),
            nn.GELU(approximate="tanh"),
            Linear(config.dim, config.dim),
        )
        self.time_embedding = nn.Sequential(
            Linear(config.freq_dim, config.dim), nn.SiLU(), Linear(config.dim, config.dim)
        )
        self.time_projection = nn.Sequential(nn.SiLU(), Linear(config.dim, 6 * config.dim))
        layers = [Block(config, i) for i in range(config.num_layers)]
        self.blocks = nn.ModuleList(layers)  # type: ignore[assignment]
        self.head = Head(config)

    def parallelize(self, exchange: Exchange | None) -> None:
        """Share each block with the other ranks of an exchange; caches made from now on fit it."""
        self.exchange = exchange
        for block in self.blocks:
            block.self_attn.exchange = exchange

    def new_cache(
        self,
        latent_height: int,
        latent_width: int,
        frames: int,
        *,
        sink: int = 0,
        batch: int = 1,
        block_frames: int = 3,
        dtype: torch.dtype | None = None,
        kind: str = "plain",
        recipe: str = "default",
    ) -> KVCache:
        """Return a KV cache of `frames` slots for latents of a size. See `vidk.cache.KVCache`.

        For recipes that profit from an order of the channels it is computed from the weights.
        """
        _, ph, pw = self.config.patch_size
        if latent_height % ph or latent_width % pw or latent_height < ph or latent_width < pw:
            raise ValueError(
                f"vidk.CausalWan: latent size: got {latent_height} x {latent_width}, expected "
                f"multiples of the patch {ph} x {pw}"
            )
        weight = self.patch_embedding.weight
        perm = None
        if kind == "nvfp4" and recipe in SORTED_RECIPES:
            perm = torch.stack([block.self_attn.channel_order() for block in self.blocks])
            perm = self.exchange.own_heads(perm) if self.exchange else perm
        return KVCache(
            layers=self.config.num_layers,
            heads=self.exchange.local_heads if self.exchange else self.config.num_heads,
            head_dim=self.config.head_dim,
            height=latent_height // ph,
            width=latent_width // pw,
            frames=frames,
            sink=sink,
            batch=batch,
            block_frames=block_frames,
            dtype=dtype or weight.dtype,
            device=weight.device,
            kind=kind,
            recipe=recipe,
            perm=perm,
        )

    def new_context(self, batch: int = 1) -> TextContext:
        """Return an empty text context; `encode_text` fills it."""
        weight = self.patch_embedding.weight
        return TextContext(
            layers=self.config.num_layers,
            batch=batch,
            text_len=self.config.text_len,
            heads=self.config.num_heads,
            head_dim=self.config.head_dim,
            dtype=weight.dtype,
            device=weight.device,
        )

    @torch.no_grad()
    def encode_text(self, embeds: Tensor, lens: Tensor, context: TextContext) -> None:
        """Compute the cross-attention keys and values of a prompt, in place.

        Parameters
        ----------
        embeds : `[B, text_len, text_dim]`, zero past each row's length.
        lens : `[B]` int32, real text tokens of each row.
        """
        expected = (context.lens.numel(), self.config.text_len, self.config.text_dim)
        if tuple(embeds.shape) != expected:
            raise ValueError(
                f"vidk.CausalWan: prompt embeds: got shape {list(embeds.shape)}, expected "
                f"[B, text_len, text_dim] = {list(expected)}"
            )
        text = self.text_embedding(embeds.to(context.k.dtype))
        for i, block in enumerate(self.blocks):
            k, v = block.cross_attn.encode(text)
            context.k[i].copy_(k)
            context.v[i].copy_(v)
        context.lens.copy_(lens)

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        cache: KVCache,
        context: TextContext,
        clean: Tensor | None = None,
    ) -> Tensor:
        """Predict the flow of one block and leave its keys and values in the cache.

        Parameters
        ----------
        latents : `[B, F, in_channels, h, w]`, the dtype of the model.
        timesteps : `[B, F]` float32, one per latent frame, 0 to 1000.
        cache : placed on this block by `KVCache.place`.
        context : the prompt, filled by `encode_text`.
        clean : bool tensor on the CPU, no dimensions. True skips all that only the flow needs: the
            last layer's attention and FFN and the head; the result is then zeros. The branch is
            `torch.cond`, so both kinds of call are one graph.

        Returns
        -------
        `[B, F, out_channels, h, w]`, what `config.prediction` says (the flow, or x0), the dtype of
        the model.
        """
        self._check_latents(latents, cache)
        exchange, frames = self.exchange, latents.size(1)
        x = self._patchify(latents)
        groups = None if exchange is None else exchange.layout.frame_of_group(frames, x.device)
        emb = timestep_embedding(timesteps, self.config.freq_dim).type_as(x)
        emb = self.time_embedding(emb)
        time = self.time_projection(emb).unflatten(2, (6, -1))
        *body, last = self.blocks
        for block in body:
            q = block.fill(x, time, cache, groups)
            x = block.attend(x, q, time, cache, context, groups)
        q = last.fill(x, time, cache, groups)

        def flow(x: Tensor, q: Query) -> Tensor:
            y = last.attend(x, q, time, cache, context, groups)
            y = self.head(y, emb.unsqueeze(2), groups)
            return self._unpatchify(y if exchange is None else exchange.gather(y, frames), cache)

        def nothing(x: Tensor, q: Query) -> Tensor:
            _, ph, pw = self.config.patch_size
            size = (self.config.out_channels, cache.height * ph, cache.width * pw)
            return x.new_zeros(x.size(0), frames, *size)

        if clean is None:
            return flow(x, q)
        if torch.compiler.is_compiling():
            return torch.cond(clean, nothing, flow, (x, q))
        return nothing(x, q) if clean else flow(x, q)

    def _check_latents(self, latents: Tensor, cache: KVCache) -> None:
        _, ph, pw = self.config.patch_size
        expected = (self.config.in_channels, cache.height * ph, cache.width * pw)
        if latents.dim() != 5 or tuple(latents.shape[2:]) != expected:
            raise ValueError(
                f"vidk.CausalWan: latents: got shape {list(latents.shape)}, expected "
                f"[B, F, C, h, w] with C, h, w = {list(expected)}, the size of the cache"
            )

    def _patchify(self, latents: Tensor) -> Tensor:
        """`[B, F, c, h, w]` to `[B, F, n, C]`: the patch convolution as one matrix product.

        On a rank of several, only its tokens.
        """
        _, ph, pw = self.config.patch_size
        x = latents.unflatten(4, (-1, pw)).unflatten(3, (-1, ph))  # b f c y p x q
        x = x.permute(0, 1, 3, 5, 2, 4, 6).flatten(4).flatten(2, 3)
        if self.exchange is not None:
            x = self.exchange.layout.split(x)
        return linear(x, self.patch_embedding.weight.flatten(1), self.patch_embedding.bias)

    def _unpatchify(self, x: Tensor, cache: KVCache) -> Tensor:
        """Patches `[B, F, n, ph * pw * c]` to `[B, F, c, h, w]`."""
        _, ph, pw = self.config.patch_size
        x = x.unflatten(3, (ph, pw, self.config.out_channels))
        x = x.unflatten(2, (cache.height, cache.width))
        return x.permute(0, 1, 6, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)
