"""What the simulator counts, on kernels where the numbers are known."""

from __future__ import annotations

import numpy as np
import pytest

from tests.ptxsim import compile_cuda, has_nvcc, run

pytestmark = pytest.mark.skipif(not has_nvcc(), reason="no nvcc to compile CUDA sources")


def floats(n: int) -> np.ndarray:
    """Zeros whose first byte is 128-byte aligned."""
    room = np.zeros(n + 32, np.float32)
    start = -room.ctypes.data // 4 % 32
    return room[start : start + n]


def count(body: str, *args: np.ndarray, block: int = 32, grid: int = 1) -> dict:
    code = 'extern "C" __global__ void kernel(const float* a, float* b) { int i = threadIdx.x;'
    return run(compile_cuda(f"{code} {body} }}"), None, grid, block, args)


@pytest.mark.parametrize(
    ("body", "bytes_", "sectors"),
    [
        ("b[i] = a[i];", 128, 4),
        ("b[i] = a[i + 1];", 128, 5),
        ("b[i] = a[8 * i];", 128, 32),
        ("b[i] = a[0];", 4, 1),
        ("b[i] = a[(i * 7) % 32];", 128, 4),
        ("b[i] = a[8 * (i / 2)];", 64, 16),
        ("((float4*)b)[i] = ((const float4*)a)[i];", 512, 16),
    ],
)
def test_global_sectors(body: str, bytes_: int, sectors: int) -> None:
    report = count(body, floats(512), floats(512))
    assert report["global_load"] == {"requests": 1, "bytes": bytes_, "sectors": sectors}
    assert report["unique_read_bytes"] == 32 * sectors
    wide = bytes_ if "float4" in body else 128
    assert report["global_store"] == {"requests": 1, "bytes": wide, "sectors": wide // 32}


def test_unique_bytes_count_once() -> None:
    report = count("b[i + 32 * blockIdx.x] = a[i];", floats(32), floats(128), grid=4)
    assert report["global_load"]["sectors"] == 16
    assert report["unique_read_bytes"] == 128
    assert report["unique_written_bytes"] == 512


@pytest.mark.parametrize(
    ("index", "wavefronts"), [("i", 1), ("2 * i", 2), ("32 * i", 32), ("33 * i", 1), ("i / 2", 1)]
)
def test_bank_conflicts(index: str, wavefronts: int) -> None:
    report = count(
        "__shared__ float s[1056]; for (int j = i; j < 1056; j += 32) s[j] = a[i];"
        f"__syncthreads(); b[i] = s[{index}];",
        floats(32),
        floats(32),
    )
    assert report["shared_load"]["wavefronts"] == wavefronts
    assert report["shared_load"]["ideal"] == 1


def test_wide_shared_accesses_go_by_quarter_warps() -> None:
    report = count(
        "__shared__ float4 s[32]; s[i] = ((const float4*)a)[i]; __syncthreads();"
        "((float4*)b)[i] = s[31 - i];",
        floats(128),
        floats(128),
    )
    for kind in ("shared_load", "shared_store"):
        assert report[kind] == {"requests": 1, "bytes": 512, "wavefronts": 4, "ideal": 4}
    assert report["barriers"] == 1


def test_instruction_classes() -> None:
    report = count("b[i] = __fmul_rn(a[i], a[i + 32]);", floats(96), floats(64), block=64)
    assert report["classes"]["float"] == 2
    assert report["classes"]["global_load"] == 4
    assert report["thread_instructions"] == 32 * report["warp_instructions"]
    assert report["divergent"] == 0 and report["local_bytes"] == 0
