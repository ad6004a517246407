"""Sizes of the model, in vidk's words and in those of others."""

import json
import time
from dataclasses import replace

import pytest

from vidk.models.config import CONFIGS, WanConfig, infer_config, load_config
from vidk.models.names import parameter_shapes

each_config = pytest.mark.parametrize("name", CONFIGS)


@pytest.mark.parametrize(
    ("name", "sizes"),
    {
        "wan-1.3b": (1536, 8960, 12, 30, 16, 128),
        "wan-14b": (5120, 13824, 40, 40, 16, 128),
        "wan-5b": (3072, 14336, 24, 30, 48, 128),
        "tiny": (64, 128, 2, 2, 16, 32),
        "bundled": (256, 512, 2, 4, 16, 128),
    }.items(),
)
def test_published_sizes(name, sizes):
    c = CONFIGS[name]
    assert (c.dim, c.ffn_dim, c.num_heads, c.num_layers, c.in_channels, c.head_dim) == sizes
    assert c.in_channels == c.out_channels


@each_config
def test_both_styles_of_config_json_come_back(name):
    c = CONFIGS[name]
    assert WanConfig.from_diffusers(json.loads(json.dumps(c.to_diffusers())), c.text_len) == c
    assert WanConfig.from_original(json.loads(json.dumps(c.to_original()))) == c


def test_config_that_diffusers_wrote(golden):
    theirs = json.loads((golden / "meta.json").read_text())["config"]
    ours = WanConfig.from_diffusers(theirs)
    assert theirs.items() <= ours.to_diffusers().items()
    assert ours.head_dim == theirs["attention_head_dim"]


def test_config_of_original_wan_leaves_out_what_is_usual():
    c = WanConfig.from_original(
        {"_class_name": "WanModel", "dim": 1536, "eps": 1e-06, "ffn_dim": 8960, "freq_dim": 256}
        | {"in_dim": 16, "model_type": "t2v", "num_heads": 12, "num_layers": 30, "out_dim": 16}
        | {"text_len": 512}
    )
    assert c == CONFIGS["wan-1.3b"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dim": 63}, "num_heads: got 2, expected a divisor of dim 63"),
        ({"dim": 6}, "dim / num_heads: got 3, expected an even head dim"),
        ({"num_layers": 0}, "num_layers: got 0"),
        ({"ffn_dim": 1.5}, "ffn_dim: got 1.5"),
        ({"num_heads": True}, "num_heads: got True"),
        ({"freq_dim": 7}, "freq_dim: got 7, expected an even number"),
        ({"patch_size": (2, 2, 2)}, "expected 1 frame a token"),
        ({"patch_size": [1, 2, 2]}, "expected three integers"),
        ({"patch_size": (1, 0, 2)}, "expected sizes of at least 1"),
        ({"qk_norm": None}, "qk_norm: got None, expected a bool"),
        ({"eps": float("nan")}, "eps: got nan"),
    ],
)
def test_impossible_sizes(change, words):
    sizes = {"dim": 64, "ffn_dim": 128, "num_heads": 2, "num_layers": 2} | change
    with pytest.raises(ValueError) as error:
        WanConfig(**sizes)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_dim": 1280}, "image-to-video"),
        ({"added_kv_proj_dim": 5120}, "image-to-video"),
        ({"qk_norm": "layer_norm"}, "qk_norm: got 'layer_norm'"),
        ({"num_attention_heads": "12"}, "num_attention_heads: got '12'"),
        ({"patch_size": 2}, "patch_size: got 2"),
    ],
)
def test_diffusers_config_that_cannot_be_run(change, words):
    with pytest.raises(ValueError, match="config: ") as error:
        WanConfig.from_diffusers(CONFIGS["tiny"].to_diffusers() | change)
    assert words in str(error.value)


def test_original_config_that_cannot_be_run():
    good = CONFIGS["tiny"].to_original()
    with pytest.raises(ValueError, match="image-to-video"):
        WanConfig.from_original(good | {"model_type": "i2v"})
    del good["ffn_dim"]
    with pytest.raises(ValueError, match="ffn_dim: got no such key"):
        WanConfig.from_original(good)


@each_config
def test_shapes_tell_the_config(name):
    c = CONFIGS[name]
    heads = None if c.head_dim == 128 else c.num_heads
    # No shape tells what the head predicts.
    told = replace(c, prediction="flow")
    assert infer_config(parameter_shapes(c), num_heads=heads, text_len=c.text_len) == told


@pytest.mark.parametrize("field", ["qk_norm", "cross_attn_norm"])
def test_shapes_tell_which_norms_there_are(small, field):
    c = WanConfig(**{**vars(small), field: False})
    assert infer_config(parameter_shapes(c), num_heads=2, text_len=4) == c


def test_shapes_that_tell_no_config(small):
    shapes = dict(parameter_shapes(small))
    with pytest.raises(ValueError, match="dim 16: got no number of heads"):
        infer_config(shapes)
    with pytest.raises(ValueError, match="0 blocks without block 0"):
        infer_config({})
    start = time.perf_counter()
    with pytest.raises(ValueError, match="2 blocks without block 1"):
        infer_config({**shapes, "blocks.999999999.modulation": (1, 6, 16)}, num_heads=2)
    assert time.perf_counter() - start < 1
    for name, found in (("head.head.weight", "no such parameter"), ("blocks.0.ffn.0.weight", "[]")):
        broken = {**shapes, name: ()}
        if found == "no such parameter":
            del broken[name]
        with pytest.raises(ValueError) as error:
            infer_config(broken, num_heads=2)
        assert name in str(error.value) and found in str(error.value)


def test_load_config(tmp_path):
    assert load_config("tiny") is CONFIGS["tiny"]
    file = tmp_path / "config.json"
    file.write_text(json.dumps(CONFIGS["tiny"].to_original()))
    assert load_config(file) == CONFIGS["tiny"]
    file.write_text(json.dumps(CONFIGS["tiny"].to_diffusers()))
    assert load_config(file, text_len=16) == CONFIGS["tiny"]
    with pytest.raises(ValueError, match=r"expected one of wan-1\.3b"):
        load_config("wan-2b")
    for text in ("{", "[]", "{}", "[" * 100_000, '{"dim": 8'):
        file.write_text(text)
        with pytest.raises(ValueError) as error:
            load_config(file)
        assert str(error.value).startswith(str(file))


def test_what_the_head_predicts():
    bundled = CONFIGS["bundled"]
    assert bundled.prediction == "x0"
    assert WanConfig.from_original(bundled.to_original()) == bundled
    assert "prediction" not in CONFIGS["tiny"].to_original()
    with pytest.raises(ValueError, match="prediction: got 'noise', expected 'flow' or 'x0'"):
        WanConfig(**{**vars(bundled), "prediction": "noise"})
