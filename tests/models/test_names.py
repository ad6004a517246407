"""Name maps between the layouts."""

import json

import pytest
import torch

from vidk.models import CausalWan
from vidk.models.config import CONFIGS, WanConfig
from vidk.models.names import (
    LAYOUTS,
    detect_layout,
    difference,
    is_image_to_video,
    parameter_shapes,
    rename,
    strip_wrappers,
)


def test_key_map_of_the_golden_model(golden):
    data = json.loads((golden / "key_map.json").read_text())
    names = data["original_to_diffusers"]
    assert {a: rename(a, "original", "diffusers") for a in names} == names
    assert {rename(b, "diffusers", "original"): b for b in names.values()} == names
    config = WanConfig.from_diffusers(json.loads((golden / "meta.json").read_text())["config"])
    shapes = {name: tuple(shape) for name, shape in data["shapes"].items()}
    assert parameter_shapes(config) == shapes


@pytest.mark.parametrize(("name", "count"), [("wan-1.3b", 825), ("wan-14b", 1095)])
def test_number_of_tensors(name, count):
    assert len(parameter_shapes(CONFIGS[name])) == count


@pytest.mark.parametrize("name", CONFIGS)
def test_names_and_shapes_are_those_of_the_model(name):
    with torch.device("meta"):
        model = CausalWan(CONFIGS[name])
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert shapes == parameter_shapes(CONFIGS[name])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_a_bijection(layout):
    names = list(parameter_shapes(CONFIGS["wan-14b"]))
    there = [rename(name, "original", layout) for name in names]
    assert None not in there and len(set(there)) == len(names)
    assert [rename(name, layout, "original") for name in there] == names
    assert detect_layout(there) == layout


@pytest.mark.parametrize(
    ("fastvideo", "original"),
    {
        "patch_embedding.proj.weight": "patch_embedding.weight",
        "condition_embedder.text_embedder.fc_in.weight": "text_embedding.0.weight",
        "condition_embedder.text_embedder.fc_out.bias": "text_embedding.2.bias",
        "condition_embedder.time_embedder.mlp.fc_in.weight": "time_embedding.0.weight",
        "condition_embedder.time_embedder.mlp.fc_out.bias": "time_embedding.2.bias",
        "condition_embedder.time_modulation.linear.weight": "time_projection.1.weight",
        "scale_shift_table": "head.modulation",
        "proj_out.bias": "head.head.bias",
        "blocks.7.scale_shift_table": "blocks.7.modulation",
        "blocks.7.to_q.weight": "blocks.7.self_attn.q.weight",
        "blocks.7.to_k.weight": "blocks.7.self_attn.k.weight",
        "blocks.7.to_v.bias": "blocks.7.self_attn.v.bias",
        "blocks.7.to_out.bias": "blocks.7.self_attn.o.bias",
        "blocks.7.norm_q.weight": "blocks.7.self_attn.norm_q.weight",
        "blocks.7.norm_k.weight": "blocks.7.self_attn.norm_k.weight",
        "blocks.7.self_attn_residual_norm.norm.bias": "blocks.7.norm3.bias",
        "blocks.7.attn2.to_q.weight": "blocks.7.cross_attn.q.weight",
        "blocks.7.attn2.to_k.bias": "blocks.7.cross_attn.k.bias",
        "blocks.7.attn2.to_v.weight": "blocks.7.cross_attn.v.weight",
        "blocks.7.attn2.to_out.weight": "blocks.7.cross_attn.o.weight",
        "blocks.7.attn2.norm_q.weight": "blocks.7.cross_attn.norm_q.weight",
        "blocks.7.attn2.norm_k.weight": "blocks.7.cross_attn.norm_k.weight",
        "blocks.7.ffn.fc_in.weight": "blocks.7.ffn.0.weight",
        "blocks.39.ffn.fc_out.bias": "blocks.39.ffn.2.bias",
    }.items(),
)
def test_names_of_fastvideo(fastvideo, original):
    assert rename(fastvideo, "fastvideo", "original") == original


@pytest.mark.parametrize(
    "name",
    [
        "xblocks.0.modulation",
        "blocks.0.modulation.weight",
        "blocks.00.modulation",
        "blocks.-1.modulation",
        "blocks.0.blocks.0.modulation",
        "blocks.0.norm2.weight",
        "head.modulation.bias",
        "head.head.weight.x",
        "modulation",
        "",
    ],
)
def test_rules_match_whole_names_only(name):
    assert rename(name, "original", "diffusers") is None


@pytest.mark.parametrize(
    ("name", "bare"),
    {
        "model.head.modulation": "head.modulation",
        "_orig_mod.model.head.modulation": "head.modulation",
        "model._fsdp_wrapped_module.blocks.3._fsdp_wrapped_module._checkpoint_wrapped_module."
        "_orig_mod.self_attn.q.weight": "blocks.3.self_attn.q.weight",
        "blocks.3.ffn.0._orig_mod.weight": "blocks.3.ffn.0.weight",
        "model.model.patch_embedding.bias": "patch_embedding.bias",
        "remodel.head.modulation": "remodel.head.modulation",
        "model_head.modulation": "model_head.modulation",
        "blocks.0.model": "blocks.0.model",
        "model": "model",
        "head.modulation": "head.modulation",
    }.items(),
)
def test_strip_wrappers(name, bare):
    assert strip_wrappers(name) == bare


@pytest.mark.parametrize(
    "name",
    [
        "img_emb.proj.0.weight",
        "img_emb.emb_pos",
        "blocks.3.cross_attn.k_img.weight",
        "blocks.3.cross_attn.v_img.bias",
        "blocks.3.cross_attn.norm_k_img.weight",
        "condition_embedder.image_embedder.ff.net.0.proj.weight",
        "condition_embedder.image_embedder.pos_embed",
        "blocks.3.attn2.add_k_proj.weight",
        "blocks.3.attn2.add_v_proj.bias",
        "blocks.3.attn2.norm_added_k.weight",
    ],
)
def test_image_branch_is_recognised(name):
    assert is_image_to_video(name)
    assert not any(rename(name, layout, layout) for layout in LAYOUTS)


def test_no_name_of_the_model_is_taken_for_an_image_branch():
    for layout in LAYOUTS:
        names = [rename(n, "original", layout) for n in parameter_shapes(CONFIGS["tiny"])]
        assert not any(is_image_to_video(name) for name in names)


def test_difference_is_grouped_counted_and_cut(small):
    shapes = parameter_shapes(small)
    assert difference(shapes, small, "original") == ""
    changed = {name: s for name, s in shapes.items() if "cross_attn" not in name}
    changed |= {"head.modulation": (3,), "lora.up": (4, 2)}
    first, *lines = difference(changed, small, "diffusers").splitlines()
    assert first.startswith("got 10 missing, 1 unexpected, 1 wrongly shaped tensors, expected")
    assert lines[0] == "missing (10):" and lines[7] == "  ... and 4 more"
    assert lines[1].startswith("  blocks.0.attn2.")
    assert lines[8:] == [
        "unexpected (1):",
        "  lora.up [4, 2]",
        "wrongly shaped (1):",
        "  scale_shift_table: got [3], expected [1, 2, 16]",
    ]
