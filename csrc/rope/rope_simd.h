// The torch-free side of rope_3d: a range of tokens, one function per instruction set.
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "common/tensor_view.h"

namespace vidk {

enum class Element { kFloat32, kBFloat16, kFloat16 };

// Where a block's tokens lie, and the tables that hold their angles as (cos, sin).
struct RopeGrid {
  const int32_t* frame_pos;
  int64_t frames;
  const float* time_freqs;   // [positions, time_pairs, 2]
  const float* space_freqs;  // [positions, space_pairs, 2]
  int64_t time_pairs;
  int64_t space_pairs;
  int64_t height;
  int64_t width;
  int64_t token_offset;
  int64_t slice_tokens;
};

struct RopeArgs {
  Element element;
  ByteView x;
  ByteView out;
  RopeGrid grid;
};

}  // namespace vidk

// Rotates tokens [begin, end) of the B * S ones. `angles` is room for D floats.
VIDK_DECLARE_ISA(void rope_tokens(const RopeArgs& args, int64_t begin, int64_t end, float* angles);)
