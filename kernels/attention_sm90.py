"""Flash attention for Hopper: TMA loads, WGMMA, one producer warp and two consumer warpgroups.

See docs/attention.md for the idea; `attention_sm80.py` is the same algorithm with less machinery.
"""

# mypy: ignore-errors
from __future__ import annotations

import tilelang.language as T
from softmax import LOG2E, exponentiate, finish, first_max, hide_columns, raise_max

ARCH = "sm_90a"
ROWS = 128  # of q in one thread block; 64 for each consumer warpgroup
# The largest tile whose logits, weights and output (88 + 44 + 64 registers) fit in a consumer
# thread's 240; two stages of it fill the shared memory.
KEYS = 176
STAGES = 2
CONSUMERS = 256
PRODUCER_WARP = 32


def attention(dtype: str, head_dim: int):
    """Return the TileLang function for `[B, S, H, head_dim]` tensors of `dtype`."""
    B, S, C, H = T.dynamic("B, S, C, H")

    # Tensors in capitals become tensor maps, which hold strides of any kind; the sizes here only
    # tell TileLang their rank.
    @T.prim_func
    def main(
        Q: T.Tensor((B, S, H, head_dim), dtype),
        K: T.Tensor((B, C, H, head_dim), dtype),
        V: T.Tensor((B, C, H, head_dim), dtype),
        O: T.Tensor((B, S, H, head_dim), dtype),  # noqa: E741
        kv_len: T.Tensor((B,), "int32"),
        lse: T.Tensor((B, H, S), "float32"),
        len_stride: T.int32,  # 0: one length for all batch rows
        fold: T.int32,  # 1: key kv_len stands for all keys from there to C
        with_lse: T.int32,  # 0: lse is not written
        scale: T.float32,
    ):
        with T.Kernel(T.ceildiv(S, ROWS), H, B, threads=CONSUMERS + 128) as (bx, h, b):
            q = T.alloc_shared((ROWS, head_dim), dtype)
            k = T.alloc_shared((STAGES, KEYS, head_dim), dtype)
            v = T.alloc_shared((STAGES, KEYS, head_dim), dtype)
            logits = T.alloc_fragment((ROWS, KEYS), "float32")
            weights = T.alloc_fragment((ROWS, KEYS), dtype)
            out = T.alloc_fragment((ROWS, head_dim), "float32")
            row_max = T.alloc_fragment((ROWS,), "float32")
            old_max = T.alloc_fragment((ROWS,), "float32")
            row_sum = T.alloc_fragment((ROWS,), "float32")
            correction = T.alloc_fragment((ROWS,), "float32")
            q_full = T.alloc_barrier(arrive_count=PRODUCER_WARP)
            k_full = T.alloc_barrier(arrive_count=[PRODUCER_WARP] * STAGES)
            v_full = T.alloc_barrier(arrive_count=[PRODUCER_WARP] * STAGES)
            k_free = T.alloc_barrier(arrive_count=[CONSUMERS] * STAGES)
            v_free = T.alloc_barrier(arrive_count=[CONSUMERS] * STAGES)
            thread = T.get_thread_binding()

            length = T.alloc_var("int32")
            pads = T.alloc_var("int32")
            keys = T.alloc_var("int32")
            tiles = T.alloc_var("int32")
            first = T.alloc_var("int32")
            pad_weight = T.alloc_var("float32")
            last_weight = T.alloc_var("float32")
            length = T.clamp(kv_len[b * len_stride], 0, C)
            pads = T.if_then_else(fold != 0, C - length, 0)
            keys = length + T.min(pads, 1)
            pad_weight = T.cast(T.max(pads, 1), "float32")
            tiles = T.max(T.ceildiv(keys, KEYS), 1)
            # The first tile is the ragged one: it begins before key 0, where TMA fills in zeros, so
            # that no row past the last key is ever loaded.
            first = keys - tiles * KEYS

            if thread < CONSUMERS:
                T.set_max_nreg(240, 1)
                group = thread // 128
                scale_log2 = scale * LOG2E
                # The warpgroups take turns on the tensor cores (barriers 4 and 5): while one
                # multiplies, the other does its softmax.
                if group == 1 and tiles > 1:
                    T.named_barrier_arrive(4, CONSUMERS)
                T.fill(out, 0)
                T.barrier_wait(q_full, 0)
                T.barrier_wait(k_full[0], 0)
                T.wgmma_gemm(
                    q,
                    k[0, :, :],
                    logits,
                    transpose_B=True,
                    policy=T.GemmWarpPolicy.FullRow,
                    clear_accum=True,
                )
                T.wait_wgmma(0)
                T.barrier_arrive(k_free[0])
                hide_columns(logits, ROWS, KEYS, -first)
                first_max(logits, row_max, ROWS)
                last_weight = T.if_then_else(tiles == 1, pad_weight, 1.0)
                exponentiate(logits, row_max, ROWS, KEYS, scale_log2, last_weight)
                T.reduce_sum(logits, row_sum, dim=1, clear=True)
                T.copy(logits, weights)
                if tiles > 1:
                    T.barrier_wait(k_full[1], 0)
                for n in T.serial(1, tiles):
                    T.sync_threads(4 + group, CONSUMERS)
                    T.wgmma_gemm(
                        q,
                        k[n % STAGES, :, :],
                        logits,
                        transpose_B=True,
                        policy=T.GemmWarpPolicy.FullRow,
                        clear_accum=True,
                    )
                    T.barrier_wait(v_full[(n - 1) % STAGES], (n - 1) // STAGES % 2)
                    T.wgmma_gemm(
                        weights, v[(n - 1) % STAGES, :, :], out, policy=T.GemmWarpPolicy.FullRow
                    )
                    if group == 0 or n + 1 < tiles:
                        T.named_barrier_arrive(5 - group, CONSUMERS)
                    T.wait_wgmma(1)
                    T.barrier_arrive(k_free[n % STAGES])
                    raise_max(logits, row_max, old_max, correction, ROWS, scale_log2)
                    last_weight = T.if_then_else(n == tiles - 1, pad_weight, 1.0)
                    exponentiate(logits, row_max, ROWS, KEYS, scale_log2, last_weight)
                    for i in T.Parallel(ROWS):
                        row_sum[i] *= correction[i]
                    T.reduce_sum(logits, row_sum, dim=1, clear=False)
                    # Here and not at the top of the loop: ptxas would move the wait for the second
                    # product in front of the softmax if no branch stood between them.
                    if n + 1 < tiles:
                        T.barrier_wait(k_full[(n + 1) % STAGES], (n + 1) // STAGES % 2)
                    T.wait_wgmma(0)
                    T.barrier_arrive(v_free[(n - 1) % STAGES])
                    T.copy(logits, weights)
                    for i, j in T.Parallel(ROWS, head_dim):
                        out[i, j] *= correction[i]
                T.barrier_wait(v_full[(tiles - 1) % STAGES], (tiles - 1) // STAGES % 2)
                T.wgmma_gemm(
                    weights, v[(tiles - 1) % STAGES, :, :], out, policy=T.GemmWarpPolicy.FullRow
                )
                finish(row_max, row_sum, correction, lse, with_lse, b, h, bx * ROWS, ROWS, S, scale)
                T.wait_wgmma(0)
                for i, j in T.Parallel(ROWS, head_dim):
                    out[i, j] *= correction[i]
                # Through shared memory and TMA: whole lines, and rows past S are cut off.
                T.copy(out, q)
                T.fence_proxy_async()
                T.sync_threads(1, CONSUMERS)
                T.tma_copy(q, O[b, bx * ROWS : (bx + 1) * ROWS, h, :])
                T.tma_store_wait(0)
            else:
                T.set_max_nreg(24, 0)
                if thread < CONSUMERS + PRODUCER_WARP:
                    T.tma_copy(
                        Q[b, bx * ROWS : (bx + 1) * ROWS, h, :],
                        q,
                        barrier=q_full,
                        leader_scope_threads=PRODUCER_WARP,
                    )
                    T.barrier_arrive(q_full)
                    for n in T.serial(tiles):
                        stage = n % STAGES
                        T.barrier_wait(k_free[stage], n // STAGES % 2 ^ 1)
                        T.tma_copy(
                            K[b, first + n * KEYS : first + (n + 1) * KEYS, h, :],
                            k[stage, :, :],
                            barrier=k_full[stage],
                            leader_scope_threads=PRODUCER_WARP,
                        )
                        T.barrier_arrive(k_full[stage])
                        T.barrier_wait(v_free[stage], n // STAGES % 2 ^ 1)
                        T.tma_copy(
                            V[b, first + n * KEYS : first + (n + 1) * KEYS, h, :],
                            v[stage, :, :],
                            barrier=v_full[stage],
                            leader_scope_threads=PRODUCER_WARP,
                        )
                        T.barrier_arrive(v_full[stage])

    return main
