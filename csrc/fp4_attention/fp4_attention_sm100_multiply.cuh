// The thread that starts all matrix products. Torch-free.
#pragma once

#include <cstdint>

#include "common/tcgen05.cuh"
#include "fp4_attention/fp4_attention_sm100_block.cuh"

namespace vidk::fp4_sm100 {

// Of 128-byte columns of rows in bfloat16: an instruction takes 32 bytes of a row.
__device__ inline uint64_t bf16_step(uint32_t at, int rows, int step) {
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

__device__ inline void multiply_means(const Block& b, int x, uint32_t q, uint32_t means) {
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

}  // namespace vidk::fp4_sm100
