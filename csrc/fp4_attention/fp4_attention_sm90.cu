// fp4_attention for Hopper: one warpgroup makes bfloat16 of codes, in the swizzled tiles that wgmma
// reads, and two warpgroups of 64 queries compute. Keys are decoded once for 128 queries.
//
// The products of q and k of a block are issued before those of weights and v of the block before
// it, so that the softmax runs while tensor cores have work; the two computing warpgroups take
// turns at issuing, so that one's softmax falls into the other's products.
//
// VIDK_ARCHS 90a
#include "common/kernel.cuh"
#include "common/mbarrier.cuh"
#include "fp4_attention/fp4_attention_portable_kernel.h"
#include "fp4_attention/fp4_keys.cuh"
#include "fp4_attention/fp4_row_codes.cuh"
#include "fp4_attention/fp4_softmax.cuh"
#include "fp4_attention/fp4_wgmma.cuh"

namespace vidk::fp4 {

constexpr int kGroup = 128;  // threads of a warpgroup
constexpr int kComputing = 2 * kGroup;
constexpr int kQueries = kFp4PortableQueries;
constexpr int kGroupQueries = kQueries / 2;
constexpr int kStages = 2;
constexpr int kPanelBytes = 128;  // of a row in a tile: 64 channels

// Barriers of the block; 0 is __syncthreads.
constexpr int kQueriesBarrier = 1;
constexpr int kTurnBarrier = 2;   // one for each computing warpgroup
constexpr int kStoreBarrier = 4;  // likewise

template <class Format>
struct Tiles {
  static constexpr int kKeys = fp4_sm90_keys(Format::kDepth);
  static constexpr int kQBytes = kQueries * 2 * Format::kDepth;
  static constexpr int kKBytes = kKeys * 2 * Format::kDepth;
  static constexpr int kVBytes = kKeys * 2 * kHeadDim;

  uint32_t q, k, v;
  Mbarrier* k_full;
  Mbarrier* k_free;
  Mbarrier* v_full;
  Mbarrier* v_free;

  __device__ explicit Tiles(char* shared) {
    q = shared_address(shared);
    k = q + kQBytes;
    v = k + kStages * kKBytes;
    k_full = reinterpret_cast<Mbarrier*>(shared + kQBytes + kStages * (kKBytes + kVBytes));
    k_free = k_full + kStages;
    v_full = k_free + kStages;
    v_free = v_full + kStages;
  }
};

// Where a chunk of 16 bytes lies in a tile of kRows rows: panels of 128 bytes a row, swizzled.
template <int kRows>
__device__ uint32_t panel_at(uint32_t tile, uint32_t row, uint32_t chunk) {
  return tile + chunk / 8 * (kRows * kPanelBytes) + row * kPanelBytes +
         ((chunk % 8 ^ row % 8) << 4);
}

__device__ void sync(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

__device__ void arrive(int barrier, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// The same of E4M3 values.
template <int kKeys>
__device__ void convert_values(const char* v, int64_t stride, int count, uint32_t to,
                               uint32_t thread) {
  constexpr int kRows = 32;  // at a time
#pragma unroll 2
  for (int first = 0; first < kKeys; first += kRows) {
    RowValues<kRows, kGroup> values;
    values.load(v + first * stride, stride, count - first, thread);
    values.decode(thread, [&](uint32_t row, uint32_t chunk, const uint32_t* w) {
      store_chunk(panel_at<kKeys>(to, first + row, chunk), w);
    });
  }
}

// Values follow their keys a block later, in the order in which they are used; cp.async brings them
// while the next keys are decoded.
template <class Format, bool kVIsFp8>
__device__ void produce(const Fp4PortableParams& p, const Head<Format>& head, const Keys& keys,
                        Tiles<Format> tiles) {
  constexpr int kKeys = Tiles<Format>::kKeys;
  const int blocks = keys.blocks(kKeys);
  RowCodes<Format, kKeys, kGroup> codes;
  KeyBlock<kKeys> block;
  KeyBlock<kKeys> before;
  const auto load = [&] {
    codes.load(head.k_codes + static_cast<int64_t>(block.key()) * Format::kRowBytes,
               head.k_scales + static_cast<int64_t>(block.tile()) * Head<Format>::kTileBytes,
               block.tile_row(), block.count(keys), here(threadIdx.x % kGroup));
  };
  load();
  for (int n = 0; n <= blocks; ++n) {
    const int k_stage = n % kStages;
    const int v_stage = (n + 1) % kStages;
    const uint32_t k = tiles.k + k_stage * Tiles<Format>::kKBytes;
    const uint32_t v = tiles.v + v_stage * Tiles<Format>::kVBytes;
    if (n > 0) {
      tiles.v_free[v_stage].wait((n - 1) / kStages % 2 ^ 1);
      if constexpr (!kVIsFp8) {
        copy_values<kKeys, kGroup>(
            head.v + before.key() * p.v.token_stride, p.v.token_stride, before.count(keys),
            here(threadIdx.x % kGroup),
            [&](uint32_t row, uint32_t chunk) { return panel_at<kKeys>(v, row, chunk); });
      }
    }
    if (n < blocks) {
      tiles.k_free[k_stage].wait(n / kStages % 2 ^ 1);
      codes.decode(here(threadIdx.x % kGroup),
                   [&](uint32_t row, uint32_t chunk, const uint32_t* w) {
                     store_chunk(panel_at<kKeys>(k, row, chunk), w);
                   });
      fence_async_proxy();
      tiles.k_full[k_stage].arrive();
    }
    if (n > 0) {
      if constexpr (kVIsFp8) {
        convert_values<kKeys>(head.v + before.key() * p.v.token_stride, p.v.token_stride,
                              before.count(keys), v, here(threadIdx.x % kGroup));
      } else {
        asm volatile("cp.async.wait_all;" ::: "memory");
      }
      fence_async_proxy();
      tiles.v_full[v_stage].arrive();
    }
    before = block;
    block = block.next(keys);
    load();
  }
}

// Issues the product of 64 rows of q and a block of keys.
template <class Format>
__device__ void multiply_keys(uint32_t q, uint32_t k, float (&logits)[Tiles<Format>::kKeys / 2]) {
  constexpr int kKeys = Tiles<Format>::kKeys;
  const uint64_t a = k_major(here(q));
  const uint64_t b = k_major(k);
#pragma unroll
  for (int step = 0; step < Format::kDepth / 16; ++step) {
    const int panel = step / 4 * kPanelBytes;
    const int in_panel = step % 4 * 32;
    multiply_k_major(logits, moved(a, panel * kQueries + in_panel),
                     moved(b, panel * kKeys + in_panel), step > 0);
  }
}

// Issues the product of weights and a block of values, added to the output.
template <int kKeys>
__device__ void multiply_values(const uint32_t (&weights)[kKeys / 4], uint32_t v,
                                float (&out)[kHeadDim / 2]) {
  const uint64_t b = transposed(v, kKeys * kPanelBytes);
#pragma unroll
  for (int step = 0; step < kKeys / 16; ++step) {
    add_rows_times_transposed(out, weights + 4 * step, moved(b, step * 16 * kPanelBytes));
  }
}

// Rows of a warp, through shared memory, so that whole lines are stored.
__device__ void store_rows(const float (&out)[kHeadDim / 2], const float* inverse, uint32_t q,
                           int q_row, char* to, int64_t stride, int rows, int lane) {
#pragma unroll
  for (int i = 0; i < kHeadDim / 4; ++i) {
    uint32_t word;
    BFloat16::pack(make_float2(out[2 * i] * inverse[i % 2], out[2 * i + 1] * inverse[i % 2]),
                   &word);
    const uint32_t at = panel_at<kQueries>(q, q_row + lane / 4 + i % 2 * 8, i / 2) + lane % 4 * 4;
    asm volatile("st.shared.b32 [%0], %1;" ::"r"(at), "r"(word) : "memory");
  }
  __syncwarp();
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int row = 2 * i + lane / 16;
    uint32_t w[4];
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(w[0]), "=r"(w[1]), "=r"(w[2]), "=r"(w[3])
                 : "r"(panel_at<kQueries>(q, q_row + row, lane % 16))
                 : "memory");
    if (row < rows) Access<16>::store(to + row * stride + lane % 16 * 16, w);
  }
}

template <class Format>
__device__ void compute(const Fp4PortableParams& p, const Head<Format>& head, const Keys& keys,
                        Tiles<Format> tiles, int thread) {
  constexpr int kKeys = Tiles<Format>::kKeys;
  constexpr int kKBytes = Tiles<Format>::kKBytes;
  constexpr int kVBytes = Tiles<Format>::kVBytes;
  const int group = thread / kGroup;
  const int lane = thread % 32;
  const int block_first = static_cast<int>(blockIdx.x) * kQueries;
  const int warp_row = thread / 32 * 16;
  const int first = block_first + warp_row;

  const LogitScale logit_scale(p.scale);
  RowCodes<Format, kQueries, kComputing> q_codes;
  q_codes.load(head.q_codes + static_cast<int64_t>(block_first) * Format::kRowBytes,
               head.q_scales + int64_t{blockIdx.x} * Head<Format>::kTileBytes, 0,
               p.tokens - block_first, thread);
  q_codes.decode(thread, [&](uint32_t row, uint32_t chunk, const uint32_t* w) {
    const uint32_t flip = logit_scale.flip;
    const uint32_t flipped[] = {w[0] ^ flip, w[1] ^ flip, w[2] ^ flip, w[3] ^ flip};
    store_chunk(panel_at<kQueries>(tiles.q, row, chunk), flipped);
  });
  fence_async_proxy();
  sync(kQueriesBarrier, kComputing);

  const uint32_t q = tiles.q + group * (kGroupQueries * kPanelBytes);
  const float scale = logit_scale.size * Format::kProductUnit;
  const float scale_log2 = scale * kLog2E;
  MeanProducts means;
  OnlineSoftmax softmax;
  float out[kHeadDim / 2] = {};
  float logits[kKeys / 2] = {};
  uint32_t weights[kKeys / 4];
  float shift[2] = {0, 0};
  float correction[2];
  KeyBlock<kKeys> block;
  const int blocks = keys.blocks(kKeys);
  // Of the block; runs while tensor cores multiply it.
  const auto find_shift = [&] {
    if (p.k_mean == nullptr) return;
    const int tile = block.tile();
    if (block.tile_row() == 0 && tile % MeanProducts::kTiles == 0) {
      means.compute(p, first, tile, keys.blocks(kTileRows));
    }
    means.of_tile(tile, logit_scale.sign / Format::kProductUnit, shift);
  };
  const auto weigh = [&] {
    const int count = block.count(keys);
    if (count < kKeys) hide<kKeys>(logits, count, lane);
    softmax.weigh<kKeys>(logits, shift, scale_log2, correction);
    block = block.next(keys);
  };

  if (blocks > 0) {
    if (group == 1 && blocks > 1) arrive(kTurnBarrier, kComputing);
    tiles.k_full[0].wait(0);
    begin_products(logits);
    multiply_keys<Format>(q, tiles.k, logits);
    commit_products();
    find_shift();
    wait_for_products<0>(logits);
    tiles.k_free[0].arrive();
    weigh();
    round_weights<kKeys>(logits, weights);
    if (blocks > 1) tiles.k_full[1].wait(0);
    for (int n = 1; n < blocks; ++n) {
      const int stage = n % kStages;
      const int v_stage = (n - 1) % kStages;
      sync(kTurnBarrier + group, kComputing);
      begin_products(logits);
      multiply_keys<Format>(q, tiles.k + stage * kKBytes, logits);
      commit_products();
      tiles.v_full[v_stage].wait((n - 1) / kStages % 2);
      begin_products(out, weights);
      multiply_values<kKeys>(weights, tiles.v + v_stage * kVBytes, out);
      commit_products();
      if (group == 0 || n + 1 < blocks) arrive(kTurnBarrier + 1 - group, kComputing);
      find_shift();
      wait_for_products<1>(logits);
      tiles.k_free[stage].arrive();
      weigh();
      // Here and not at the top of the loop: ptxas would move the wait for the second product in
      // front of the softmax if no branch stood between them.
      pin(logits);
      if (n + 1 < blocks) tiles.k_full[(n + 1) % kStages].wait((n + 1) / kStages % 2);
      wait_for_products<0>(out);
      tiles.v_free[v_stage].arrive();
      round_weights<kKeys>(logits, weights);
#pragma unroll
      for (int i = 0; i < kHeadDim / 2; ++i) out[i] *= correction[i / 2 % 2];
    }
    const int v_stage = (blocks - 1) % kStages;
    tiles.v_full[v_stage].wait((blocks - 1) / kStages % 2);
    begin_products(out, weights);
    multiply_values<kKeys>(weights, tiles.v + v_stage * kVBytes, out);
    commit_products();
    wait_for_products<0>(out);
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
  // Queries of the warpgroup make way for its output.
  sync(kStoreBarrier + group, kGroup);
  const int64_t stride = static_cast<int64_t>(gridDim.y) * (2 * kHeadDim);
  char* to = p.out + (static_cast<int64_t>(blockIdx.z) * p.tokens + first) * stride +
             blockIdx.y * static_cast<int64_t>(2 * kHeadDim);
  store_rows(out, inverse, tiles.q, warp_row, to, stride, p.tokens - first, lane);
}

template <class Format, bool kVIsFp8>
__device__ void attend(const Fp4PortableParams& p) {
  extern __shared__ __align__(1024) char shared[];
  const Tiles<Format> tiles(shared);
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) {
    for (int i = 0; i < kStages; ++i) {
      tiles.k_full[i].init(kGroup);
      tiles.v_full[i].init(kGroup);
      tiles.k_free[i].init(kComputing);
      tiles.v_free[i].init(kComputing);
    }
  }
  __syncthreads();
  const Keys keys(p);
  const Head<Format> head(p, blockIdx.z, blockIdx.y, gridDim.y);
  if (thread < kComputing) {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 208;");
    compute<Format>(p, head, keys, tiles, thread);
  } else {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 88;");
    produce<Format, kVIsFp8>(p, head, keys, tiles);
  }
}

}  // namespace vidk::fp4

using namespace vidk;
VIDK_KERNEL(vidk_fp4_attention_sm90_d128_bf16, Fp4PortableParams, (kFp4Sm90Threads, 1),
            fp4::attend<fp4::Nvfp4<128>, false>)
VIDK_KERNEL(vidk_fp4_attention_sm90_d192_bf16, Fp4PortableParams, (kFp4Sm90Threads, 1),
            fp4::attend<fp4::Nvfp4<192>, false>)
VIDK_KERNEL(vidk_fp4_attention_sm90_d256_bf16, Fp4PortableParams, (kFp4Sm90Threads, 1),
            fp4::attend<fp4::Nvfp4<256>, false>)
VIDK_KERNEL(vidk_fp4_attention_sm90_mxfp8_bf16, Fp4PortableParams, (kFp4Sm90Threads, 1),
            fp4::attend<fp4::Mxfp8, false>)
VIDK_KERNEL(vidk_fp4_attention_sm90_d128_e4m3, Fp4PortableParams, (kFp4Sm90Threads, 1),
            fp4::attend<fp4::Nvfp4<128>, true>)
VIDK_KERNEL(vidk_fp4_attention_sm90_d192_e4m3, Fp4PortableParams, (kFp4Sm90Threads, 1),
            fp4::attend<fp4::Nvfp4<192>, true>)
VIDK_KERNEL(vidk_fp4_attention_sm90_d256_e4m3, Fp4PortableParams, (kFp4Sm90Threads, 1),
            fp4::attend<fp4::Nvfp4<256>, true>)
VIDK_KERNEL(vidk_fp4_attention_sm90_mxfp8_e4m3, Fp4PortableParams, (kFp4Sm90Threads, 1),
            fp4::attend<fp4::Mxfp8, true>)
