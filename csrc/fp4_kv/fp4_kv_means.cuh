// The first kernel of qk_norm_rope_nvfp4_kv_write: the means of the tiles. Device code, torch-free.
#pragma once

#include <cstdint>

#include "fp4_kv/fp4_kv_quantize.cuh"

namespace vidk::fp4_kv {

constexpr int kRowsAtOnce = 4;

// Where four rows' sums of a channel lie: of eight channels the halves apart, in other banks.
__device__ inline float* sum_of(float* sums, const Fp4KvParams& p, int four, int channel) {
  const int half = static_cast<int>(p.heads) * (kFp4KvDim / 2) + 16;
  return sums + (2 * four + channel / 4 % 2) * half + channel / 8 * 4 + channel % 4;
}

// Sums go by pairs of neighbours, as the CPU's do, so that their bits are the same.
__device__ inline float2 sum_of_four(float2 a, float2 b, float2 c, float2 d) {
  return make_float2(__fadd_rn(__fadd_rn(a.x, b.x), __fadd_rn(c.x, d.x)),
                     __fadd_rn(__fadd_rn(a.y, b.y), __fadd_rn(c.y, d.y)));
}

template <int kVecs>
__device__ void add_rows(const Vec (&k)[kRowsAtOnce][kVecs], int n, float4 (&out)[2]) {
  float2 pair[Vec::kPairs];
#pragma unroll
  for (int i = 0; i < Vec::kPairs; ++i) {
    pair[i] = sum_of_four(k[0][n].pair(i), k[1][n].pair(i), k[2][n].pair(i), k[3][n].pair(i));
  }
  out[0] = make_float4(pair[0].x, pair[0].y, pair[1].x, pair[1].y);
  out[1] = make_float4(pair[2].x, pair[2].y, pair[3].x, pair[3].y);
}

// The means from the sums of four rows each, to the cache and, where they are needed, to `means` in
// shared memory.
__device__ inline void store_means(float* sums, const Fp4KvParams& p, const Tile& tile,
                                   char* means) {
  const int channels = static_cast<int>(p.heads) * kFp4KvDim;
  for (int c = 2 * static_cast<int>(threadIdx.x); c < channels; c += 2 * blockDim.x) {
    float2 four[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) four[i] = *reinterpret_cast<const float2*>(sum_of(sums, p, i, c));
    const float2 sum = sum_of_four(four[0], four[1], four[2], four[3]);
    constexpr float kPart = 1.0f / kFp4Samples;
    uint32_t mean;
    BFloat16::pack(make_float2(__fmul_rn(sum.x, kPart), __fmul_rn(sum.y, kPart)), &mean);
    const int head = c / kFp4KvDim;
    char* const to = p.k_mean + tile.cache_tile(p, head) * (2 * kFp4KvDim);
    *reinterpret_cast<uint32_t*>(to + 2 * (c - head * kFp4KvDim)) = mean;
    if (means != nullptr) *reinterpret_cast<uint32_t*>(means + 2 * c) = mean;
  }
}

// Quantises the 16 rows of a tile, of which each group holds four.
template <bool kCross, int kVecs>
__device__ void write_samples(Vec (&k)[kRowsAtOnce][kVecs], const Fp4KvParams& p, const Tile& tile,
                              const Place& at, char* shared) {
  // Rows take turns in k[0]: unrolled, they would need more registers than there are.
#pragma unroll 1
  for (int i = 0; i < kRowsAtOnce; ++i) {
    const int sample = at.group * kRowsAtOnce + i;
    const int tile_row = tile.sample(sample);
    // A short tile has fewer rows than samples.
    const bool is_last = sample + 1 == kFp4Samples || tile.sample(sample + 1) != tile_row;
    uint8_t* codes = codes_of(p.k_to, p, at, tile.batch, tile.cache_row(p, tile_row));
#pragma unroll
    for (int n = 0; n < kVecs; ++n, codes += p.k_to.pass_stride) {
      const bool has = at.has(p, n);
      const int channel = has ? at.channel(p, n) : 0;
      float x[8];
      unpack(k[0][n], shared + p.means_at + channel * 2, x);
      if (p.perm != nullptr) permute(x, order_of(p.perm + channel), shared + p.exchange_at);
      quantize_vector<Fp4Scale::kFourOverSix, kCross>(
          x, p, at, has && is_last, true, codes,
          shared + p.stage_at + sample * p.stage_row_bytes + at.head(p, n) * p.columns);
    }
#pragma unroll
    for (int row = 1; row < kRowsAtOnce; ++row) {
#pragma unroll
      for (int n = 0; n < kVecs; ++n) k[row - 1][n] = k[row][n];
    }
  }
  __syncthreads();
  store_scales(p, shared + p.stage_at, kFp4Samples, [&](int head, int sample) -> uint8_t* {
    const int tile_row = tile.sample(sample);
    const bool is_last = sample + 1 == kFp4Samples || tile.sample(sample + 1) != tile_row;
    return is_last ? cache_scales(p, tile, head, tile_row) : nullptr;
  });
}

// A thread block takes 16 rows of a tile, four at a time by each group. Where all of them are in
// registers (kFinal) it quantises them too, and the second kernel leaves them out: no key is read
// twice.
template <bool kFinal, bool kCross, int kVecs>
__device__ void tile_means(const Fp4KvParams& p) {
  __shared__ float2 warp_sums[kRowsAtOnce / 2][kFp4KvMeansThreads / 32];
  const Tile tile(p, blockIdx.x);
  if (tile.slot < 0) return;
  const Place at(p, threadIdx.x);
  const int channels = static_cast<int>(p.heads) * kFp4KvDim;
  char* const shared = reinterpret_cast<char*>(norm_rope::shared_data);
  float* const sums = reinterpret_cast<float*>(shared);
  float* const angles =
      reinterpret_cast<float*>(shared + p.angles_at) + at.group * kRowsAtOnce * 2 * kFp4KvPairs;
  for (int i = threadIdx.x; i < channels / 8; i += blockDim.x) {
    Vec weight;
    weight.load(p.k_weight + i * Vec::kBytes);
    weight.store_shared(shared + p.weights_at + i * Vec::kBytes);
  }
  __syncthreads();

  Vec k[kRowsAtOnce][kVecs];
  for (int four = at.group; four < kFp4Samples / kRowsAtOnce; four += p.groups) {
    TileToken token(p, tile, tile.sample(four * kRowsAtOnce));
    const bool is_rotated = token.is_rotated();
#pragma unroll
    for (int i = 0; i < kRowsAtOnce; ++i) {
      if (i > 0) token.seek(p, tile, tile.sample(four * kRowsAtOnce + i));
      load(k[i], p, at, p.k, token);
      float* const staged = angles + i * 2 * kFp4KvPairs;
      norm_rope::stage_angles(p, token, kFp4KvPairs, staged - 2 * kFp4KvPairs, staged, at.thread,
                              p.group_threads);
    }
#pragma unroll
    for (int i = 0; i < kRowsAtOnce / 2; ++i) {
      float2 sum = make_float2(0.0f, 0.0f);
#pragma unroll
      for (int n = 0; n < kVecs; ++n) {
        sum.x = norm_rope::add_squares(sum.x, k[2 * i][n]);
        sum.y = norm_rope::add_squares(sum.y, k[2 * i + 1][n]);
      }
      sum = norm_rope::warp_sum(sum);
      if (threadIdx.x % 32 == 0) warp_sums[i][threadIdx.x / 32] = sum;
    }
    at.sync(p);
    float scale[kRowsAtOnce];
#pragma unroll
    for (int i = 0; i < kRowsAtOnce / 2; ++i) {
      const int warps = at.warps(p);
      const float2 two = norm_rope::scales(p, warp_sums[i] + at.group * warps, warps);
      scale[2 * i] = two.x;
      scale[2 * i + 1] = two.y;
    }
#pragma unroll
    for (int n = 0; n < kVecs; ++n) {
      if (!at.has(p, n)) continue;
      const int channel = at.channel(p, n);
      Vec weight;
      weight.load_shared(shared + p.weights_at + channel * 2);
#pragma unroll
      for (int i = 0; i < kRowsAtOnce; ++i) {
        float cos[Vec::kPairs], sin[Vec::kPairs];
        load_angles(angles + i * 2 * kFp4KvPairs, is_rotated, at.vec, cos, sin);
        norm_rope::norm_rotate(k[i][n], weight, scale[i], cos, sin);
      }
      float4 out[2];
      add_rows(k, n, out);
      *reinterpret_cast<float4*>(sum_of(sums, p, four, channel)) = out[0];
      *reinterpret_cast<float4*>(sum_of(sums, p, four, channel + 4)) = out[1];
    }
    if (kFinal) break;  // a group has no other
    at.sync(p);
  }
  __syncthreads();
  store_means(sums, p, tile, kFinal ? shared + p.means_at : nullptr);
  if constexpr (kFinal) {
    __syncthreads();
    // Derived once more, so that it need not stay in registers until here.
    unsigned block = blockIdx.x, thread = threadIdx.x;
    asm volatile("" : "+r"(block), "+r"(thread));
    write_samples<kCross>(k, p, Tile(p, block), Place(p, thread), shared);
  }
}

}  // namespace vidk::fp4_kv
