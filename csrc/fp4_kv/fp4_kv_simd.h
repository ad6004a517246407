// The torch-free side of qk_norm_rope_nvfp4_kv_write: one function per instruction set for each of
// its two passes.
#pragma once

#include "common/isa.h"
#include "fp4_kv/fp4_kv_args.h"

namespace vidk {

// Floats that a thread needs: for the angles of a token and a row as elements, and the sums of five
// rows or one row as floats and as codes.
inline int64_t fp4_kv_scratch(int64_t heads, int64_t dim) { return dim + 6 * heads * dim; }

}  // namespace vidk

// Computes the means of tiles [begin, end) of the B * F * (tiles of a frame).
VIDK_DECLARE_ISA(void fp4_kv_means(const Fp4KvArgs& args, int64_t begin, int64_t end,
                                   float* scratch);)
// Does tokens [begin, end) of the B * S ones; the means are there.
VIDK_DECLARE_ISA(void fp4_kv_tokens(const Fp4KvArgs& args, int64_t begin, int64_t end,
                                    float* scratch);)
