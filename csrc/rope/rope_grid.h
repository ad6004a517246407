// Where the tokens of a block lie and what rotates them; for every kernel that rotates, on every
// device. Torch-free.
#pragma once

#include <cstdint>

namespace vidk {

// Where a block's tokens lie, and the tables that hold their angles as (cos, sin).
struct RopeGrid {
  const int32_t* frame_pos;
  int64_t frames;
  const float* time_freqs;   // [time_rows, time_pairs, 2]
  const float* space_freqs;  // [positions, space_pairs, 2]
  int64_t time_rows;
  int64_t time_pairs;
  int64_t space_pairs;
  int64_t height;
  int64_t width;
  int64_t token_offset;
  int64_t slice_tokens;
};

}  // namespace vidk
