// The products of fp4_attention on block-scaled tensor cores: q with keys and with their means,
// weights with values. Device code, torch-free.
//
// With g = lane / 4 and t = lane % 4, a thread holds rows g and g + 8 of its warp's 16.
#pragma once

#include "fp4_attention/fp4_attention_sm120.cuh"
#include "fp4_attention/fp4_attention_sm120_copy.cuh"
#include "fp4_attention/fp4_attention_sm120_kernel.h"
#include "fp4_attention/fp4_softmax.cuh"

namespace vidk::sm120 {

using fp4::multiply_add;

__device__ inline uint32_t pack_bf16(float low, float high) {
  uint32_t word;
  BFloat16::pack(make_float2(low, high), &word);
  return word;
}

// A warp's rows of q.
template <class Format>
struct Queries {
  uint32_t codes[Format::kSteps][4];
  uint32_t scales[Format::kGroups];
  uint4 values[2][4];  // of rows g and g + 8: chunks t + 4 i; for the products with means
};

__device__ inline uint32_t word_at(const uint8_t* p) {
  return __ldg(reinterpret_cast<const uint32_t*>(p));
}

// A negative scale turns the sign of q, so that the largest product is the largest logit. Rows past
// the end are zeros.
template <class Format>
__device__ void load_queries(const Fp4Sm120Params& p, Queries<Format>& q) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int row = threadIdx.x / 32 * 16 + g;  // of the tile
  const int64_t head = int64_t{blockIdx.z} * gridDim.y + blockIdx.y;
  const bool turn = p.scale < 0;
  const uint32_t signs = !turn ? 0 : Format::kMxfp8 ? 0x80808080u : 0x88888888u;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t token = int64_t{blockIdx.x} * 128 + row + 8 * half;
    const bool exists = token < p.tokens;
    const uint8_t* codes = p.q_codes + (head * p.tokens + token) * Format::kRowBytes + 4 * t;
#pragma unroll
    for (int k = 0; k < Format::kSteps; ++k) {
      q.codes[k][half] = exists ? word_at(codes + 32 * k) ^ signs : 0;
      q.codes[k][2 + half] = exists ? word_at(codes + 32 * k + 16) ^ signs : 0;
    }
    const uint8_t* values = reinterpret_cast<const uint8_t*>(p.q.data) +
                            blockIdx.z * p.q.batch_stride + token * p.q.token_stride +
                            blockIdx.y * p.q.head_stride + 16 * t;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      uint4 x = {};
      if (p.k_mean != nullptr && exists) x = __ldg(reinterpret_cast<const uint4*>(values + 64 * i));
      const uint32_t sign = turn ? 0x80008000u : 0;
      q.values[half][i] = make_uint4(x.x ^ sign, x.y ^ sign, x.z ^ sign, x.w ^ sign);
    }
  }
  const int mine = row + 8 * (t % 2);
  const uint8_t* scales = p.q_scales + (head * gridDim.x + blockIdx.x) * Format::kScaleBytes +
                          mine % 32 * 16 + mine / 32 * 4;
#pragma unroll
  for (int k = 0; k < Format::kGroups; ++k) q.scales[k] = word_at(scales + 512 * k);
}

// Products of q with the means of eight tiles; those of tiles 2t and 2t + 1 come to this thread.
template <class Format>
__device__ void multiply_means(const Queries<Format>& q, uint32_t means, float (&product)[4]) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int r = 0; r < 4; ++r) product[r] = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    // Eight neighbours lie in one thread, in q as in the mean: any order of channels will do.
    const uint4 mean = load_shared(means + 256 * g + 16 * mean_chunk(g, 4 * i + t));
    const uint4 &low = q.values[0][i], &high = q.values[1][i];
    const uint32_t a[2][4] = {{low.x, high.x, low.y, high.y}, {low.z, high.z, low.w, high.w}};
    const uint32_t b[2][2] = {{mean.x, mean.y}, {mean.z, mean.w}};
    multiply_add(product, a[0], b[0]);
    multiply_add(product, a[1], b[1]);
  }
}

// Products of codes with 64 keys; value r of n is row g + 8 (r / 2), key 8 n + 2 t + r % 2.
template <class Format>
__device__ void multiply_keys(const Queries<Format>& q, uint32_t keys, uint32_t scales, bool odd,
                              float (&product)[8][4]) {
  constexpr int kChunks = Format::kRowBytes / 16;
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  // A word has the factors of key 8 t + g, so that one register serves four runs of eight keys.
  uint32_t factors[Format::kGroups][2];
#pragma unroll
  for (int k = 0; k < Format::kGroups; ++k) {
    const uint4 rows = load_shared(scales + 512 * k + 16 * scale_chunk(8 * t + g));
    factors[k][0] = odd ? rows.z : rows.x;
    factors[k][1] = odd ? rows.w : rows.y;
  }
#pragma unroll
  for (int pair = 0; pair < 4; ++pair) {
    uint32_t b[kChunks / 2][4];
#pragma unroll
    for (int i = 0; i < kChunks / 2; ++i) {
      const int matrix = 4 * i + lane / 8;
      const int row = matrix / kChunks * 8 + lane % 8;
      load_matrices(keys + (16 * pair + row) * Format::kRowBytes +
                        16 * swizzle<kChunks>(lane % 8, matrix % kChunks),
                    b[i]);
    }
#pragma unroll
    for (uint16_t j = 0; j < 2; ++j) {
      const uint16_t n = 2 * pair + j;
      float (&d)[4] = product[n];
      d[0] = d[1] = d[2] = d[3] = 0;
#pragma unroll
      for (uint16_t k = 0; k < Format::kSteps; ++k) {
        const int at = j * kChunks + 2 * k;
        const uint32_t b0 = b[at / 4][at % 4], b1 = b[at / 4][at % 4 + 1];
        if constexpr (Format::kMxfp8) {
          multiply_fp8(d, q.codes[k], b0, b1, q.scales[0], factors[0][n / 4], k, n % 4);
        } else {
          multiply_fp4(d, q.codes[k], b0, b1, q.scales[k], factors[k][n / 4], n % 4);
        }
      }
    }
  }
}

// out += weights values, of 64 keys. Value r of `out[n]` is column 8 n + 2 t + r % 2.
__device__ inline void multiply_bf16_values(const float (&w)[8][4], uint32_t values,
                                            float (&out)[16][4]) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    uint32_t a[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float (&x)[4] = w[2 * k + i / 2];
      a[i] = pack_bf16(x[i % 2 * 2], x[i % 2 * 2 + 1]);
    }
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      uint32_t b[4];
      load_transposed(
          values + 256 * (16 * k + lane % 16) + 16 * swizzle<16>(lane % 8, 2 * n + lane / 16), b);
      multiply_add(out[2 * n], a, b);
      multiply_add(out[2 * n + 1], a, b + 2);
    }
  }
}

// The same for E4M3. The instruction takes four neighbouring k from a thread, which has two keys of
// each of two runs of eight: they are these four, in the values too. There, transposing pairs of
// bytes gives a thread two columns of two keys, hence columns in another order: value r of
// out[2 n + j] is column 16 n + 4 t + 2 (r % 2) + j.
__device__ inline void multiply_fp8_values(const float (&w)[8][4], uint32_t values,
                                           float (&out)[16][4]) {
  constexpr uint32_t kOne = 0x7f7f7f7fu;  // E8M0
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    uint32_t a[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float (&x)[4] = w[4 * k + i / 2 * 2];
      const float (&y)[4] = w[4 * k + i / 2 * 2 + 1];
      const int r = i % 2 * 2;
      a[i] = pack_e4m3(x[r], x[r + 1], y[r], y[r + 1]);
    }
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      uint32_t b[4];
      load_transposed(values + 128 * (32 * k + lane) + 16 * swizzle<8>(lane % 8, n), b);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const uint32_t bytes = j == 0 ? 0x6420 : 0x7531;
        multiply_fp8(out[2 * n + j], a, __byte_perm(b[0], b[1], bytes),
                     __byte_perm(b[2], b[3], bytes), kOne, kOne, 0, 0);
      }
    }
  }
}

}  // namespace vidk::sm120
