// Rows of codes on their way from global memory, through registers, to bfloat16. Torch-free.
#pragma once

#include <cstdint>

#include "common/vector.cuh"
#include "fp4_attention/fp4_decode.cuh"

namespace vidk::fp4 {

// Units of 16 bytes, dealt to threads: each takes kMine of one column, kRowStep rows apart. Eight
// neighbouring threads take the same column of eight rows: in a swizzled tile they store to all
// banks, and a warp still loads whole lines.
template <int kRows, int kRowUnits, int kThreads>
struct Deal {
  static constexpr int mine(int n) {
    return n * kThreads >= kRows * kRowUnits && kRows % (8 * n) == 0 ? n : mine(n + 1);
  }
  static constexpr int kMine = mine(1);
  static constexpr int kRowStep = kRows / kMine;
  static constexpr uint32_t kActive = kRowStep * kRowUnits;  // threads; the others have none
  static __device__ uint32_t row(uint32_t thread) {
    return thread / (8 * kRowUnits) * 8 + thread % 8;
  }
  static __device__ uint32_t column(uint32_t thread) { return thread / 8 % kRowUnits; }
};

// The share of a thread of rows of q or k codes, and of their scales.
template <class Format, int kRows, int kThreads>
struct RowCodes {
  using Units = Deal<kRows, Format::kRowBytes / 16, kThreads>;
  static_assert(32 % Units::kRowStep == 0 || Units::kRowStep % 32 == 0);
  uint32_t codes[Units::kMine][4] = {};
  uint32_t scales[Units::kMine] = {};  // one in the low byte of each half

  // `tile_row`, a multiple of 32, is the first row's in the tile at `scale_tile`. Rows from `count`
  // on keep what is here, for nobody will look at their products.
  __device__ void load(const uint8_t* code_rows, const uint8_t* scale_tile, int tile_row, int count,
                       uint32_t thread) {
    if (thread >= Units::kActive) return;
    const uint32_t row = Units::row(thread);
    const uint32_t column = Units::column(thread);
    const uint8_t* codes_at = code_rows + row * Format::kRowBytes + column * 16;
    const uint8_t* scales_at =
        scale_tile + tile_row / 8 +
        scale_offset(row, column * Format::kUnitChunks / Format::kScaleChunks);
#pragma unroll
    for (int i = 0; i < Units::kMine; ++i) {
      const int step = i * Units::kRowStep;
      if (static_cast<int>(row) + step >= count) continue;
      Access<16>::load(reinterpret_cast<const char*>(codes_at) + step * Format::kRowBytes,
                       codes[i]);
      const uint8_t* at = scales_at + scale_offset(step, 0);
      if constexpr (Format::kUnitChunks > Format::kScaleChunks) {
        const uint32_t two = __ldg(reinterpret_cast<const uint16_t*>(at));
        scales[i] = two_bytes(two, 0);
      } else {
        scales[i] = __ldg(at) * 0x00010001u;
      }
    }
  }

  // Calls store(row, chunk, words) for each chunk of eight values.
  template <class Store>
  __device__ void decode(uint32_t thread, Store store) const {
    if (thread >= Units::kActive) return;
#pragma unroll
    for (int i = 0; i < Units::kMine; ++i) {
      const uint32_t factors = Format::factors(scales[i]);
#pragma unroll
      for (int c = 0; c < Format::kUnitChunks; ++c) {
        const uint32_t factor = both_halves(factors, c / Format::kScaleChunks);
        uint32_t words[4];
#pragma unroll
        for (int t = 0; t < 4; ++t) {
          words[t] = Format::pair(codes[i] + c * Format::kChunkWords, t, factor);
        }
        store(Units::row(thread) + i * Units::kRowStep,
              Units::column(thread) * Format::kUnitChunks + c, words);
      }
    }
  }
};

// The share of a thread of rows of 128 E4M3 values without scales.
template <int kRows, int kThreads>
struct RowValues {
  using Units = Deal<kRows, 8, kThreads>;
  static_assert(Units::kActive == kThreads);
  uint32_t codes[Units::kMine][4];

  // Rows from `count` on become zeros: their weights are 0, and 0 times NaN is NaN.
  __device__ void load(const char* rows, int64_t stride, int count, uint32_t thread) {
    const uint32_t row = Units::row(thread);
    const char* at = rows + row * stride + Units::column(thread) * 16;
#pragma unroll
    for (int i = 0; i < Units::kMine; ++i) {
#pragma unroll
      for (int w = 0; w < 4; ++w) codes[i][w] = 0;
      if (static_cast<int>(row) + i * Units::kRowStep < count) Access<16>::load(at, codes[i]);
      at += Units::kRowStep * stride;
    }
  }

  template <class Store>
  __device__ void decode(uint32_t thread, Store store) const {
#pragma unroll
    for (int i = 0; i < Units::kMine; ++i) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        uint32_t words[4];
#pragma unroll
        for (int t = 0; t < 4; ++t) words[t] = e4m3_pair(codes[i][2 * c + t / 2], t % 2);
        store(Units::row(thread) + i * Units::kRowStep, 2 * Units::column(thread) + c, words);
      }
    }
  }
};

// Values of a block, bfloat16 already, to where `place` says that a chunk of a row lies. Rows from
// `count` on become zeros: their weights are 0, and 0 times NaN is NaN.
template <int kKeys, int kThreads, class Place>
__device__ void copy_values(const char* v, int64_t stride, int count, uint32_t thread,
                            Place place) {
  constexpr int kRowStep = kThreads / 16;
  const uint32_t row = thread / 16;
  const uint32_t chunk = thread % 16;
  const char* at = v + row * stride + chunk * 16;
#pragma unroll
  for (int i = 0; i < kKeys / kRowStep; ++i) {
    const uint32_t to = place(row + i * kRowStep, chunk);
    if (count >= kKeys) {
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(at) : "memory");
    } else {
      const bool there = static_cast<int>(row) + i * kRowStep < count;
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(there ? at : v),
                   "r"(there ? 16 : 0)
                   : "memory");
    }
    at += kRowStep * stride;
  }
}

__device__ inline void store_chunk(uint32_t at, const uint32_t* w) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(w[0]), "r"(w[1]),
               "r"(w[2]), "r"(w[3])
               : "memory");
}

}  // namespace vidk::fp4
