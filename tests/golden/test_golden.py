"""Golden files made by the public reference code; which check a file gets is in its parameters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.golden import rollout_kinds, rope_kinds
from tests.golden.files import Golden, read


def check_of(golden: Golden, name: str) -> Callable[[Golden], None]:
    """Return the check for a file's kind, from its parameters."""
    p = golden.params
    policy, fn = p.get("policy", ""), p.get("fn", "")
    if "positions" in p and "head_dims" in p:
        return rope_kinds.check_tables
    if "cases" in p:
        sharded = any("world_size" in case for case in p["cases"].values())
        return rope_kinds.check_shards if sharded else rope_kinds.check_application
    if policy and not policy.startswith("absolute"):
        pytest.skip(f"{name}: rope-on-read is not supported yet ({policy})")
    if "steps" in p and "hw" in p:
        return rollout_kinds.check_attention
    if "calls" in p:
        return rollout_kinds.check_model
    if "denoising_step_list" in p:
        return rollout_kinds.check_schedule
    raise AssertionError(f"a golden file of an unknown kind: {name}, {fn or sorted(p)}")


def test_golden(golden_file: Path) -> None:
    golden = read(golden_file)
    check_of(golden, golden_file.name)(golden)


def test_golden_bf16(golden_file: Path) -> None:
    golden = read(golden_file)
    if "bf16.output_latents" in golden:
        rollout_kinds.check_model_bf16(golden)
