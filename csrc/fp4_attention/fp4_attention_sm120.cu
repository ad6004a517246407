// FP4 attention on the block-scaled tensor cores of the sm_120 family. Torch-free.
// VIDK_ARCHS 120f
//
// A thread block has 128 rows of q, a warp 16 of them, whose codes, logits and output stay in its
// registers. Keys come in steps of 64, none of which leaves its tile of scales; copies run two
// steps ahead. With g = lane / 4 and t = lane % 4, a thread holds rows g and g + 8 of its warp's.
#include "common/kernel.cuh"
#include "fp4_attention/fp4_attention_sm120_copy.cuh"
#include "fp4_attention/fp4_attention_sm120_kernel.h"
#include "fp4_attention/fp4_attention_sm120_products.cuh"
#include "fp4_attention/fp4_softmax.cuh"

namespace vidk::sm120 {

using fp4::kLog2E;
using fp4::over_quad_max;
using fp4::over_quad_sum;
using fp4::power_of_two;

constexpr uint32_t kAllLanes = 0xffffffffu;
constexpr float kLn2 = 0.6931471805599453f;

// Weights are 2^(logit - reference + kPrescale). The reference of a row follows its maximum only
// when that is more than kThreshold ahead, which saves most corrections of what is summed up.
template <bool kFp8>
struct Weights {
  static constexpr float kPrescale = 0, kThreshold = 8;
};
// A weight above 448 would be cut, but not in the sum that it is divided by.
template <>
struct Weights<true> {
  static constexpr float kPrescale = 8, kThreshold = 0.75f;
  static_assert(kPrescale + kThreshold <= 8.8f, "log2 448 = 8.807");
};

// What is known of rows g and g + 8 so far. `sum` is this thread's share.
struct Softmax {
  float reference[2], sum[2];
};

// Makes weights of products. `shift` are q times the keys' mean, `factor` makes a logit to base 2.
template <bool kFp8>
__device__ void weigh(float (&x)[8][4], const float (&shift)[2], float factor, int valid,
                      Softmax& row, float (&out)[16][4]) {
  using W = Weights<kFp8>;
  if (valid < 64) {
    const int t = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      if (i / 4 * 8 + 2 * t + i % 2 >= valid) x[i / 4][i % 4] = -INFINITY;
    }
  }
  float ahead[2];
  bool raised = false;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float most = fmaxf(x[0][2 * r], x[0][2 * r + 1]);
#pragma unroll
    for (int n = 1; n < 8; ++n) most = fmaxf(most, fmaxf(x[n][2 * r], x[n][2 * r + 1]));
    const float logit = (over_quad_max(most) + shift[r]) * factor;
    // Of a row of NaNs this is false, and its weights are NaN.
    const bool raise = logit > row.reference[r] + W::kThreshold;
    ahead[r] = raise ? logit : row.reference[r];
    raised |= raise;
  }
  if (__any_sync(kAllLanes, raised)) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float correction = power_of_two(row.reference[r] - ahead[r]);
      row.reference[r] = ahead[r];
      row.sum[r] *= correction;
#pragma unroll
      for (int n = 0; n < 16; ++n) {
        out[n][2 * r] *= correction;
        out[n][2 * r + 1] *= correction;
      }
    }
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float offset = fmaf(shift[r], factor, W::kPrescale - row.reference[r]);
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      float& weight = x[i / 2][2 * r + i % 2];
      weight = power_of_two(fmaf(weight, factor, offset));
      row.sum[r] += weight;
    }
  }
}

// Eight bytes a thread, such that four threads fill a sector.
template <bool kFp8>
__device__ void store(const Fp4Sm120Params& p, float (&out)[16][4], const Softmax& row) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float sum = over_quad_sum(row.sum[r]);
    const float inverse = sum == 0 ? 0 : 1 / sum;  // without keys: zeros
    const int64_t token = int64_t{blockIdx.x} * 128 + threadIdx.x / 32 * 16 + g + 8 * r;
    const int64_t batch = blockIdx.z, heads = gridDim.y, head = blockIdx.y;
    const bool exists = token < p.tokens;
    uint8_t* to = p.out + ((batch * p.tokens + token) * heads + head) * 256;
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      float (&x)[4] = out[2 * n];
      float (&y)[4] = out[2 * n + 1];
      const float x0 = x[2 * r] * inverse, x1 = x[2 * r + 1] * inverse;
      const float y0 = y[2 * r] * inverse, y1 = y[2 * r + 1] * inverse;
      uint2 words;
      if constexpr (kFp8) {
        words = make_uint2(pack_bf16(x0, y0), pack_bf16(x1, y1));
        if (exists) *reinterpret_cast<uint2*>(to + 32 * n + 8 * t) = words;
      } else {
        // Pairs of threads make two runs of two columns into one of four.
        const uint32_t a = pack_bf16(x0, x1), b = pack_bf16(y0, y1);
        const uint32_t other = __shfl_xor_sync(kAllLanes, t % 2 ? a : b, 1);
        words = t % 2 ? make_uint2(other, b) : make_uint2(a, other);
        if (exists) *reinterpret_cast<uint2*>(to + 32 * n + 16 * (t % 2) + 4 * (t & 2)) = words;
      }
    }
    if (t == 0 && exists) {
      p.lse[(batch * heads + head) * p.tokens + token] =
          (row.reference[r] - Weights<kFp8>::kPrescale + __log2f(sum)) * kLn2;
    }
  }
}

template <class Format, bool kFp8>
__device__ void attend(const Fp4Sm120Params& p) {
  extern __shared__ __align__(128) uint8_t shared[];
  constexpr int kStages = kFp4Sm120Stages;
  constexpr Fp4Sm120Shared kShared = Copies<Format, kFp8>::kShared;
  const auto base = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const int length = max(0, min(*p.kv_len, p.capacity));
  const Copies<Format, kFp8> copies(p, base, length);
  Step ahead{};
#pragma unroll
  for (int stage = 0; stage < kStages - 1; ++stage) copies.next(ahead, stage);
  Queries<Format> q;
  load_queries<Format>(p, q);
  // -inf times 0 would be NaN.
  const float factor = p.scale == 0 ? 1e-37f : fabsf(p.scale) * kLog2E;
  Softmax row{{-INFINITY, -INFINITY}, {0, 0}};
  float out[16][4] = {};
  float means[4] = {};
  float shift[2] = {};
  int stage = 0;
  for (Step step{}; step.first_key() < length; step.advance(p.frame_tokens)) {
    wait_for_copies<kStages - 2>();
    __syncthreads();
    copies.next(ahead, stage == 0 ? kStages - 1 : stage - 1);
    if (p.k_mean != nullptr && step.opens_tile()) {
      const int place = step.tile % kFp4Sm120MeanTiles;
      if (place == 0) multiply_means(q, base + kShared.means, means);
      const int from = (threadIdx.x % 32 & ~3) + place / 2;
      shift[0] = __shfl_sync(kAllLanes, place % 2 ? means[1] : means[0], from);
      shift[1] = __shfl_sync(kAllLanes, place % 2 ? means[3] : means[2], from);
    }
    float product[8][4];
    multiply_keys(q, base + stage * kShared.key_stage, base + copies.scales_at(step.tile),
                  !step.opens_tile(), product);
    weigh<kFp8>(product, shift, factor, step.valid(p.frame_tokens, length), row, out);
    const uint32_t values = base + kShared.values + stage * kShared.value_stage;
    if constexpr (kFp8) {
      multiply_fp8_values(product, values, out);
    } else {
      multiply_bf16_values(product, values, out);
    }
    stage = stage == kStages - 1 ? 0 : stage + 1;
  }
  store<kFp8>(p, out, row);
}

using D128 = Nvfp4<128>;
using D192 = Nvfp4<192>;
using D256 = Nvfp4<256>;

}  // namespace vidk::sm120

using namespace vidk;
VIDK_KERNEL(vidk_fp4_attention_sm120_nvfp4_d128_bf16, Fp4Sm120Params, (32 * kFp4Sm120Warps, 1),
            sm120::attend<sm120::D128, false>)
VIDK_KERNEL(vidk_fp4_attention_sm120_nvfp4_d192_bf16, Fp4Sm120Params, (32 * kFp4Sm120Warps, 1),
            sm120::attend<sm120::D192, false>)
VIDK_KERNEL(vidk_fp4_attention_sm120_nvfp4_d256_bf16, Fp4Sm120Params, (32 * kFp4Sm120Warps, 1),
            sm120::attend<sm120::D256, false>)
VIDK_KERNEL(vidk_fp4_attention_sm120_mxfp8_bf16, Fp4Sm120Params, (32 * kFp4Sm120Warps, 1),
            sm120::attend<sm120::Mxfp8, false>)
VIDK_KERNEL(vidk_fp4_attention_sm120_nvfp4_d128_e4m3, Fp4Sm120Params, (32 * kFp4Sm120Warps, 1),
            sm120::attend<sm120::D128, true>)
VIDK_KERNEL(vidk_fp4_attention_sm120_nvfp4_d192_e4m3, Fp4Sm120Params, (32 * kFp4Sm120Warps, 1),
            sm120::attend<sm120::D192, true>)
VIDK_KERNEL(vidk_fp4_attention_sm120_nvfp4_d256_e4m3, Fp4Sm120Params, (32 * kFp4Sm120Warps, 1),
            sm120::attend<sm120::D256, true>)
VIDK_KERNEL(vidk_fp4_attention_sm120_mxfp8_e4m3, Fp4Sm120Params, (32 * kFp4Sm120Warps, 1),
            sm120::attend<sm120::Mxfp8, true>)
