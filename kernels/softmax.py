"""The online softmax of one key tile, shared by the attention kernels.

Four neighbouring threads hold a row in their registers, so its maximum and sum take two shuffles
and no shared memory. Exponentials are to base 2, for which the hardware has an instruction.
"""

from __future__ import annotations

import tilelang.language as T

LOG2E = 1.4426950408889634
MINUS_INFINITY = -float("inf")


@T.macro
def hide_columns(logits, rows, keys, hidden):
    """Take the first `hidden` columns of a tile out of the softmax."""
    for i, j in T.Parallel(rows, keys):
        logits[i, j] = T.if_then_else(j < hidden, MINUS_INFINITY, logits[i, j])


@T.macro
def first_max(logits, row_max, rows):
    """Take each row's maximum over the first tile."""
    T.reduce_max(logits, row_max, dim=1, clear=True)
    for i in T.Parallel(rows):
        # A row without a key: any finite maximum will do, and its weights become 0 and not NaN.
        row_max[i] = T.if_then_else(row_max[i] == MINUS_INFINITY, 0.0, row_max[i])


@T.macro
def raise_max(logits, row_max, old_max, correction, rows, scale_log2):
    """Take a later tile into the maximum; earlier results are to be multiplied by `correction`."""
    T.copy(row_max, old_max)
    T.reduce_max(logits, row_max, dim=1, clear=False)
    for i in T.Parallel(rows):
        correction[i] = T.exp2((old_max[i] - row_max[i]) * scale_log2)


@T.macro
def exponentiate(logits, row_max, rows, keys, scale_log2, last_weight):
    """Compute `exp(scale * (logit - max))`; the last column counts `last_weight` times."""
    for i, j in T.Parallel(rows, keys):
        logits[i, j] = T.exp2(logits[i, j] * scale_log2 - row_max[i] * scale_log2)
    for i, j in T.Parallel(rows, keys):
        if j == keys - 1:
            logits[i, j] *= last_weight


@T.macro
def finish(row_max, row_sum, inverse, lse, with_lse, b, h, first_row, rows, S, scale):
    """Store the log-sum-exp of the rows that exist; invert the sums, to 0 where there is no key."""
    for i in T.Parallel(rows):
        inverse[i] = T.if_then_else(row_sum[i] == 0.0, 0.0, 1.0 / row_sum[i])
    for i in T.Parallel(rows):
        if with_lse != 0 and first_row + i < S:
            lse[b, h, first_row + i] = T.if_then_else(
                row_sum[i] == 0.0, MINUS_INFINITY, row_max[i] * scale + T.log(row_sum[i])
            )
