// Where a token lies, its angles, and the rotation by them. Device code, torch-free; shared by the
// kernels that rotate.
#pragma once

#include <cstdint>

#include "rope/rope_grid.h"

namespace vidk {

// The table row of each band; bands are time, row and column.
struct TokenPosition {
  int64_t band[3];

  // Not past the last frame, and at a position that the table has.
  __device__ bool is_rotated() const { return band[0] >= 0; }
};

constexpr int32_t kNoPosition = -1;

// The row of the time table for a frame. A frame's position is data on the device, which nobody
// could check without a synchronisation: past the table there is no angle, and none is read.
__device__ inline int32_t time_row(const RopeGrid& grid, int64_t frame) {
  const int32_t position = __ldg(grid.frame_pos + frame);
  return position >= 0 && position < grid.time_rows ? position : kNoPosition;
}

// Unsigned, because the compiler divides unsigned 64-bit numbers in 32 bits where they fit.
__device__ inline TokenPosition locate(const RopeGrid& grid, uint64_t token) {
  const uint64_t width = grid.width;
  const uint64_t frame_tokens = grid.height * grid.width;
  const uint64_t slice = token / static_cast<uint64_t>(grid.slice_tokens);
  const uint64_t in_slice = token - slice * grid.slice_tokens;
  const uint64_t index = slice * frame_tokens + grid.token_offset + in_slice;
  const uint64_t frame = index / frame_tokens;
  const uint64_t in_frame = index - frame * frame_tokens;
  const uint64_t row = in_frame / width;
  const bool is_padding = frame >= static_cast<uint64_t>(grid.frames);
  return {{is_padding ? kNoPosition : time_row(grid, frame), static_cast<int64_t>(row),
           static_cast<int64_t>(in_frame - row * width)}};
}

// One pair's column of its band's table.
struct PairAngles {
  const float2* column;
  int64_t stride;
  int band;

  __device__ PairAngles(const RopeGrid& grid, int64_t pair) {
    const bool in_time = pair < grid.time_pairs;
    int64_t at = pair;
    band = 0;
    if (!in_time) {
      at -= grid.time_pairs;
      band = at < grid.space_pairs ? 1 : 2;
      if (band == 2) at -= grid.space_pairs;
    }
    const float* table = in_time ? grid.time_freqs : grid.space_freqs;
    stride = in_time ? grid.time_pairs : grid.space_pairs;
    column = reinterpret_cast<const float2*>(table) + at;
  }
  // (cos, sin)
  __device__ float2 at(int64_t row) const { return __ldg(column + row * stride); }
};

// Each product rounded by itself, as on the CPU: a fused multiply-add would round once.
__device__ inline float2 rotated(float2 t, float cos, float sin) {
  return make_float2(__fsub_rn(__fmul_rn(t.x, cos), __fmul_rn(t.y, sin)),
                     __fadd_rn(__fmul_rn(t.x, sin), __fmul_rn(t.y, cos)));
}

}  // namespace vidk
