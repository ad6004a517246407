// fp4_attention without block-scaled tensor cores: keys become bfloat16 in shared memory, once for
// 128 queries, and mma.sync does the rest. One source for every architecture from sm_80 on.
//
// While one block of 64 keys is multiplied, the codes of the next wait in registers, to be decoded
// into the other buffer. Half of the warps do so before the product of q and k and half after it:
// each scheduler has a warp of either half, so tensor cores need not wait for the decoding.
#include "common/kernel.cuh"
#include "fp4_attention/fp4_attention_portable_kernel.h"
#include "fp4_attention/fp4_keys.cuh"
#include "fp4_attention/fp4_row_codes.cuh"
#include "fp4_attention/fp4_softmax.cuh"

namespace vidk::fp4 {

constexpr int kKeys = kFp4PortableKeys;
constexpr int kThreads = kFp4PortableThreads;
constexpr int kWarpQueries = 16;
constexpr int kVRowBytes = 2 * kHeadDim;
constexpr int kVBytes = kKeys * kVRowBytes;

using Block = KeyBlock<kKeys>;

// Address of a chunk of 16 bytes; the same chunk of eight rows lies in all banks.
__device__ uint32_t chunk_at(uint32_t base, uint32_t row, uint32_t chunk, uint32_t row_bytes) {
  return base + row * row_bytes + ((chunk ^ row % 8) << 4);
}

// A lane's row of a matrix, in a tile whose rows have kRowBytes. `chunk` of `at` is even: the
// lane's own, 0 or 1, adds to it. Only four addresses are not others plus a constant.
template <int kRowBytes>
struct LaneRow {
  uint32_t row;
  uint32_t chunk;
  __device__ LaneRow(uint32_t base, uint32_t row_, uint32_t chunk_)
      : row(base + row_ * kRowBytes), chunk((chunk_ ^ row_ % 8) << 4) {}
  __device__ uint32_t at(uint32_t rows, uint32_t chunk_) const {
    return row + (chunk ^ chunk_ % 8 << 4) + rows * kRowBytes + chunk_ / 8 * 128;
  }
};

__device__ void load_matrices(uint32_t at, uint32_t* m) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(at)
               : "memory");
}

__device__ void load_transposed(uint32_t at, uint32_t* m) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(at)
               : "memory");
}

// The rows of q of a warp, as first operands of the products.
template <class Format>
struct Queries {
  static constexpr int kSteps = Format::kDepth / 16;
  uint32_t a[kSteps][4];

  __device__ void load(const uint8_t* codes, const uint8_t* scale_tile, int first, int tokens,
                       uint32_t flip, int lane) {
    const int g = lane / 4;
    const int t = lane % 4;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      uint32_t words[2][2 * Format::kChunkWords] = {};
      uint32_t scales = 0;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        // Rows that are not there may have any values.
        const int row = min(first + g + 8 * half, tokens - 1);
        const uint8_t* at = codes + static_cast<int64_t>(row) * Format::kRowBytes;
        Access<8 * Format::kChunkWords>::load(
            reinterpret_cast<const char*>(at) + step * 8 * Format::kChunkWords, words[half]);
        const int column = 2 * step / Format::kScaleChunks;
        scales |= static_cast<uint32_t>(__ldg(scale_tile + scale_offset(row % kTileRows, column)))
                  << (16 * half);
      }
      const uint32_t factors = Format::factors(scales);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        a[step][i] = Format::pair(words[i % 2] + i / 2 * Format::kChunkWords, t,
                                  both_halves(factors, i % 2)) ^
                     flip;
      }
    }
  }
};

// Logits of 16 queries, without what the means add and not yet scaled.
template <class Format>
__device__ void multiply_keys(const Queries<Format>& q, uint32_t k, float (&logits)[kKeys / 2],
                              int lane) {
#pragma unroll
  for (float& x : logits) x = 0;
  const LaneRow<2 * Format::kDepth> mine(k, lane / 16 * 8 + lane % 8, lane / 8 % 2);
#pragma unroll
  for (int step = 0; step < Queries<Format>::kSteps; ++step) {
#pragma unroll
    for (int n = 0; n < kKeys / 16; ++n) {
      uint32_t b[4];
      load_matrices(mine.at(16 * n, 2 * step), b);
      multiply_add(logits + 8 * n, q.a[step], b);
      multiply_add(logits + 8 * n + 4, q.a[step], b + 2);
    }
  }
}

__device__ void multiply_values(const uint32_t (&weights)[kKeys / 4], uint32_t v,
                                float (&out)[kHeadDim / 2], int lane) {
  const LaneRow<kVRowBytes> mine(v, lane / 8 % 2 * 8 + lane % 8, lane / 16);
#pragma unroll
  for (int step = 0; step < kKeys / 16; ++step) {
#pragma unroll
    for (int n = 0; n < kHeadDim / 16; ++n) {
      uint32_t b[4];
      load_transposed(mine.at(16 * step, 2 * n), b);
      multiply_add(out + 8 * n, weights + 4 * step, b);
      multiply_add(out + 8 * n + 4, weights + 4 * step, b + 2);
    }
  }
}

// Rows of a warp, through shared memory, so that whole lines are stored.
__device__ void store_rows(const float (&out)[kHeadDim / 2], const float* inverse, uint32_t staged,
                           char* to, int64_t stride, int rows, int lane) {
#pragma unroll
  for (int i = 0; i < kHeadDim / 4; ++i) {
    uint32_t word;
    BFloat16::pack(make_float2(out[2 * i] * inverse[i % 2], out[2 * i + 1] * inverse[i % 2]),
                   &word);
    const uint32_t at = chunk_at(staged, lane / 4 + i % 2 * 8, i / 2, kVRowBytes) + lane % 4 * 4;
    asm volatile("st.shared.b32 [%0], %1;" ::"r"(at), "r"(word) : "memory");
  }
  __syncwarp();
#pragma unroll
  for (int i = 0; i < kWarpQueries / 2; ++i) {
    const int row = 2 * i + lane / 16;
    uint32_t w[4];
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(w[0]), "=r"(w[1]), "=r"(w[2]), "=r"(w[3])
                 : "r"(chunk_at(staged, row, lane % 16, kVRowBytes))
                 : "memory");
    if (row < rows) Access<16>::store(to + row * stride + lane % 16 * 16, w);
  }
}

// A thread block takes 128 queries of a head, a warp 16 of them.
template <class Format, bool kVIsFp8>
__device__ void attend(const Fp4PortableParams& p) {
  constexpr int kKRowBytes = 2 * Format::kDepth;
  constexpr int kKBytes = kKeys * kKRowBytes;
  extern __shared__ __align__(128) char shared[];
  const uint32_t k_at = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const uint32_t v_at = k_at + 2 * kKBytes;
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  const int warp = thread / 32;
  const bool decodes_first = warp < kThreads / 64;

  const Keys keys(p);
  const Head<Format> head(p, blockIdx.z, blockIdx.y, gridDim.y);
  const int first = static_cast<int>(blockIdx.x) * kFp4PortableQueries + warp * kWarpQueries;
  const LogitScale logit_scale(p.scale);
  Queries<Format> q;
  q.load(head.q_codes, head.q_scales + int64_t{blockIdx.x} * Head<Format>::kTileBytes, first,
         p.tokens, logit_scale.flip, lane);

  RowCodes<Format, kKeys, kThreads> codes;
  RowValues<kKeys, kThreads> values;  // not used for bfloat16
  const auto load = [&](const Block& block) {
    const uint32_t thread = here(threadIdx.x);
    const int count = block.count(keys);
    codes.load(head.k_codes + static_cast<int64_t>(block.key()) * Format::kRowBytes,
               head.k_scales + static_cast<int64_t>(block.tile()) * Head<Format>::kTileBytes,
               block.tile_row(), count, thread);
    if constexpr (kVIsFp8) {
      values.load(head.v + block.key() * p.v.token_stride, p.v.token_stride, count, thread);
    }
  };
  const auto decode = [&](int buffer) {
    const uint32_t thread = here(threadIdx.x);
    codes.decode(thread, [&](uint32_t row, uint32_t chunk, const uint32_t* w) {
      store_chunk(chunk_at(k_at + buffer * kKBytes, row, chunk, kKRowBytes), w);
    });
    if constexpr (kVIsFp8) {
      values.decode(thread, [&](uint32_t row, uint32_t chunk, const uint32_t* w) {
        store_chunk(chunk_at(v_at + buffer * kVBytes, row, chunk, kVRowBytes), w);
      });
    }
  };
  const auto copy = [&](const Block& block, int buffer) {
    const uint32_t thread = here(threadIdx.x);
    if constexpr (!kVIsFp8) {
      copy_values<kKeys, kThreads>(head.v + block.key() * p.v.token_stride, p.v.token_stride,
                                   block.count(keys), thread, [&](uint32_t row, uint32_t chunk) {
                                     return chunk_at(v_at + buffer * kVBytes, row, chunk,
                                                     kVRowBytes);
                                   });
    }
  };

  const float scale = logit_scale.size * Format::kProductUnit;
  const float scale_log2 = scale * kLog2E;
  MeanProducts means;
  OnlineSoftmax softmax;
  float out[kHeadDim / 2] = {};
  float shift[2] = {0, 0};
  float correction[2];
  Block block;
  const int blocks = keys.blocks(kKeys);
  load(block);
  decode(0);
  copy(block, 0);
  load(block.next(keys));
  for (int n = 0; n < blocks; ++n) {
    const int buffer = n % 2;
    asm volatile("cp.async.wait_all;" ::: "memory");
    __syncthreads();
    const Block next = block.next(keys);
    copy(next, buffer ^ 1);
    if (decodes_first) {
      decode(buffer ^ 1);
      load(next.next(keys));
    }
    if (p.k_mean != nullptr) {
      const int tile = block.tile();
      if (block.tile_row() == 0 && tile % MeanProducts::kTiles == 0) {
        means.compute(p, first, tile, keys.blocks(kTileRows));
      }
      means.of_tile(tile, logit_scale.sign / Format::kProductUnit, shift);
    }
    float logits[kKeys / 2];
    multiply_keys(q, k_at + buffer * kKBytes, logits, lane);
    if (!decodes_first) {
      decode(buffer ^ 1);
      load(next.next(keys));
    }
    const int count = block.count(keys);
    if (count < kKeys) hide<kKeys>(logits, count, lane);
    softmax.weigh<kKeys>(logits, shift, scale_log2, correction);
#pragma unroll
    for (int i = 0; i < kHeadDim / 2; ++i) out[i] *= correction[i / 2 % 2];
    uint32_t weights[kKeys / 4];
    round_weights<kKeys>(logits, weights);
    multiply_values(weights, v_at + buffer * kVBytes, out, lane);
    block = next;
  }

  float inverse[2];
  float log_sum_exp[2];
  softmax.finish(scale, inverse, log_sum_exp);
  const int64_t head_at = static_cast<int64_t>(blockIdx.z) * gridDim.y + blockIdx.y;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = first + lane / 4 + 8 * half;
    if (lane % 4 == 0 && row < p.tokens) p.lse[head_at * p.tokens + row] = log_sum_exp[half];
  }
  asm volatile("cp.async.wait_all;" ::: "memory");
  __syncthreads();
  const int64_t stride = static_cast<int64_t>(gridDim.y) * kVRowBytes;
  char* to = p.out + (static_cast<int64_t>(blockIdx.z) * p.tokens + first) * stride +
             blockIdx.y * static_cast<int64_t>(kVRowBytes);
  store_rows(out, inverse, k_at + warp * kWarpQueries * kVRowBytes, to, stride, p.tokens - first,
             lane);
}

}  // namespace vidk::fp4

using namespace vidk;
VIDK_KERNEL(vidk_fp4_attention_portable_d128_bf16, Fp4PortableParams, (kFp4PortableThreads, 1),
            fp4::attend<fp4::Nvfp4<128>, false>)
VIDK_KERNEL(vidk_fp4_attention_portable_d192_bf16, Fp4PortableParams, (kFp4PortableThreads, 1),
            fp4::attend<fp4::Nvfp4<192>, false>)
VIDK_KERNEL(vidk_fp4_attention_portable_d256_bf16, Fp4PortableParams, (kFp4PortableThreads, 1),
            fp4::attend<fp4::Nvfp4<256>, false>)
VIDK_KERNEL(vidk_fp4_attention_portable_mxfp8_bf16, Fp4PortableParams, (kFp4PortableThreads, 1),
            fp4::attend<fp4::Mxfp8, false>)
VIDK_KERNEL(vidk_fp4_attention_portable_d128_e4m3, Fp4PortableParams, (kFp4PortableThreads, 1),
            fp4::attend<fp4::Nvfp4<128>, true>)
VIDK_KERNEL(vidk_fp4_attention_portable_d192_e4m3, Fp4PortableParams, (kFp4PortableThreads, 1),
            fp4::attend<fp4::Nvfp4<192>, true>)
VIDK_KERNEL(vidk_fp4_attention_portable_d256_e4m3, Fp4PortableParams, (kFp4PortableThreads, 1),
            fp4::attend<fp4::Nvfp4<256>, true>)
VIDK_KERNEL(vidk_fp4_attention_portable_mxfp8_e4m3, Fp4PortableParams, (kFp4PortableThreads, 1),
            fp4::attend<fp4::Mxfp8, true>)
