// What a warp does with the logits of its 16 queries: means, softmax, log-sum-exp. Torch-free.
//
// Fragments are those of mma.sync and of wgmma: thread 4 g + t of a warp holds, of rows g and g +
// 8, columns 2 t and 2 t + 1 of every eight, as x[4 n + 2 (row / 8) + column % 2].
#pragma once

#include <cstdint>

#include "common/vector.cuh"
#include "fp4_attention/fp4_decode.cuh"
#include "fp4_attention/fp4_keys.cuh"

namespace vidk::fp4 {

constexpr float kLog2E = 1.4426950408889634f;

__device__ inline void multiply_add(float* c, const uint32_t* a, const uint32_t* b) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ inline float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ inline float over_quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

__device__ inline float over_quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// The products of 16 queries and the means of eight tiles at a time: one in 64 of the products with
// keys, so that reading q again each time costs little.
struct MeanProducts {
  static constexpr int kTiles = 8;
  float products[4];

  // Rows `first` to `first` + 15 of q, as far as there are any; means of tiles from `tile` on, as
  // far as there are `tiles`.
  __device__ void compute(const Fp4PortableParams& p, int first, int tile, int tiles) {
    const uint32_t lane = here(threadIdx.x % 32);
    const int64_t batch = here(blockIdx.z);
    const int64_t head = here(blockIdx.y);
    const char* q = p.q.data + batch * p.q.batch_stride + head * p.q.head_stride;
    const char* k_mean =
        p.k_mean + ((batch * gridDim.y + head) * p.head_tiles + tile) * (2 * kHeadDim);
    const auto g = static_cast<int>(lane / 4);
    const auto t = static_cast<int>(lane % 4);
#pragma unroll
    for (float& x : products) x = 0;
#pragma unroll 1
    for (int i = 0; i < kHeadDim / 32; ++i) {
      uint32_t a[2][4] = {};
      uint32_t b[4] = {};
      const int at = (4 * i + t) * 16;  // channels in any order, the same for both
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = first + g + 8 * half;
        if (row < p.tokens) Access<16>::load(q + row * p.q.token_stride + at, a[half]);
      }
      if (tile + g < tiles) {
        Access<16>::load(k_mean + g * (2 * kHeadDim) + at, b);
      }
#pragma unroll
      for (int step = 0; step < 4; step += 2) {
        const uint32_t rows[] = {a[0][step], a[1][step], a[0][step + 1], a[1][step + 1]};
        multiply_add(products, rows, b + step);
      }
    }
  }

  // Of one of the tiles, for rows g and g + 8.
  __device__ void of_tile(int tile, float scale, float* shift) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float mine = tile % 2 == 0 ? products[2 * half] : products[2 * half + 1];
      shift[half] = scale * __shfl_sync(0xffffffffu, mine, tile % kTiles / 2, 4);
    }
  }
};

// Takes columns from `count` on out of the softmax.
template <int kColumns>
__device__ void hide(float (&x)[kColumns / 2], int count, int lane) {
#pragma unroll
  for (int i = 0; i < kColumns / 2; ++i) {
    if (i / 4 * 8 + lane % 4 * 2 + i % 2 >= count) x[i] = -INFINITY;
  }
}

struct OnlineSoftmax {
  float row_max[2] = {-INFINITY, -INFINITY};
  float row_sum[2] = {0, 0};  // of this thread's columns

  // Turns logits without their `shift`, which is the row's, into weights; what was summed up so far
  // is to be multiplied by `correction`.
  template <int kColumns>
  __device__ void weigh(float (&x)[kColumns / 2], const float* shift, float scale_log2,
                        float* correction) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float most = -INFINITY;
#pragma unroll
      for (int i = 2 * half; i < kColumns / 2; i += 4) most = fmaxf(most, fmaxf(x[i], x[i + 1]));
      most = fmaxf(row_max[half], over_quad_max(most) + shift[half]);
      // A row without a finite logit: any finite maximum will do.
      if (most == -INFINITY) most = 0;
      correction[half] = power_of_two((row_max[half] - most) * scale_log2);
      row_max[half] = most;
      const float offset = (shift[half] - most) * scale_log2;
      float sum = 0;
#pragma unroll
      for (int i = 2 * half; i < kColumns / 2; i += 4) {
#pragma unroll
        for (int j = i; j < i + 2; ++j) {
          x[j] = power_of_two(fmaf(x[j], scale_log2, offset));
          sum += x[j];
        }
      }
      row_sum[half] = row_sum[half] * correction[half] + sum;
    }
  }

  // Returns what to multiply the output by; rows without a key have zeros.
  __device__ void finish(float scale, float* inverse, float* log_sum_exp) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float sum = over_quad_sum(row_sum[half]);
      inverse[half] = sum == 0 ? 0 : 1 / sum;
      log_sum_exp[half] = sum == 0 ? -INFINITY : fmaf(row_max[half], scale, logf(sum));
    }
  }
};

// Weights as the first operand of the second product: step s is columns 16 s to 16 s + 15.
template <int kColumns>
__device__ void round_weights(const float (&x)[kColumns / 2], uint32_t (&w)[kColumns / 4]) {
#pragma unroll
  for (int i = 0; i < kColumns / 4; ++i) {
    BFloat16::pack(make_float2(x[2 * i], x[2 * i + 1]), &w[i]);
  }
}

}  // namespace vidk::fp4
