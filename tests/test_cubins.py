"""The audit of the wheel's machine code, on listings as `cuobjdump` prints them."""

from __future__ import annotations

import importlib.util
import json
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "cubins.py"
ATTENTION = ("LDGSTS.E.BYPASS.128", "LDSM.16.M88.4", "HMMA.16816.F32.BF16")
CODE = {
    ("vidk_kv_cache_write_16B", "sm_80"): ("LDG.E.128", "LDG.E", "STG.E.128"),
    ("vidk_kv_cache_write_2B", "sm_80"): ("LDG.E.U16", "STG.E.U16"),
    ("vidk_rope_3d_bf16_16B", "sm_90a"): ("LDG.E.128.CONSTANT", "STG.E.EF.128"),
    ("vidk_norm_rope_bf16_x1", "sm_120a"): ("LDG.E.128", "STG.E.128"),
    ("vidk_attention_sm80_bf16_d128", "sm_80"): ATTENTION,
    ("vidk_attention_sm90_bf16_d128", "sm_90a"): ("UTMALDG.4D", "HGMMA.64x176x16.F32.BF16"),
    ("vidk_fp4_attention_sm120_nvfp4_d128_e4m3", "sm_120f"): (
        "LDGSTS.E.BYPASS.128",
        "OMMA.SF.16864.F32.E2M1.E2M1.UE4M3.4X",
        "QMMA.SF.16832.F32.E4M3.E4M3.E8",
    ),
    ("vidk_fp4_attention_sm100_nvfp4_d128_e4m3", "sm_100a"): (
        "UTMALDG.5D",
        "UTCOMMA.4X",
        "UTCQMMA",
    ),
    ("vidk_fp4_attention_sm90_nvfp4_d128_bf16", "sm_90a"): ("HGMMA.64x128x16.F32.BF16",),
    ("vidk_fp4_attention_portable_nvfp4_d128_bf16", "sm_80"): ATTENTION,
}


@pytest.fixture(scope="module")
def cubins() -> ModuleType:
    if not SCRIPT.exists():
        pytest.skip("not in a source checkout: .ci/cubins.py is missing")
    spec = importlib.util.spec_from_file_location("cubins", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = sys.modules["cubins"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def usage(name: str, arch: str, **changes: int) -> list[str]:
    values = {"REG": 40, "STACK": 0, "SHARED": 16, "LOCAL": 0} | changes
    shown = " ".join(f"{key}:{value}" for key, value in values.items())
    return [f"arch = {arch}", "Resource usage:", " Common:", "  GLOBAL:0", f" Function {name}:",
            f"  {shown} CONSTANT[0]:528 TEXTURE:0"]  # fmt: skip


def code(name: str, arch: str, opcodes: tuple[str, ...]) -> list[str]:
    lines = [f"arch = {arch}", f"\t\tFunction : {name}"]
    for i, opcode in enumerate((*opcodes, "@!P0 EXIT", "@UPT UIADD3")):
        guard, _, bare = opcode.rpartition(" ")
        lines.append(f"        /*{16 * i:04x}*/  {guard:>16} {bare} R2, [R4.64] ;  /* 0x02 */")
        lines.append(f"{'/* 0x000fe200078e00ff */':>100}")
    return lines


def found(
    cubins: ModuleType, extra: dict[Any, tuple[str, ...]] | None = None, **changes: int
) -> tuple[list[str], dict[Any, Any]]:
    """Return the complaints about an object that is as it should be but for the changes."""
    kernels: dict[Any, Any] = {}
    for (name, arch), opcodes in (CODE | (extra or {})).items():
        cubins.parse_usage(usage(name, arch, **changes), kernels)
        cubins.parse_code(code(name, arch, opcodes), kernels)
    good = {"REG": 40, "SHARED": 16}
    budget: dict[str, dict[str, list[int]]] = {}
    for name, arch in CODE:
        budget.setdefault(name, {})[arch] = [*good.values()]
    return list(cubins.complaints(kernels, budget)), kernels


def test_a_good_object_passes(cubins: ModuleType) -> None:
    texts, kernels = found(cubins)
    assert texts == []
    counted = kernels["vidk_kv_cache_write_16B", "sm_80"].opcodes
    assert counted == {"LDG.E.128": 1, "LDG.E": 1, "STG.E.128": 1, "EXIT": 1, "UIADD3": 1}
    assert cubins.budget_of(kernels)["vidk_kv_cache_write_16B"] == {"sm_80": [40, 16]}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"STACK": 8}, "8 bytes of local memory"),
        ({"LOCAL": 8}, "8 bytes of local memory"),
        ({"REG": 41}, "REG 41, more than the 40 of the budget"),
        ({"SHARED": 17}, "SHARED 17, more than the 16 of the budget"),
    ],
)
def test_usage(cubins: ModuleType, changes: dict[str, int], text: str) -> None:
    texts, _ = found(cubins, **changes)
    assert len(texts) == len(CODE) and all(text in t for t in texts)


@pytest.mark.parametrize(
    ("name", "opcodes", "text"),
    [
        ("vidk_kv_cache_write_16B", ("LDG.E.128", "STG.E.128", "STL.64"), "spilled"),
        ("vidk_kv_cache_write_16B", ("LDG.E.64", "STG.E.128"), "no 16-byte loads"),
        ("vidk_kv_cache_write_16B", ("LDG.E.128", "STG.E.128", "STG.E.64"), "stores narrower"),
        ("vidk_attention_sm80_bf16_d128", ATTENTION[:2], "no tensor cores"),
        ("vidk_attention_sm80_bf16_d128", ATTENTION[1:], "no 16-byte cp.async"),
    ],
)
def test_code(cubins: ModuleType, name: str, opcodes: tuple[str, ...], text: str) -> None:
    (complaint,), _ = found(cubins, {(name, "sm_80"): opcodes})
    assert complaint.startswith(f"{name} for sm_80: ") and text in complaint


def test_the_budget_names_what_there_must_be(cubins: ModuleType) -> None:
    (text,), kernels = found(cubins, {("vidk_new", "sm_80"): ("EXIT",)})
    assert text.startswith("vidk_new for sm_80: not in the budget")
    budget = cubins.budget_of(kernels) | {"vidk_gone": {"sm_80": [1, 1]}}
    assert list(cubins.complaints(kernels, budget)) == [
        "vidk_gone for sm_80: in the budget but not in the object"
    ]


def test_a_promise_needs_a_kernel(cubins: ModuleType) -> None:
    _, kernels = found(cubins)
    del kernels["vidk_attention_sm90_bf16_d128", "sm_90a"]
    texts = list(cubins.complaints(kernels, cubins.budget_of(kernels)))
    assert len(texts) == 2 and all(t.startswith("no kernel vidk_attention_sm90") for t in texts)
    assert "no kernel was found" in list(cubins.complaints({}, {}))


def test_two_kernels_of_one_name(cubins: ModuleType) -> None:
    _, kernels = found(cubins)
    cubins.parse_usage(usage("vidk_kv_cache_write_2B", "sm_80"), kernels)
    (text,) = cubins.complaints(kernels, cubins.budget_of(kernels))
    assert "2 kernels of this name" in text


def test_the_written_budget_is_read(cubins: ModuleType, tmp_path: Path) -> None:
    _, kernels = found(cubins)
    path = tmp_path / "budget.json"
    cubins.write_budget(cubins.budget_of(kernels), path)
    assert json.loads(path.read_text()) == cubins.budget_of(kernels)
    assert len(path.read_text().splitlines()) == len({name for name, _ in CODE}) + 2


def test_a_wheel_without_cuda_must_say_why(
    cubins: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = tmp_path / "vidk.whl"
    monkeypatch.setattr(sys, "argv", ["cubins.py", str(wheel)])
    for reason in ("nvcc was not found", ""):
        with zipfile.ZipFile(wheel, "w") as file:
            file.writestr("vidk/_build.json", json.dumps({"cuda_reason": reason}))
        if reason:
            assert cubins.main() == 0
        else:
            with pytest.raises(SystemExit, match="does not say why"):
                cubins.main()
