// Device code of fp4_attention for GPUs with tensor memory. Torch-free.
// VIDK_ARCHS 100a 103a
//
// A thread block has two tiles of 128 queries and all keys, in tiles of 128. Warps have roles:
//
//   loader     copies tiles to two rings of stages in shared memory: codes and scales; values
//   multiplier starts all matrix products: logits S = Q K^T in FP4 or FP8, output O += P V
//   softmax    four warps to a query tile: a thread has a row; S to weights P in tensor memory
//
// The two query tiles take turns: while one is in its softmax, products of the other run. What is
// computed in turn is called a round: a tile of keys, and, where keys have means, before every 32
// tiles the products of q and those tiles' means, which pass through the same rings: the means as
// codes, a tile of q as values.
//
// Tensor memory, all 512 columns, x being the query tile:
//
//   128 x       S of x; once it is in registers, P lies in its first columns, and in its last ones
//               the scale factors that S of the *other* query tile is made with
//   256 + 128 x O of x
//
// Nothing relies on products of different shapes being executed in order, which the hardware does
// but the ISA does not promise: who overwrites columns has waited for those that read them.
#include <cstdint>

#include "common/kernel.cuh"
#include "common/mbarrier.cuh"
#include "common/tcgen05.cuh"
#include "common/tma.cuh"
#include "fp4_attention/fp4_attention_sm100_kernel.h"

namespace vidk::fp4_sm100 {

constexpr int kRows = kFp4Sm100Rows;
constexpr int kStages = kFp4Sm100Stages;
constexpr int kMeanTiles = kFp4Sm100MeanTiles;
constexpr int kHeadDim = 128;
// Keys of a tile past its last one are left out in chunks of so many.
constexpr int kChunk = 32;
// O += P V begins when the weights of so many keys are there.
constexpr int kFirstKeys = 96;
constexpr int kSoftmaxWarps = 4;  // of a query tile
constexpr int kMultiplierWarp = 8, kLoaderWarp = 9;
constexpr int kTensorColumns = 512;
// Of the 168 registers that each thread begins with, loader and multiplier give to softmax.
constexpr int kFewRegisters = 72, kManyRegisters = 216;
static_assert(2 * kManyRegisters + kFewRegisters == 3 * 168);

// --- what the kernels differ in

template <int kRowBytes_, int kScaleCols, bool kMxfp8_>
struct Codes {
  static constexpr bool kMxfp8 = kMxfp8_;
  static constexpr int kRowBytes = kRowBytes_;
  static constexpr int kPanel = fp4_sm100_panel(kRowBytes);
  static constexpr int kAtoms = kScaleCols / 4;
  static constexpr int kSteps = kRowBytes / 32;  // an instruction takes 32 bytes of a row
  static constexpr Fp4Sm100Shared kShared{kRowBytes, kScaleCols};
};

// Weights and values. A weight is exp2(logit - m + kLog2Prescale), where m may lie below the
// row's maximum by up to kSlack before the output is rescaled. Rows of values lie in shared memory
// in columns of 128 bytes: as many as an element has bytes.
struct BFloat16Values {
  static constexpr int kBytes = 2;
  static constexpr int kStepKeys = 16;  // of an instruction
  static constexpr float kLog2Prescale = 0, kSlack = 8;
  static constexpr uint32_t kInstruction = tcgen05::kBFloat16;
  static __device__ void multiply(uint32_t d, uint32_t a, uint64_t b, uint32_t instruction,
                                  bool accumulate) {
    tcgen05::multiply_f16_from_tensor(d, a, b, instruction, accumulate);
  }
  static __device__ uint32_t pack(const float* p) {
    uint32_t word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(p[1]), "f"(p[0]));
    return word;
  }
};
struct Fp8Values {
  static constexpr int kBytes = 1;
  static constexpr int kStepKeys = 32;
  static constexpr float kLog2Prescale = 4, kSlack = 4;
  static constexpr uint32_t kInstruction = tcgen05::kE4M3;
  static __device__ void multiply(uint32_t d, uint32_t a, uint64_t b, uint32_t instruction,
                                  bool accumulate) {
    tcgen05::multiply_fp8_from_tensor(d, a, b, instruction, accumulate);
  }
  static __device__ uint32_t pack(const float* p) {
    uint32_t word;
    asm("{ .reg .b16 low, high;\n"
        "cvt.rn.satfinite.e4m3x2.f32 low, %2, %1;\n"
        "cvt.rn.satfinite.e4m3x2.f32 high, %4, %3;\n"
        "mov.b32 %0, {low, high}; }"
        : "=r"(word)
        : "f"(p[0]), "f"(p[1]), "f"(p[2]), "f"(p[3]));
    return word;
  }
};
// A weight that saturates would be less than its part of the sum, which is not rounded.
static_assert(Fp8Values::kLog2Prescale + Fp8Values::kSlack <= 8.807f, "2^8.807 < 448, E4M3's last");

// --- shared and tensor memory

struct Barriers {
  Mbarrier queries;
  // Stages are full, and free again.
  Mbarrier keys[kStages], keys_free[kStages], values[kStages], values_free[kStages];
  Mbarrier cut_values;  // of a tile that ends with the cache's length
  // Of each query tile: S is there; it is in registers; P is there, up to kFirstKeys and then the
  // rest; O has it.
  Mbarrier logits[2], logits_read[2], weights[2][2], output[2];
  uint32_t tensor;  // address of tensor memory
};
static_assert(sizeof(Barriers) <= 512);

__device__ constexpr uint32_t logits_column(int x) { return 128 * x; }
__device__ constexpr uint32_t weights_column(int x) { return logits_column(x); }
__device__ constexpr uint32_t scales_column(int x) { return logits_column(1 - x) + 64; }
__device__ constexpr uint32_t output_column(int x) { return 256 + 128 * x; }
constexpr uint32_t kKeyScales = 16;  // columns after those of the queries

// The stage that is used in the n-th place, and the parity of its n-th phase.
struct Stage {
  int index;
  uint32_t parity;
  __device__ explicit Stage(int n) : index(n % kStages), parity(n / kStages & 1) {}
};

struct Block {
  const Fp4Sm100Params& p;
  char* shared;
  Barriers& bar;
  int head, batch;
  int row0;           // first row of q
  int query_tiles;    // that are not past the last row
  int length, tiles;  // of keys
};

__device__ int rounded_up(int n, int to) { return (n + to - 1) / to * to; }

// The rounds, one after the other.
struct Round {
  bool means;             // of 32 tiles from `tile` on
  int number = 0;         // rounds before it
  int tile = 0;           // key tiles before it
  int slot = 0, row = 0;  // where its keys begin: the slot, and the row of it

  __device__ explicit Round(const Block& b) : means(b.p.has_means) {}
  __device__ bool exists(const Block& b) const { return tile < b.tiles; }
  __device__ void advance(const Block& b) {
    ++number;
    if (means) {
      means = false;
      return;
    }
    ++tile;
    row += kRows;
    if (row >= b.p.frame_tokens) {
      row = 0;
      ++slot;
    }
    means = b.p.has_means && tile % kMeanTiles == 0;
  }
  // Rows up to the end of the slot, and keys up to the cache's length; at most 128.
  __device__ int rows(const Block& b) const { return min(kRows, b.p.frame_tokens - row); }
  __device__ int keys(const Block& b) const {
    return min(rows(b), b.length - slot * b.p.frame_tokens - row);
  }
};

// Key tiles: every slot begins one.
__device__ int tiles_of(int length, const Fp4Sm100Params& p) {
  return length / p.frame_tokens * p.slot_tiles + (length % p.frame_tokens + kRows - 1) / kRows;
}

// --- loader

template <class Values>
__device__ void load_values(const Block& b, const Round& round, char* to, Mbarrier& loaded) {
  loaded.arrive_expect(kRows * kHeadDim * Values::kBytes);
  for (int half = 0; half < Values::kBytes; ++half) {
    load_box(to + half * kRows * 128, b.p.v, loaded, 64 * half, round.row, round.slot, b.head,
             b.batch);
  }
}

// Rows that are past the cache's length but not past their slot's hold anything, NaNs too, which a
// weight of zero does not take away.
template <class Values>
__device__ void clear_rows(char* values, int first, int end) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int half = 0; half < Values::kBytes; ++half) {
    auto* const chunks = reinterpret_cast<uint4*>(values + half * kRows * 128);
    for (int i = 8 * first + lane; i < 8 * end; i += 32) chunks[i] = make_uint4(0, 0, 0, 0);
  }
  fence_async_proxy();
  __syncwarp();
}

template <class C, class Values>
__device__ void load_tiles(const Block& b) {
  constexpr Fp4Sm100Shared at = C::kShared;
  const Fp4Sm100Params& p = b.p;
  const bool leads = threadIdx.x % 32 == 0;
  const int64_t head = static_cast<int64_t>(b.batch) * gridDim.y + b.head;
  const int first_tile = b.row0 / kRows;
  const int row_tiles = (p.tokens + kRows - 1) / kRows;

  if (leads) {
    b.bar.queries.arrive_expect(b.query_tiles * (at.codes + at.scales));
    for (int x = 0; x < b.query_tiles; ++x) {
      load_box(b.shared + at.q_codes + x * at.codes, p.q_codes, b.bar.queries, 0,
               b.row0 + x * kRows, 0, 0, static_cast<int>(head));
      load_bytes(b.shared + at.q_scales + x * at.scales,
                 p.q_scales + (head * row_tiles + first_tile + x) * at.scales, at.scales,
                 b.bar.queries);
    }
  }
  int values_loaded = 0;
  for (Round round(b); round.exists(b); round.advance(b)) {
    const Stage stage(round.number);
    char* const keys = b.shared + at.k_codes + stage.index * at.codes;
    if (leads) {
      Mbarrier& loaded = b.bar.keys[stage.index];
      b.bar.keys_free[stage.index].wait(stage.parity ^ 1);
      if (round.means) {
        loaded.arrive_expect(kMeanTiles * kHeadDim * 2);
        for (int half = 0; half < 2; ++half) {
          load_box(keys + half * kMeanTiles * 128, p.k_mean, loaded, 64 * half, round.tile, 0,
                   b.head, b.batch);
        }
      } else {
        loaded.arrive_expect(at.codes + at.scales);
        load_box(keys, p.k_codes, loaded, 0, round.row, 0, round.slot, static_cast<int>(head));
        load_bytes(b.shared + at.k_scales + stage.index * at.scales,
                   p.k_scales + (head * p.head_tiles + round.tile) * at.scales, at.scales, loaded);
      }
    }
    for (int x = 0; x < (round.means ? b.query_tiles : 1); ++x) {
      const Stage slot(values_loaded++);
      char* const values = b.shared + at.values + slot.index * at.kValues;
      Mbarrier& loaded = b.bar.values[slot.index];
      if (leads) b.bar.values_free[slot.index].wait(slot.parity ^ 1);
      if (round.means) {
        if (!leads) continue;
        loaded.arrive_expect(kRows * kHeadDim * 2);
        for (int half = 0; half < 2; ++half) {
          load_box(values + half * kRows * 128, p.q, loaded, 64 * half, b.row0 + x * kRows, 0,
                   b.head, b.batch);
        }
        continue;
      }
      const int count = round.keys(b);
      const bool cut = count < round.rows(b);
      if (leads) load_values<Values>(b, round, values, cut ? b.bar.cut_values : loaded);
      if (cut) {  // so it is the last tile
        b.bar.cut_values.wait(0);
        clear_rows<Values>(values, count, rounded_up(count, kChunk));
        if (leads) loaded.arrive();
      }
    }
  }
}

// --- multiplier

// Of 128-byte columns of rows in bfloat16: an instruction takes 32 bytes of a row.
__device__ uint64_t bf16_step(uint32_t at, int rows, int step) {
  return tcgen05::matrix(at + step / 4 * rows * 128 + step % 4 * 32, 128, 1024, 0);
}

template <class C>
__device__ void multiply_codes(const Block& b, int x, int stage, int keys) {
  constexpr Fp4Sm100Shared at = C::kShared;
  const uint32_t shared = shared_address(b.shared);
  const uint32_t q = shared + at.q_codes + x * at.codes;
  const uint32_t k = shared + at.k_codes + stage * at.codes;
  const uint32_t q_scales = b.bar.tensor + scales_column(x);
  const uint32_t k_scales = q_scales + kKeyScales;
  for (int i = 0; i < C::kAtoms; ++i) {
    const uint32_t atom = 512 * i;
    tcgen05::copy_scales(q_scales + 4 * i, shared + at.q_scales + x * at.scales + atom);
    tcgen05::copy_scales(k_scales + 4 * i, shared + at.k_scales + stage * at.scales + atom);
  }
  const uint32_t d = b.bar.tensor + logits_column(x);
  const uint32_t instruction =
      tcgen05::kRows | tcgen05::columns(keys) | (b.p.negative ? tcgen05::kNegateA : 0);
#pragma unroll
  for (int i = 0; i < C::kSteps; ++i) {
    const uint32_t byte = 32 * i / C::kPanel * (kRows * C::kPanel) + 32 * i % C::kPanel;
    const uint64_t a = tcgen05::matrix(q + byte, C::kPanel, 8 * C::kPanel, 0);
    const uint64_t bt = tcgen05::matrix(k + byte, C::kPanel, 8 * C::kPanel, 0);
    if constexpr (C::kMxfp8) {
      const uint32_t scaled = instruction | tcgen05::kE4M3 | tcgen05::kE8M0Scales;
      tcgen05::multiply_mxfp8(d, a, bt, scaled | tcgen05::scale_byte(i), q_scales, k_scales, i > 0);
    } else {
      tcgen05::multiply_nvfp4(d, a, bt, instruction | tcgen05::kE2M1, q_scales + 4 * i,
                              k_scales + 4 * i, i > 0);
    }
  }
}

__device__ void multiply_means(const Block& b, int x, uint32_t q, uint32_t means) {
  const uint32_t instruction = tcgen05::kRows | tcgen05::columns(kMeanTiles) | tcgen05::kFloatSums |
                               tcgen05::kBFloat16 | (b.p.negative ? tcgen05::kNegateA : 0);
  for (int i = 0; i < kHeadDim / 16; ++i) {
    tcgen05::multiply_f16(b.bar.tensor + logits_column(x), bf16_step(q, kRows, i),
                          bf16_step(means, kMeanTiles, i), instruction, i > 0);
  }
}

// With keys from `begin` to `end` of a tile.
template <class Values>
__device__ void multiply_values(const Block& b, int x, uint32_t values, int begin, int end,
                                bool accumulate) {
  const uint32_t instruction = tcgen05::kRows | tcgen05::columns(kHeadDim) | tcgen05::kFloatSums |
                               Values::kInstruction | tcgen05::kRowsAlongN;
  for (int key = begin; key < end; key += Values::kStepKeys) {
    Values::multiply(b.bar.tensor + output_column(x),
                     b.bar.tensor + weights_column(x) + key * Values::kBytes / 4,
                     tcgen05::matrix(values + key * 128, 128, 1024, kRows * 128), instruction,
                     accumulate || key > 0);
  }
}

// One thread.
template <class C, class Values>
struct Multiplier {
  const Block& b;

  __device__ void wait(Mbarrier& barrier, uint32_t parity) {
    barrier.wait(parity);
    tcgen05::fence_after();
  }
  __device__ uint32_t values_at(const Stage& stage) {
    return shared_address(b.shared) + C::kShared.values + stage.index * Fp4Sm100Shared::kValues;
  }

  // S of query tile x; `slots` of values have been used by earlier rounds.
  __device__ void logits(int x, const Round& round, int slots) {
    const bool last = x == b.query_tiles - 1;
    // S, P and the scale factors of the other tile have been used.
    if (round.number > 0) wait(b.bar.logits_read[x], (round.number - 1) & 1);
    if (round.tile > 0) wait(b.bar.output[x], (round.tile - 1) & 1);
    // Here the factors will be.
    const int other = x == 0 ? round.number - 1 : round.number;
    if (b.query_tiles == 2 && other >= 0) wait(b.bar.logits_read[1 - x], other & 1);
    const Stage stage(round.number);
    wait(b.bar.keys[stage.index], stage.parity);
    if (round.means) {
      const Stage slot(slots + x);
      wait(b.bar.values[slot.index], slot.parity);
      const uint32_t means =
          shared_address(b.shared) + C::kShared.k_codes + stage.index * C::kShared.codes;
      multiply_means(b, x, values_at(slot), means);
      tcgen05::commit(b.bar.values_free[slot.index]);
    } else {
      multiply_codes<C>(b, x, stage.index, rounded_up(round.keys(b), kChunk));
    }
    tcgen05::commit(b.bar.logits[x]);
    if (last) tcgen05::commit(b.bar.keys_free[stage.index]);
  }

  // O of query tile x.
  __device__ void output(int x, const Round& round, const Stage& slot) {
    wait(b.bar.values[slot.index], slot.parity);
    const int keys = rounded_up(round.keys(b), kChunk);
    wait(b.bar.weights[x][0], round.tile & 1);
    multiply_values<Values>(b, x, values_at(slot), 0, min(keys, kFirstKeys), round.tile > 0);
    wait(b.bar.weights[x][1], round.tile & 1);
    multiply_values<Values>(b, x, values_at(slot), kFirstKeys, keys, true);
    tcgen05::commit(b.bar.output[x]);
    if (x == b.query_tiles - 1) tcgen05::commit(b.bar.values_free[slot.index]);
  }

  __device__ void run() {
    Round round(b);
    if (!round.exists(b)) return;
    wait(b.bar.queries, 0);
    int slots = 0;
    for (int x = 0; x < b.query_tiles; ++x) logits(x, round, slots);
    while (round.exists(b)) {
      Round next = round;
      next.advance(b);
      const int next_slots = slots + (round.means ? b.query_tiles : 1);
      for (int x = 0; x < b.query_tiles; ++x) {
        if (!round.means) output(x, round, Stage(slots));
        if (next.exists(b)) logits(x, next, next_slots);
      }
      round = next;
      slots = next_slots;
    }
  }
};

// --- softmax

// Of sm_100, which has exponentials at half the rate of sm_103, every fourth pair is computed by
// multiply-adds instead.
#ifdef __CUDA_ARCH_FEAT_SM100_ALL
constexpr bool kSharesExponentials = true;
#else
constexpr bool kSharesExponentials = false;
#endif

__device__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 2^f with the smallest relative error, 7.5e-5, for f from -1/2 to 1/2.
__device__ constexpr float kCubic[] = {0.999928074f, 0.693260985f, 0.242611122f, 0.0551716691f};

// By multiply-adds. Less than 2^-126 becomes that, and a NaN anything.
__device__ float2 exp2_cubic(float2 x) {
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
__device__ float max_or_nan(float a, float b) {
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

// --- the kernel

__device__ void initialise(Barriers& bar) {
  bar.queries.init(1);
  bar.cut_values.init(1);
  for (int i = 0; i < kStages; ++i) {
    bar.keys[i].init(1);
    bar.keys_free[i].init(1);
    bar.values[i].init(1);
    bar.values_free[i].init(1);
  }
  for (int x = 0; x < 2; ++x) {
    bar.logits[x].init(1);
    bar.logits_read[x].init(kSoftmaxWarps);
    bar.weights[x][0].init(kSoftmaxWarps);
    bar.weights[x][1].init(kSoftmaxWarps);
    bar.output[x].init(1);
  }
  fence_mbarrier_init();
}

template <class C, class Values>
__device__ void attend(const Fp4Sm100Params& p) {
  extern __shared__ __align__(Fp4Sm100Shared::kAlign) char shared[];
  Barriers& bar = *reinterpret_cast<Barriers*>(shared + C::kShared.barriers);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  if (threadIdx.x == 0) initialise(bar);
  if (warp == kMultiplierWarp) tcgen05::allocate(&bar.tensor, kTensorColumns);
  tcgen05::fence_before();
  __syncthreads();
  tcgen05::fence_after();

  const int row0 = static_cast<int>(blockIdx.x) * (kFp4Sm100QueryTiles * kRows);
  const int length = min(max(*p.kv_len, 0), p.capacity);
  const Block b{p,
                shared,
                bar,
                static_cast<int>(blockIdx.y),
                static_cast<int>(blockIdx.z),
                row0,
                p.tokens - row0 > kRows ? 2 : 1,
                length,
                tiles_of(length, p)};
  const int query_tile = warp / kSoftmaxWarps;
  if (query_tile == kFp4Sm100QueryTiles) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kFewRegisters));
    if (warp == kLoaderWarp) load_tiles<C, Values>(b);
    if (warp == kMultiplierWarp && threadIdx.x % 32 == 0) Multiplier<C, Values>{b}.run();
    __syncwarp();
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kManyRegisters));
    if (query_tile < b.query_tiles) Row<C, Values>(b, query_tile).run();
  }
  tcgen05::fence_before();
  __syncthreads();
  if (warp == kMultiplierWarp) {
    tcgen05::fence_after();
    tcgen05::deallocate(bar.tensor, kTensorColumns);
  }
}

using Nvfp4x128 = Codes<64, 8, false>;
using Nvfp4x192 = Codes<96, 12, false>;
using Nvfp4x256 = Codes<128, 16, false>;
using Mxfp8 = Codes<128, 4, true>;

}  // namespace vidk::fp4_sm100

using namespace vidk;
using namespace vidk::fp4_sm100;
// Copies find their tensor maps among the parameters: these must stay where the launch put them.
VIDK_KERNEL(vidk_fp4_attention_sm100_nvfp4_d128_bf16, __grid_constant__ Fp4Sm100Params,
            (kFp4Sm100Threads, 1), attend<Nvfp4x128, BFloat16Values>)
VIDK_KERNEL(vidk_fp4_attention_sm100_nvfp4_d128_e4m3, __grid_constant__ Fp4Sm100Params,
            (kFp4Sm100Threads, 1), attend<Nvfp4x128, Fp8Values>)
VIDK_KERNEL(vidk_fp4_attention_sm100_nvfp4_d192_bf16, __grid_constant__ Fp4Sm100Params,
            (kFp4Sm100Threads, 1), attend<Nvfp4x192, BFloat16Values>)
VIDK_KERNEL(vidk_fp4_attention_sm100_nvfp4_d192_e4m3, __grid_constant__ Fp4Sm100Params,
            (kFp4Sm100Threads, 1), attend<Nvfp4x192, Fp8Values>)
VIDK_KERNEL(vidk_fp4_attention_sm100_nvfp4_d256_bf16, __grid_constant__ Fp4Sm100Params,
            (kFp4Sm100Threads, 1), attend<Nvfp4x256, BFloat16Values>)
VIDK_KERNEL(vidk_fp4_attention_sm100_nvfp4_d256_e4m3, __grid_constant__ Fp4Sm100Params,
            (kFp4Sm100Threads, 1), attend<Nvfp4x256, Fp8Values>)
VIDK_KERNEL(vidk_fp4_attention_sm100_mxfp8_bf16, __grid_constant__ Fp4Sm100Params,
            (kFp4Sm100Threads, 1), attend<Mxfp8, BFloat16Values>)
VIDK_KERNEL(vidk_fp4_attention_sm100_mxfp8_e4m3, __grid_constant__ Fp4Sm100Params,
            (kFp4Sm100Threads, 1), attend<Mxfp8, Fp8Values>)
