// The warp that copies queries, keys and values to shared memory. Torch-free.
#pragma once

#include <cstdint>

#include "common/tma.cuh"
#include "fp4_attention/fp4_attention_sm100_block.cuh"

namespace vidk::fp4_sm100 {

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

}  // namespace vidk::fp4_sm100
