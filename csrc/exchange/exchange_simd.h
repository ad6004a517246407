// The torch-free side of qk_norm_rope_pack: a range of tokens, one function per instruction set.
#pragma once

#include "exchange/exchange_layout.h"
#include "rope/rope_simd.h"

namespace vidk {

// A view without data is a tensor that is not given.
struct PackArgs {
  Element element;
  ByteView q;
  ByteView k;
  ByteView v;
  const void* q_weight;  // [H * D], the element type of q
  const void* k_weight;
  float eps;
  RopeGrid grid;
  PackedChunks out;
  int64_t tokens;  // S
};

}  // namespace vidk

// Does tokens [begin, end) of the B * S ones. `angles` is room for D floats.
VIDK_DECLARE_ISA(void pack_tokens(const PackArgs& args, int64_t begin, int64_t end, float* angles);)
