"""PTX text on the GPU, through the CUDA driver itself: module, function, launch, tensor maps."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from ctypes import byref, c_int, c_size_t, c_uint, c_uint64, c_void_p

import torch

_ERROR_LOG, _ERROR_LOG_BYTES = 5, 6  # CU_JIT_*
_MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_*
_PARAM_BUFFER, _PARAM_BUFFER_BYTES = 1, 2  # CU_LAUNCH_PARAM_*
_UINT_TYPES = {1: 0, 2: 1, 4: 2, 8: 4}  # element bytes -> CU_TENSOR_MAP_DATA_TYPE_UINT*


class DriverError(RuntimeError):
    """What the driver answered instead of doing it; `log` is the assembler's."""

    def __init__(self, call: str, code: int, log: str = "") -> None:
        super().__init__(f"{call}: CUDA error {code}{': ' + log if log else ''}")
        self.code, self.log = code, log


@functools.cache
def _driver() -> ctypes.CDLL:
    torch.zeros(1, device="cuda")  # makes torch's context the current one
    return ctypes.CDLL("libcuda.so.1")


def _call(name: str, *args: object) -> None:
    code = getattr(_driver(), name)(*args)
    if code:
        raise DriverError(name, code)


def target() -> str:
    """Return the PTX target with all the features of this GPU: sm_80, sm_90a, sm_120a."""
    major, minor = torch.cuda.get_device_capability()
    return f"sm_{major}{minor}{'a' if major >= 9 else ''}"


@functools.lru_cache(maxsize=512)
def load(ptx: str, entry: str) -> c_void_p:
    """Assemble PTX text and return a kernel in it.

    Raises
    ------
    DriverError
        If the assembler refuses the text.
    """
    log = ctypes.create_string_buffer(8192)
    options = (c_int * 2)(_ERROR_LOG, _ERROR_LOG_BYTES)
    values = (c_void_p * 2)(ctypes.addressof(log), len(log))
    module, function = c_void_p(), c_void_p()
    try:
        _call("cuModuleLoadDataEx", byref(module), ptx.encode() + b"\0", 2, options, values)
    except DriverError as error:
        text = log.value.decode(errors="replace")
        raise DriverError("cuModuleLoadDataEx", error.code, text) from None
    _call("cuModuleGetFunction", byref(function), module, entry.encode())
    return function


def launch(
    ptx: str,
    entry: str,
    grid: Sequence[int],
    block: Sequence[int],
    parameters: bytes,
    shared_bytes: int = 0,
) -> None:
    """Run a kernel on torch's current stream, with its parameters as PTX lays them out."""
    function = load(ptx, entry)
    if shared_bytes > 48 << 10:
        _call("cuFuncSetAttribute", function, _MAX_DYNAMIC_SHARED, c_int(shared_bytes))
    buffer = ctypes.create_string_buffer(parameters, len(parameters))
    size = c_size_t(len(parameters))
    extra = (c_void_p * 5)(
        _PARAM_BUFFER, ctypes.addressof(buffer), _PARAM_BUFFER_BYTES, ctypes.addressof(size), 0
    )
    stream = c_void_p(torch.cuda.current_stream().cuda_stream)
    sizes = [c_uint(n) for n in (*grid, *block)]
    _call("cuLaunchKernel", function, *sizes, c_uint(shared_bytes), stream, None, extra)


def tensor_map(
    base: int,
    element_bytes: int,
    dims: Sequence[int],
    strides: Sequence[int],
    box: Sequence[int],
    swizzle: int,
) -> bytes:
    """Return a TMA descriptor as the driver encodes it; `swizzle` is 0 to 3, for 16 << n bytes."""
    rank = len(dims)
    # The driver wants 64 bytes of alignment.
    room = ctypes.create_string_buffer(128 + 64)
    start = -ctypes.addressof(room) % 64
    _call(
        "cuTensorMapEncodeTiled",
        c_void_p(ctypes.addressof(room) + start),
        c_int(_UINT_TYPES[element_bytes]),
        c_uint(rank),
        c_void_p(base),
        (c_uint64 * rank)(*dims),
        (c_uint64 * max(rank - 1, 1))(*strides),
        (c_uint * rank)(*box),
        (c_uint * rank)(*[1] * rank),
        c_int(0),
        c_int(swizzle),
        c_int(0),
        c_int(0),
    )
    return room.raw[start : start + 128]
