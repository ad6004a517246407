"""Flash attention for every GPU from Ampere on: cp.async loads and mma.sync, 48 KiB shared memory.

A key tile is loaded while the value tile before it is multiplied, and the other way round, so one
buffer of each is enough, and two thread blocks fit on a multiprocessor.
"""

# mypy: ignore-errors
from __future__ import annotations

import tilelang.language as T
from softmax import LOG2E, exponentiate, finish, first_max, hide_columns, raise_max

ARCH = "sm_80"
ROWS = 64  # of q in one thread block; 16 for each warp. With 32 some architectures spill registers
KEYS = 64
THREADS = 128
VECTOR = 8  # elements in 16 bytes, the unit of the strides


def attention(dtype: str, head_dim: int):
    """Return the TileLang function for `[B, S, H, head_dim]` tensors of `dtype`."""

    @T.prim_func
    def main(
        q_ptr: T.ptr(dtype),
        k_ptr: T.ptr(dtype),
        v_ptr: T.ptr(dtype),
        out_ptr: T.ptr(dtype),
        kv_len_ptr: T.ptr("int32"),
        lse_ptr: T.ptr("float32"),
        B: T.int32,
        S: T.int32,
        C: T.int32,
        H: T.int32,
        q_batch: T.int32,
        q_token: T.int32,
        q_head: T.int32,
        k_batch: T.int32,
        k_token: T.int32,
        k_head: T.int32,
        v_batch: T.int32,
        v_token: T.int32,
        v_head: T.int32,
        len_stride: T.int32,  # 0: one length for all batch rows
        fold: T.int32,  # 1: key kv_len stands for all keys from there to C
        with_lse: T.int32,  # 0: lse is not written
        scale: T.float32,
    ):
        with T.Kernel(T.ceildiv(S, ROWS), H, B, threads=THREADS) as (bx, h, b):
            Q = T.make_tensor(
                q_ptr,
                (B, S, H, head_dim),
                dtype,
                (q_batch * VECTOR, q_token * VECTOR, q_head * VECTOR, 1),
            )
            K = T.make_tensor(
                k_ptr,
                (B, C, H, head_dim),
                dtype,
                (k_batch * VECTOR, k_token * VECTOR, k_head * VECTOR, 1),
            )
            V = T.make_tensor(
                v_ptr,
                (B, C, H, head_dim),
                dtype,
                (v_batch * VECTOR, v_token * VECTOR, v_head * VECTOR, 1),
            )
            O = T.make_tensor(out_ptr, (B, S, H, head_dim), dtype)  # noqa: E741
            kv_len = T.make_tensor(kv_len_ptr, (B,), "int32")
            lse = T.make_tensor(lse_ptr, (B, H, S), "float32")
            q = T.alloc_shared((ROWS, head_dim), dtype)
            k = T.alloc_shared((KEYS, head_dim), dtype)
            v = T.alloc_shared((KEYS, head_dim), dtype)
            logits = T.alloc_fragment((ROWS, KEYS), "float32")
            weights = T.alloc_fragment((ROWS, KEYS), dtype)
            out = T.alloc_fragment((ROWS, head_dim), "float32")
            row_max = T.alloc_fragment((ROWS,), "float32")
            old_max = T.alloc_fragment((ROWS,), "float32")
            row_sum = T.alloc_fragment((ROWS,), "float32")
            correction = T.alloc_fragment((ROWS,), "float32")

            length = T.alloc_var("int32")
            pads = T.alloc_var("int32")
            keys = T.alloc_var("int32")
            tiles = T.alloc_var("int32")
            first = T.alloc_var("int32")
            row = T.alloc_var("int32")
            pad_weight = T.alloc_var("float32")
            last_weight = T.alloc_var("float32")
            length = T.clamp(kv_len[b * len_stride], 0, C)
            pads = T.if_then_else(fold != 0, C - length, 0)
            keys = length + T.min(pads, 1)
            tiles = T.max(T.ceildiv(keys, KEYS), 1)
            pad_weight = T.cast(T.max(pads, 1), "float32")
            # The first tile is the ragged one: it begins before key 0, where the copy fills in
            # zeros, so that no row past the last key is ever loaded.
            first = keys - tiles * KEYS
            scale_log2 = scale * LOG2E

            T.async_copy(Q[b, bx * ROWS : (bx + 1) * ROWS, h, :], q)
            T.async_copy(K[b, first : first + KEYS, h, :], k)
            T.ptx_wait_group(0)
            T.sync_threads()
            T.async_copy(V[b, first : first + KEYS, h, :], v)
            T.gemm(
                q, k, logits, transpose_B=True, policy=T.GemmWarpPolicy.FullRow, clear_accum=True
            )
            hide_columns(logits, ROWS, KEYS, -first)
            first_max(logits, row_max, ROWS)
            last_weight = T.if_then_else(tiles == 1, pad_weight, 1.0)
            exponentiate(logits, row_max, ROWS, KEYS, scale_log2, last_weight)
            T.reduce_sum(logits, row_sum, dim=1, clear=True)
            T.copy(logits, weights)
            T.fill(out, 0)
            for n in T.serial(1, tiles):
                # Never below 0 here. Saying so halves every bounds check.
                row = T.max(first + n * KEYS, 0)
                T.ptx_wait_group(0)
                T.sync_threads()
                T.async_copy(K[b, row : row + KEYS, h, :], k)
                T.gemm(weights, v, out, policy=T.GemmWarpPolicy.FullRow)
                T.ptx_wait_group(0)
                T.sync_threads()
                T.async_copy(V[b, row : row + KEYS, h, :], v)
                T.gemm(
                    q,
                    k,
                    logits,
                    transpose_B=True,
                    policy=T.GemmWarpPolicy.FullRow,
                    clear_accum=True,
                )
                last_weight = T.if_then_else(n == tiles - 1, pad_weight, 1.0)
                raise_max(logits, row_max, old_max, correction, ROWS, scale_log2)
                for i, j in T.Parallel(ROWS, head_dim):
                    out[i, j] *= correction[i]
                for i in T.Parallel(ROWS):
                    row_sum[i] *= correction[i]
                exponentiate(logits, row_max, ROWS, KEYS, scale_log2, last_weight)
                T.reduce_sum(logits, row_sum, dim=1, clear=False)
                T.copy(logits, weights)
            T.ptx_wait_group(0)
            T.sync_threads()
            T.gemm(weights, v, out, policy=T.GemmWarpPolicy.FullRow)
            finish(row_max, row_sum, correction, lse, with_lse, b, h, bx * ROWS, ROWS, S, scale)
            for i, j in T.Parallel(ROWS, head_dim):
                out[i, j] *= correction[i]
            # Through shared memory, so that whole lines are stored.
            T.copy(out, q)
            T.copy(q, O[b, bx * ROWS : (bx + 1) * ROWS, h, :])

    return main
