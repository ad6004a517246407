"""Streaming decoders: the 1 + 4 rule, streamed = whole, state, colours, and hostile input."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from vidk.vae import PreviewDecoder, VAEError, WanVAEDecoder


def noise(batch=2, frames=7, channels=16, height=4, width=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, frames, channels, height, width, generator=generator)


class FakeVAE(nn.Module):
    """The parts of AutoencoderKLWan that the adapter uses, with arithmetic one can do by hand.

    A pixel frame shows the 3 first channels of the latent before this one, from the feature cache.
    """

    class Causal(nn.Conv3d):
        pass

    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv_in = FakeVAE.Causal(16, 16, 1)
            self.other = FakeVAE.Causal(1, 1, 1)
            self.calls = []

        def forward(self, x, feat_cache=None, feat_idx=[0], first_chunk=False):  # noqa: B006
            assert len(feat_cache) == 2
            assert feat_idx == [0]
            self.calls.append((first_chunk, feat_cache[1] is None))
            before = x if feat_cache[1] is None else feat_cache[1]
            feat_cache[1] = x
            wide = before[:, :3].repeat_interleave(8, 3).repeat_interleave(8, 4)
            return wide.repeat_interleave(1 if first_chunk else 4, 2)

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(
            z_dim=16, latents_mean=[0.5] * 16, latents_std=[0.25] * 16, scale_factor_spatial=8
        )
        self.decoder = FakeVAE.Decoder()
        self.post_quant_conv = nn.Identity()

    def encode(self, video):
        picked = video[:, :1, ::4, ::8, ::8].repeat(1, 16, 1, 1, 1)
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: picked))


@pytest.fixture(params=["preview", "wan"])
def decoder(request):
    return PreviewDecoder(16) if request.param == "preview" else WanVAEDecoder.from_model(FakeVAE())


def test_streamed_equals_whole_and_counts_frames(decoder):
    latents = noise()
    whole = decoder.decode(latents, True)
    assert whole.shape == (2, 25, 32, 48, 3)
    assert whole.dtype == torch.uint8
    parts = [decoder.decode(latents[:, :3], True)]
    parts += [decoder.decode(latents[:, at : at + n], False) for at, n in ((3, 1), (4, 3))]
    assert [part.shape[1] for part in parts] == [9, 4, 12]
    assert torch.equal(torch.cat(parts, dim=1), whole)
    # A first block forgets what came before it.
    assert torch.equal(decoder.decode(latents, True), whole)
    assert whole.float().std() > 10


def test_batch_rows_are_independent(decoder):
    latents = noise()
    both = decoder.decode(latents, True)
    assert torch.equal(decoder.decode(latents[1:], True), both[1:])


def test_bad_blocks_keep_the_state(decoder):
    latents = noise()
    whole = decoder.decode(latents, True)
    decoder.decode(latents[:, :3], True)
    for bad, message in [
        (latents[:, 3:, :15], r"got shape \[2, 4, 15, 4, 6\], expected \[B, F, 16, h, w\]"),
        (latents[:, :0], r"got shape \[2, 0, 16, 4, 6\]"),
        (latents[0], r"got shape \[7, 16, 4, 6\]"),
        (latents.long(), r"got dtype torch.int64, expected a float type"),
        (latents[:1], r"expected \[2, F, 16, 4, 6\] like the block before"),
        (latents[..., :3], r"expected \[2, F, 16, 4, 6\] like the block before"),
    ]:
        with pytest.raises(VAEError, match=message):
            decoder.decode(bad, False)
    assert torch.equal(decoder.decode(latents[:, 3:], False), whole[:, 9:])


def test_a_later_block_needs_a_first_one():
    for decoder in (PreviewDecoder(16), WanVAEDecoder.from_model(FakeVAE())):
        with pytest.raises(VAEError, match="first: got False, expected True"):
            decoder.decode(noise(), False)


def test_preview_is_named_a_preview():
    assert "not the VAE" in PreviewDecoder(16).description
    with pytest.raises(VAEError, match="the preview has no encoder"):
        PreviewDecoder(16).encode(torch.zeros(1, 1, 8, 8, 3, dtype=torch.uint8))
    with pytest.raises(VAEError, match="channels: got 2, expected at least 3"):
        PreviewDecoder(2)


@pytest.mark.parametrize(("channels", "scale"), [(16, 8), (48, 16), (4, 8)])
def test_preview_fills_the_range_and_follows_the_seed(channels, scale):
    latents = noise(1, 2, channels, 20, 20)
    pixels = PreviewDecoder(channels).decode(latents, True)
    assert pixels.shape == (1, 5, 20 * scale, 20 * scale, 3)
    still = pixels[0, 0].float()
    assert 110 < still.mean() < 145
    assert 30 < still.std() < 50
    assert still.min() < 20
    assert still.max() > 235
    clipped = ((still == 0) | (still == 255)).float().mean()
    assert clipped < 0.05
    assert torch.equal(PreviewDecoder(channels).decode(latents, True), pixels)
    assert not torch.equal(PreviewDecoder(channels, seed=1).decode(latents, True), pixels)


def test_preview_map_is_orthonormal_and_linear_in_time():
    decoder = PreviewDecoder(16)
    assert torch.allclose(decoder._map.T @ decoder._map, torch.eye(3), atol=1e-6)
    # Gram-Schmidt of the seeded noise, signs included, whatever LAPACK's QR prefers.
    first = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))[:, 0]
    assert torch.allclose(decoder._map[:, 0], first / first.norm(), atol=1e-6)
    flat = torch.zeros(1, 2, 16, 2, 2)
    flat[:, 1] = 2 * decoder._map[:, 0].view(16, 1, 1)  # +2 standard deviations of red
    pixels = decoder.decode(flat, True)
    assert pixels[0, :, 5, 5, 0].tolist() == [128, 159, 191, 223, 255]
    assert (pixels[..., 1:] == 128).all()


def test_preview_of_nan_infinity_and_half_precision():
    latents = noise(1, 2)
    latents[0, 0, 0, 0, 0] = float("nan")
    latents[0, 1, 0, 0, 0] = float("inf")
    assert PreviewDecoder(16).decode(latents, True).shape == (1, 5, 32, 48, 3)
    clean = noise(1, 2)
    exact = PreviewDecoder(16).decode(clean, True).int()
    half = PreviewDecoder(16).decode(clean.bfloat16(), True).int()
    assert (exact - half).abs().max() <= 3


def test_adapter_denormalises_and_keeps_the_cache():
    vae = FakeVAE()
    decoder = WanVAEDecoder.from_model(vae)
    latents = torch.full((1, 3, 16, 2, 2), -2.0)  # -2 * 0.25 + 0.5 = 0: mid-grey
    latents[:, 1] = 2.0  # 1: white, seen one latent frame later
    assert decoder.decode(latents[:, :2], True)[0, :, 0, 0, 0].tolist() == [128] * 5
    assert decoder.decode(latents[:, 2:], False)[0, :, 0, 0, 0].tolist() == [255] * 4
    assert vae.decoder.calls == [(True, True), (False, False), (False, False)]


def test_adapter_after_a_failure_asks_for_a_first_block(monkeypatch):
    vae = FakeVAE()
    decoder = WanVAEDecoder.from_model(vae)
    decoder.decode(noise(), True)
    with monkeypatch.context() as patch:
        patch.setattr(vae, "post_quant_conv", None)
        with pytest.raises(TypeError):
            decoder.decode(noise(), False)
    with pytest.raises(VAEError, match="expected True for the first block"):
        decoder.decode(noise(), False)


def test_adapter_encodes_normalised():
    frames = torch.full((1, 5, 16, 24, 3), 255, dtype=torch.uint8)
    latents = WanVAEDecoder.from_model(FakeVAE()).encode(frames)
    assert latents.shape == (1, 2, 16, 2, 3)
    assert (latents == 2.0).all()  # (1 - 0.5) / 0.25


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((1, 6, 16, 16, 3), torch.uint8, r"got 6 frames, expected 4k \+ 1 \(give 5 of them\)"),
        ((1, 5, 20, 16, 3), torch.uint8, r"got 20 x 16 .* multiples of 8 \(such as 24 x 16\)"),
        ((5, 16, 16, 3), torch.uint8, r"expected uint8 \[B, n, H, W, 3\]"),
        ((1, 5, 16, 16, 3), torch.float32, r"expected uint8 \[B, n, H, W, 3\]"),
        ((1, 0, 16, 16, 3), torch.uint8, r"expected uint8 \[B, n, H, W, 3\]"),
    ],
)
def test_adapter_refuses_frames_that_do_not_fit(shape, dtype, message):
    with pytest.raises(VAEError, match=message):
        WanVAEDecoder.from_model(FakeVAE()).encode(torch.zeros(shape, dtype=dtype))


def test_a_decoder_without_feature_cache_is_refused():
    vae = FakeVAE()
    vae.decoder.forward = lambda x: x
    with pytest.raises(VAEError, match=r"expected diffusers >= 0\.33"):
        WanVAEDecoder.from_model(vae)


def test_missing_package_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(VAEError, match=r"diffusers is missing \(pip install vidk\[wan\]\)"):
        WanVAEDecoder(tmp_path)


@pytest.mark.parametrize("name", ["no-such-folder", "/no/such/folder", "a/b/c"])
def test_a_path_that_is_nothing(name):
    with pytest.raises(VAEError, match="neither a folder nor an id like owner/name"):
        WanVAEDecoder(name)


def test_importing_the_module_does_not_import_diffusers():
    code = "import sys, vidk.vae, vidk.text, vidk.media; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = set(done.stdout.split())
    assert "vidk.vae" in loaded
    assert not loaded & {"diffusers", "transformers", "av", "PIL"}


WAN_2_1 = {"base_dim": 4, "z_dim": 16, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1}
WAN_2_2 = {
    **WAN_2_1,
    "z_dim": 48,
    "dim_mult": [1, 2, 4, 4],
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
    "latents_mean": [0.1 * (i % 5) for i in range(48)],
    "latents_std": [0.5 + 0.1 * (i % 7) for i in range(48)],
}


@pytest.mark.parametrize("config", [WAN_2_1, WAN_2_2], ids=["wan2.1", "wan2.2"])
def test_adapter_equals_the_whole_decode_of_diffusers(config, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKLWan(**config)
    for parameter in vae.parameters():
        if parameter.dim() > 1:  # the usual initialisation leaves a tiny VAE nearly constant
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    vae.save_pretrained(tmp_path / "vae")
    decoder = WanVAEDecoder(tmp_path)
    scale = config.get("scale_factor_spatial", 8)
    assert (decoder.channels, decoder.scale) == (config["z_dim"], scale)

    latents = noise(1, 5, config["z_dim"], 2, 3)
    got = torch.cat(
        [decoder.decode(latents[:, :2], True), decoder.decode(latents[:, 2:], False)], 1
    )
    mean, std = (torch.tensor(vae.config[f"latents_{k}"]).view(-1, 1, 1) for k in ("mean", "std"))
    with torch.no_grad():
        sample = vae.decode((latents * std + mean).transpose(1, 2)).sample
    expected = ((sample + 1) * 127.5).round().permute(0, 2, 3, 4, 1)
    assert got.shape == expected.shape == (1, 17, 2 * scale, 3 * scale, 3)
    assert (got.float() - expected).abs().max() <= 1
    assert expected.std() > 20

    encoded = decoder.encode(got)
    with torch.no_grad():
        video = got.permute(0, 4, 1, 2, 3) / 127.5 - 1
        mode = vae.encode(video).latent_dist.mode().transpose(1, 2)
    torch.testing.assert_close(encoded, (mode - mean) / std)


def test_weights_that_cannot_be_loaded(tmp_path):
    pytest.importorskip("diffusers")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(VAEError, match="cannot be loaded"):
        WanVAEDecoder(tmp_path)
