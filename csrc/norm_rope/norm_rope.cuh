// What the kernels that normalise and rotate are made of. Device code, torch-free.
#pragma once

#include <cstdint>

#include "common/vector.cuh"
#include "norm_rope/norm_rope_kernel.h"
#include "rope/rope_angles.cuh"

namespace vidk::norm_rope {

constexpr int kMaxWarps = 16;

// One of successive tokens. Index is the type of token counts, cache rows and table rows; memory
// offsets have 64 bits always.
template <class Index>
struct GridToken {
  static constexpr uint32_t kRow = 2, kColumn = 4, kAllBands = 7;

  Index batch, token;
  Index frame, row, col;
  int32_t time;  // row of the time table, negative: not rotated
  // A bit for each band whose angles differ from those of the token before.
  uint32_t new_bands;

  __device__ bool is_rotated() const { return time >= 0; }
  __device__ bool is_new(int band) const { return new_bands >> band & 1; }
  __device__ Index table_row(int band) const {
    return band == 0 ? static_cast<Index>(time) : band == 1 ? row : col;
  }
};

__device__ inline int64_t row_offset(const Rows& x, int64_t batch, int64_t token) {
  return batch * x.batch_stride + token * x.token_stride;
}

// The sum of squares of a thread's vectors; fused, as nothing asks for the CPU's order of sums.
template <class Vec>
__device__ float add_squares(float sum, const Vec& x) {
#pragma unroll
  for (int i = 0; i < Vec::kPairs; ++i) {
    const float2 t = x.pair(i);
    sum = __fmaf_rn(t.x, t.x, sum);
    sum = __fmaf_rn(t.y, t.y, sum);
  }
  return sum;
}

__device__ inline float2 warp_sum(float2 sum) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    sum.x += __shfl_xor_sync(0xffffffffu, sum.x, lanes);
    sum.y += __shfl_xor_sync(0xffffffffu, sum.y, lanes);
  }
  return sum;
}

// 1 / sqrt(mean(x^2) + eps) of q and k, from the sums of the token's warps.
__device__ inline float2 scales(const NormRopeTokens& p, const float2* warp_sums, unsigned warps) {
  float2 sum = make_float2(0.0f, 0.0f);
  for (unsigned warp = 0; warp < warps; ++warp) {
    sum.x += warp_sums[warp].x;
    sum.y += warp_sums[warp].y;
  }
  return make_float2(__frcp_rn(__fsqrt_rn(__fadd_rn(__fdiv_rn(sum.x, p.channels), p.eps))),
                     __frcp_rn(__fsqrt_rn(__fadd_rn(__fdiv_rn(sum.y, p.channels), p.eps))));
}

// The model's own order of rounding: after the norm, after the weight, after the rotation.
template <class Vec>
__device__ void norm_rotate(Vec& x, const Vec& weight, float scale, const float* cos,
                            const float* sin) {
#pragma unroll
  for (int i = 0; i < Vec::kPairs; ++i) {
    const float2 t = x.pair(i);
    x.set_pair(i, make_float2(__fmul_rn(t.x, scale), __fmul_rn(t.y, scale)));
    x.multiply_pair(i, weight);
    x.set_pair(i, rotated(x.pair(i), cos[i], sin[i]));
  }
}

// The angles of no rotation, for tokens at a position that the table does not have.
template <int kPairs>
__device__ void set_identity(float (&cos)[kPairs], float (&sin)[kPairs]) {
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    cos[i] = 1.0f;
    sin[i] = 0.0f;
  }
}

}  // namespace vidk::norm_rope
