// The angles of one token after another, and the rotation by them. Torch-free, one copy per
// instruction set; shared by the kernels that rotate.
#pragma once

#include "common/simd_formats.h"
#include "rope/rope_simd.h"

namespace vidk {
namespace VIDK_ISA {

template <int N>
VIDK_INLINE Pairs<N> rotate(Pairs<N> t, const float* cos, const float* sin) {
  const auto c = load<typename Vec<N>::F>(cos);
  const auto s = load<typename Vec<N>::F>(sin);
  return {t.even * c - t.odd * s, t.even * s + t.odd * c};
}

// cos[D / 2] and sin[D / 2] of a token, for all of its heads. From token to token mostly the column
// band alone changes: the row band does once a row, the time band once a frame.
class TokenAngles {
 public:
  TokenAngles(const RopeGrid& grid, float* buffer)
      : cos(buffer), sin(buffer + grid.time_pairs + 2 * grid.space_pairs), grid_(grid) {}

  float* const cos;
  float* const sin;

  int64_t frame() const { return frame_; }
  int64_t token_in_frame() const { return row_ * grid_.width + col_; }
  // A padding token, past the last frame, has no angles.
  bool is_padding() const { return frame_ >= grid_.frames; }

  void seek(int64_t token) {
    const int64_t frame_tokens = grid_.height * grid_.width;
    const int64_t in_slice = token % grid_.slice_tokens;
    const int64_t g = token / grid_.slice_tokens * frame_tokens + grid_.token_offset + in_slice;
    token_ = token;
    slice_left_ = grid_.slice_tokens - in_slice;
    frame_ = g / frame_tokens;
    row_ = g % frame_tokens / grid_.width;
    col_ = g % frame_tokens % grid_.width;
    fill(kTime);
  }

  // The angles of no rotation.
  void clear() {
    for (int64_t p = 0; p < grid_.time_pairs + 2 * grid_.space_pairs; ++p) {
      cos[p] = 1.0f;
      sin[p] = 0.0f;
    }
  }

  void next() {
    ++token_;
    if (--slice_left_ == 0) return seek(token_);
    if (++col_ < grid_.width) return fill(kColumn);
    col_ = 0;
    if (++row_ < grid_.height) return fill(kRow);
    row_ = 0;
    ++frame_;
    fill(kTime);
  }

 private:
  enum Band { kTime, kRow, kColumn };

  // Refreshes the given band and those inside it.
  void fill(Band outermost) {
    if (is_padding()) return;
    const int64_t row_at = grid_.time_pairs;
    const int64_t col_at = row_at + grid_.space_pairs;
    if (outermost <= kTime) copy(0, grid_.time_freqs, grid_.frame_pos[frame_], grid_.time_pairs);
    if (outermost <= kRow) copy(row_at, grid_.space_freqs, row_, grid_.space_pairs);
    copy(col_at, grid_.space_freqs, col_, grid_.space_pairs);
  }

  __attribute__((noinline)) void copy(int64_t at, const float* table, int64_t position,
                                      int64_t pairs) {
    const float* from = table + position * pairs * 2;
    for_pairs<kLanes>(0, pairs, [&](auto lanes, int64_t p) {
      constexpr int N = lanes();
      const Pairs<N> t = Float32::load<N>(from + 2 * p);
      store(cos + at + p, plain_nan<N>(t.even));
      store(sin + at + p, plain_nan<N>(t.odd));
    });
  }

  const RopeGrid& grid_;
  int64_t token_ = 0;
  int64_t slice_left_ = 0;
  int64_t frame_ = 0;
  int64_t row_ = 0;
  int64_t col_ = 0;
};

}  // namespace VIDK_ISA
}  // namespace vidk
