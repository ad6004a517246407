"""VIDK_DEBUG=1: indices on the device are checked with the CPU kernels' own words."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ops.samples import overload

from .helpers import sample

ROOT = Path(__file__).parents[2]
# Op, argument by position, and a first element that is wrong for it.
CASES = [
    ("rope_3d", 1, 64),
    ("rope_3d", 1, -1),
    ("kv_cache_write", 4, 6),
    ("kv_cache_write", 4, -1),
    ("kv_cache_write", 4, 4),  # named twice
    ("qk_norm_rope_kv_write", 6, 64),
    ("qk_norm_rope_kv_write", 7, 6),
    ("qk_norm_rope_nvfp4_kv_write", 6, 64),
    ("qk_norm_rope_nvfp4_kv_write", 7, 6),
    ("qk_norm_rope_pack", 6, 64),
    ("unpack_kv_write", 4, 6),
    ("unpack_kv_write", 4, 4),  # named twice
    ("all_gather_rope", 1, 64),
    ("attention", 3, 361),
    ("attention", 3, -1),
    ("cross_attention", 3, 65),
    ("fp4_attention", 5, 361),
    ("fp4_attention", 5, -1),
]
SCRIPT = """
import json
from tests.gpu.helpers import DEVICE
from tests.gpu.test_debug import CASES, complaint
print(json.dumps([complaint(*case, DEVICE) for case in CASES]))
"""


def complaint(op: str, argument: int, value: int, device: str) -> str:
    """Return what an op says to a wrong index."""
    from .helpers import gpu_call

    args, kwargs = gpu_call(sample(op), device)
    args[argument][0] = value
    try:
        overload(op)(*args, **kwargs)
    except RuntimeError as error:
        return str(error)
    return "nothing"


@pytest.mark.parametrize("value", ["1", "0", ""])
def test_words(value: str) -> None:
    expected = [complaint(*case, "cpu") for case in CASES]
    assert "nothing" not in expected
    environment = os.environ | {"VIDK_DEBUG": value}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout.splitlines()[-1])
    assert got == (expected if value == "1" else ["nothing"] * len(CASES))
