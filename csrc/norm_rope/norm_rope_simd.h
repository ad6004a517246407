// The torch-free side of qk_norm_rope_kv_write: a range of tokens, one function per instruction
// set.
#pragma once

#include "rope/rope_simd.h"

namespace vidk {

struct NormRopeArgs {
  Element element;
  ByteView q;
  ByteView k;
  ByteView v;
  ByteView q_out;
  ByteView k_cache;
  ByteView v_cache;
  const void* q_weight;  // [H * D], the element type of q
  const void* k_weight;
  float eps;
  const int32_t* frame_slot;
  RopeGrid grid;
};

}  // namespace vidk

// Does tokens [begin, end) of the B * S ones. `angles` is room for D floats.
VIDK_DECLARE_ISA(void norm_rope_tokens(const NormRopeArgs& args, int64_t begin, int64_t end,
                                       float* angles);)
