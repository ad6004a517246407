"""Copy a block of keys and values to its frame slots of the cache, whatever its element type.

A thread block takes one token of the block; neighbouring threads copy neighbouring vectors of its
row, each of them one of k and one of v.
"""

# mypy: ignore-errors
from __future__ import annotations

import tilelang.language as T

ARCH = "sm_80"
THREADS = (
    128  # divides the rows of the 14B model, 40 heads x 16 vectors, and leaves few idle elsewhere
)
UNIT = 2  # bytes; all element types are whole units, and a copy does not care what they mean


def kv_cache_write(vector_bytes: int):
    """Return the TileLang function that moves `vector_bytes` at a time. Strides count vectors."""
    vector = vector_bytes // UNIT

    @T.prim_func
    def main(
        k_ptr: T.ptr("uint16"),
        v_ptr: T.ptr("uint16"),
        k_cache_ptr: T.ptr("uint16"),
        v_cache_ptr: T.ptr("uint16"),
        frame_slot_ptr: T.ptr("int32"),
        B: T.int32,
        S: T.int32,
        C: T.int32,  # rows of the cache
        H: T.int32,
        vectors: T.int32,  # in one head
        frame_tokens: T.int32,
        k_batch: T.int64,
        k_token: T.int64,
        k_head: T.int64,
        v_batch: T.int64,
        v_token: T.int64,
        v_head: T.int64,
        k_cache_batch: T.int64,
        k_cache_token: T.int64,
        k_cache_head: T.int64,
        v_cache_batch: T.int64,
        v_cache_token: T.int64,
        v_cache_head: T.int64,
    ):
        with T.Kernel(B * S, threads=THREADS) as block:
            b = T.truncdiv(block, S)
            token = T.truncmod(block, S)
            k = T.make_tensor(
                k_ptr,
                (B, S, H, vectors, vector),
                "uint16",
                (k_batch * vector, k_token * vector, k_head * vector, vector, 1),
            )
            v = T.make_tensor(
                v_ptr,
                (B, S, H, vectors, vector),
                "uint16",
                (v_batch * vector, v_token * vector, v_head * vector, vector, 1),
            )
            k_cache = T.make_tensor(
                k_cache_ptr,
                (B, C, H, vectors, vector),
                "uint16",
                (k_cache_batch * vector, k_cache_token * vector, k_cache_head * vector, vector, 1),
            )
            v_cache = T.make_tensor(
                v_cache_ptr,
                (B, C, H, vectors, vector),
                "uint16",
                (v_cache_batch * vector, v_cache_token * vector, v_cache_head * vector, vector, 1),
            )
            frame_slot = T.make_tensor(frame_slot_ptr, (S,), "int32")
            thread = T.get_thread_binding()
            k_vector = T.alloc_local((vector,), "uint16")
            v_vector = T.alloc_local((vector,), "uint16")
            slot = T.alloc_var("int32")
            row = T.alloc_var("int32")
            frame = T.alloc_var("int32")
            frame = T.truncdiv(token, frame_tokens)
            slot = frame_slot[frame]
            # The slot is data on the device, which nobody could check without waiting for it. It is
            # compared before it is multiplied: the product of a hostile one could overflow.
            if slot >= 0 and slot <= T.truncdiv(C, frame_tokens):
                row = slot * frame_tokens + T.truncmod(token, frame_tokens)
                if row < C:
                    for step in T.serial(T.ceildiv(H * vectors - thread, THREADS)):
                        head = T.truncdiv(step * THREADS + thread, vectors)
                        at = T.truncmod(step * THREADS + thread, vectors)
                        for x in T.vectorized(vector):
                            k_vector[x] = k[b, token, head, at, x]
                        for x in T.vectorized(vector):
                            v_vector[x] = v[b, token, head, at, x]
                        for x in T.vectorized(vector):
                            k_cache[b, row, head, at, x] = k_vector[x]
                        for x in T.vectorized(vector):
                            v_cache[b, row, head, at, x] = v_vector[x]

    return main
