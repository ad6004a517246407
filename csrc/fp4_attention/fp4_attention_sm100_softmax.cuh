// The warps that turn logits into weights, and write the output. Torch-free.
#pragma once

#include <cstdint>

#include "common/tcgen05.cuh"
#include "common/tma.cuh"
#include "fp4_attention/fp4_attention_sm100_block.cuh"
#include "fp4_attention/fp4_attention_sm100_formats.cuh"

namespace vidk::fp4_sm100 {

// Of sm_100, which has exponentials at half the rate of sm_103, every fourth pair is computed by
// multiply-adds instead.
#ifdef __CUDA_ARCH_FEAT_SM100_ALL
constexpr bool kSharesExponentials = true;
#else
constexpr bool kSharesExponentials = false;
#endif

__device__ inline float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 2^f with the smallest relative error, 7.5e-5, for f from -1/2 to 1/2.
__device__ constexpr float kCubic[] = {0.999928074f, 0.693260985f, 0.242611122f, 0.0551716691f};

// By multiply-adds. Less than 2^-126 becomes that, and a NaN anything.
__device__ inline float2 exp2_cubic(float2 x) {
  constexpr float kInteger = 12582912;  // 1.5 * 2^23: what is added to it is rounded
  x = make_float2(fmaxf(x.x, -126), fmaxf(x.y, -126));
  const float2 n = __fadd2_rn(x, make_float2(kInteger, kInteger));
  const float2 whole = __fadd2_rn(n, make_float2(-kInteger, -kInteger));
  const float2 f = __ffma2_rn(whole, make_float2(-1, -1), x);
  float2 y = make_float2(kCubic[3], kCubic[3]);
  y = __ffma2_rn(y, f, make_float2(kCubic[2], kCubic[2]));
  y = __ffma2_rn(y, f, make_float2(kCubic[1], kCubic[1]));
  y = __ffma2_rn(y, f, make_float2(kCubic[0], kCubic[0]));
  return make_float2(__int_as_float(__float_as_int(y.x) + (__float_as_int(n.x) << 23)),
                     __int_as_float(__float_as_int(y.y) + (__float_as_int(n.y) << 23)));
}

// NaN if one of them is.
__device__ inline float max_or_nan(float a, float b) {
  float c;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(c) : "f"(a), "f"(b));
  return c;
}

// One row of q, and of its output.
template <class C, class Values>
struct Row {
  const Block& b;
  int x;            // query tile
  int row;          // of it
  bool leads;       // its warp
  uint32_t tensor;  // tensor memory at the warp's first row
  float* shifts;    // q times the mean of each of 32 tiles, of the row
  // All logits are in units of log 2 and less `top`, the maximum or a little less, when they become
  // weights; `sum` is of weights.
  float top = -INFINITY, sum = 0;

  __device__ Row(const Block& block, int query_tile)
      : b(block),
        x(query_tile),
        row(static_cast<int>(threadIdx.x) % kRows),
        leads(threadIdx.x % 32 == 0),
        tensor(b.bar.tensor + (static_cast<uint32_t>(row) / 32 << 21)),
        shifts(
            reinterpret_cast<float*>(b.shared + C::kShared.scratch + x * Fp4Sm100Shared::kScratch) +
            row) {}

  // Makes what the warp has done in tensor memory known to the multiplier.
  __device__ void hand_over(Mbarrier& barrier) {
    tcgen05::fence_before();
    __syncwarp();
    if (leads) barrier.arrive();
  }

  __device__ void keep_shifts() {
    float s[kMeanTiles];
    tcgen05::load(tensor + logits_column(x), s);
    tcgen05::wait_for_loads();
    hand_over(b.bar.logits_read[x]);
#pragma unroll
    for (int i = 0; i < kMeanTiles; ++i) shifts[i * kRows] = s[i] * b.p.scale_log2;
  }

  __device__ void rescale(float by) {
    sum *= by;
#pragma unroll 1
    for (int column = 0; column < kHeadDim; column += kChunk) {
      float o[kChunk];
      tcgen05::load(tensor + output_column(x) + column, o);
      tcgen05::wait_for_loads();
#pragma unroll
      for (int i = 0; i < kChunk; i += 2) {
        const float2 pair = __fmul2_rn(make_float2(o[i], o[i + 1]), make_float2(by, by));
        o[i] = pair.x;
        o[i + 1] = pair.y;
      }
      tcgen05::store(tensor + output_column(x) + column, o);
    }
    tcgen05::wait_for_stores();
  }

  // A tile of keys.
  __device__ void weigh(const Round& round) {
    const int count = round.keys(b);
    float s[kRows];
#pragma unroll
    for (int first = 0; first < kRows; first += kChunk) {
      if (first < count) tcgen05::load(tensor + logits_column(x) + first, s + first);
    }
    tcgen05::wait_for_loads();
    hand_over(b.bar.logits_read[x]);

    float most = -INFINITY;
#pragma unroll
    for (int first = 0; first < kRows; first += kChunk) {
      if (first >= count) continue;
      if (first + kChunk > count) {
#pragma unroll
        for (int i = first; i < first + kChunk; ++i) s[i] = i < count ? s[i] : -INFINITY;
      }
#pragma unroll
      for (int i = first; i < first + kChunk; i += 2) {
        most = max_or_nan(most, max_or_nan(s[i], s[i + 1]));
      }
    }
    const float scale = b.p.scale_log2;
    const float shift = b.p.has_means ? shifts[round.tile % kMeanTiles * kRows] : 0;
    most = fmaf(most, scale, shift);
    // Each row decides for itself: a NaN, which spoils its row from here on, changes no other one.
    const bool keeps = most <= top + Values::kSlack;
    const float by = keeps ? 1 : exp2_approx(top - most);
    if (!keeps) top = most;
    if (round.tile > 0 && __any_sync(0xffffffffu, !keeps)) rescale(by);

    const float offset = shift - top + Values::kLog2Prescale;
    float2 sums[2] = {};
#pragma unroll
    for (int first = 0; first < kRows; first += kChunk) {
      if (first < count) {
        constexpr int kWords = kChunk * Values::kBytes / 4;
        uint32_t words[kWords];
#pragma unroll
        for (int i = first; i < first + kChunk; i += 2) {
          float2 pair = __ffma2_rn(make_float2(s[i], s[i + 1]), make_float2(scale, scale),
                                   make_float2(offset, offset));
          pair = kSharesExponentials && i % 8 == 6
                     ? exp2_cubic(pair)
                     : make_float2(exp2_approx(pair.x), exp2_approx(pair.y));
          sums[i / 2 % 2] = __fadd2_rn(sums[i / 2 % 2], pair);
          s[i] = pair.x;
          s[i + 1] = pair.y;
        }
#pragma unroll
        for (int i = 0; i < kWords; ++i)
          words[i] = Values::pack(&s[first + 4 / Values::kBytes * i]);
        tcgen05::store(tensor + weights_column(x) + first * Values::kBytes / 4, words);
      }
      if (first + kChunk == kFirstKeys || first + kChunk == kRows) {
        tcgen05::wait_for_stores();
        hand_over(b.bar.weights[x][first + kChunk == kRows]);
      }
    }
    const float2 both = __fadd2_rn(sums[0], sums[1]);
    sum += both.x + both.y;
  }

  // Half of the channels at a time, through shared memory.
  __device__ void write() {
    char* const half = b.shared + C::kShared.scratch + x * Fp4Sm100Shared::kScratch;
    const float by = sum == 0 ? 0 : 1 / sum;
    for (int channel = 0; channel < kHeadDim; channel += kChunk) {
      float o[kChunk] = {};
      if (b.tiles > 0) {
        tcgen05::load(tensor + output_column(x) + channel, o);
        tcgen05::wait_for_loads();
      }
#pragma unroll
      for (int i = 0; i < kChunk; i += 8) {
        uint32_t words[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float pair[] = {o[i + 2 * j] * by, o[i + 2 * j + 1] * by};
          words[j] = BFloat16Values::pack(pair);
        }
        const int chunk = (channel + i) / 8 % 8 ^ row % 8;  // as the swizzle of the map has it
        *reinterpret_cast<uint4*>(half + 128 * row + 16 * chunk) =
            make_uint4(words[0], words[1], words[2], words[3]);
      }
      if (channel / kChunk % 2 == 0) continue;
      fence_async_proxy();
      meet();
      if (row == 0) {
        store_box(b.p.out, half, channel / 64 * 64, b.row0 + x * kRows, 0, b.head, b.batch);
        wait_for_stores_to_read();
      }
      meet();
    }
    const int token = b.row0 + x * kRows + row;
    if (token < b.p.tokens) {
      const int64_t head = static_cast<int64_t>(b.batch) * gridDim.y + b.head;
      b.p.lse[head * b.p.tokens + token] =
          sum == 0 ? -INFINITY : 0.6931471805599453f * (top - Values::kLog2Prescale + log2f(sum));
    }
  }

  // The warps of the query tile.
  __device__ void meet() {
    asm volatile("barrier.sync.aligned %0, %1;" ::"r"(1 + x), "n"(32 * kSoftmaxWarps) : "memory");
  }

  __device__ void run() {
    for (Round round(b); round.exists(b); round.advance(b)) {
      b.bar.logits[x].wait(round.number & 1);
      tcgen05::fence_after();
      if (round.means) {
        keep_shifts();
      } else {
        weigh(round);
      }
    }
    if (b.tiles > 0) {
      b.bar.output[x].wait((b.tiles - 1) & 1);
      tcgen05::fence_after();
    }
    write();
  }
};

}  // namespace vidk::fp4_sm100
