// Device code of qk_norm_rope_kv_write. Torch-free.
#include <cstdint>
#include <type_traits>

#include "common/kernel.cuh"
#include "norm_rope/norm_rope_block.cuh"

namespace vidk::norm_rope {

// A block's tokens, from first to last, and the cache rows of their k and v.
template <class Index>
struct KvWriteWalk : GridToken<Index> {
  using Unsigned = std::make_unsigned_t<Index>;
  using Base = GridToken<Index>;
  using Base::batch, Base::token, Base::frame, Base::row, Base::col, Base::time, Base::new_bands;

  Index frame_base;  // first cache row of the frame, negative: no such slot

  __device__ KvWriteWalk(const NormRopeParams& p, Unsigned item) {
    const Unsigned tokens = p.tokens;
    const Unsigned width = p.grid.width;
    const Unsigned frame_tokens = p.grid.height * p.grid.width;
    const Unsigned b = item / tokens;
    const Unsigned t = item - b * tokens;
    const Unsigned f = t / frame_tokens;
    const Unsigned in_frame = t - f * frame_tokens;
    batch = b;
    token = t;
    frame = f;
    row = in_frame / width;
    col = in_frame - row * width;
    enter_frame(p);
  }

  __device__ void next(const NormRopeParams& p) {
    new_bands = Base::kColumn;
    ++token;
    if (++col < static_cast<Index>(p.grid.width) && token < static_cast<Index>(p.tokens)) return;
    col = 0;
    if (token == static_cast<Index>(p.tokens)) {
      token = frame = row = 0;
      ++batch;
      enter_frame(p);
    } else if (++row == static_cast<Index>(p.grid.height)) {
      row = 0;
      ++frame;
      enter_frame(p);
    } else {
      new_bands = Base::kRow | Base::kColumn;
    }
  }

  // The token's cache row, or -1: the slot is data on the device, and memory outside the cache must
  // never be touched.
  __device__ Index kv_row(const NormRopeParams& p) const {
    if (frame_base < 0) return -1;
    const int64_t at =
        static_cast<int64_t>(frame_base) + row * static_cast<Index>(p.grid.width) + col;
    return at < p.cache_rows ? static_cast<Index>(at) : -1;
  }

 private:
  __device__ void enter_frame(const NormRopeParams& p) {
    new_bands = Base::kAllBands;
    time = time_row(p.grid, frame);
    const Index slot = __ldg(p.frame_slot + frame);
    const Index frame_tokens = p.grid.height * p.grid.width;
    // Compared before multiplied: a hostile slot times frame_tokens could overflow.
    const bool is_slot = slot >= 0 && slot <= static_cast<Index>(p.cache_rows) / frame_tokens;
    frame_base = is_slot ? slot * frame_tokens : -1;
  }
};

// q goes to its output, k and v to the cache.
struct KvWrite {
  using Params = NormRopeParams;
  using OutRows = PassRows;
  template <class Index>
  using Walk = KvWriteWalk<Index>;

  static constexpr bool kMayLack = false;
  static __device__ bool has(const PassRows&) { return true; }
  static __device__ int64_t head_offset(const Params&, const PassRows& x, int64_t head) {
    return head * x.head_stride;
  }

  // A thread's heads are equally far apart.
  template <int kVecs>
  struct ThreadHeads {
    int first_head, at;

    __device__ ThreadHeads(const Params&, int first_head, int at)
        : first_head(first_head), at(at) {}
    template <class Visit>
    __device__ void visit(const PassRows& x, char* token, Visit&& visit) const {
      char* to = token + first_head * x.head_stride + at;
#pragma unroll
      for (int i = 0; i < kVecs; ++i) {
        visit(i, to);
        to += x.pass_stride;
      }
    }
  };
};

}  // namespace vidk::norm_rope

using namespace vidk;
VIDK_KERNEL(vidk_norm_rope_bf16_x1, NormRopeParams, (256, 4),
            norm_rope::in_registers<norm_rope::KvWrite, BFloat16, 1>)
VIDK_KERNEL(vidk_norm_rope_bf16_x2, NormRopeParams, (256, 3),
            norm_rope::in_registers<norm_rope::KvWrite, BFloat16, 2>)
VIDK_KERNEL(vidk_norm_rope_bf16_x4, NormRopeParams, (512, 1),
            norm_rope::in_registers<norm_rope::KvWrite, BFloat16, 4>)
VIDK_KERNEL(vidk_norm_rope_f16_x1, NormRopeParams, (256, 4),
            norm_rope::in_registers<norm_rope::KvWrite, Float16, 1>)
VIDK_KERNEL(vidk_norm_rope_f16_x2, NormRopeParams, (256, 3),
            norm_rope::in_registers<norm_rope::KvWrite, Float16, 2>)
VIDK_KERNEL(vidk_norm_rope_f16_x4, NormRopeParams, (512, 1),
            norm_rope::in_registers<norm_rope::KvWrite, Float16, 4>)
VIDK_KERNEL(vidk_norm_rope_f32_x1, NormRopeParams, (256, 4),
            norm_rope::in_registers<norm_rope::KvWrite, Float32, 1>)
VIDK_KERNEL(vidk_norm_rope_f32_x2, NormRopeParams, (256, 3),
            norm_rope::in_registers<norm_rope::KvWrite, Float32, 2>)
VIDK_KERNEL(vidk_norm_rope_f32_x4, NormRopeParams, (512, 1),
            norm_rope::in_registers<norm_rope::KvWrite, Float32, 4>)
VIDK_KERNEL(vidk_norm_rope_bf16_16B, NormRopeParams, (512, 2),
            norm_rope::in_two_passes<norm_rope::KvWrite, BFloat16, 16>)
VIDK_KERNEL(vidk_norm_rope_bf16_8B, NormRopeParams, (512, 2),
            norm_rope::in_two_passes<norm_rope::KvWrite, BFloat16, 8>)
VIDK_KERNEL(vidk_norm_rope_bf16_4B, NormRopeParams, (512, 2),
            norm_rope::in_two_passes<norm_rope::KvWrite, BFloat16, 4>)
VIDK_KERNEL(vidk_norm_rope_bf16_2B, NormRopeParams, (512, 2),
            norm_rope::in_two_passes<norm_rope::KvWrite, BFloat16, 2>)
VIDK_KERNEL(vidk_norm_rope_f16_16B, NormRopeParams, (512, 2),
            norm_rope::in_two_passes<norm_rope::KvWrite, Float16, 16>)
VIDK_KERNEL(vidk_norm_rope_f16_8B, NormRopeParams, (512, 2),
            norm_rope::in_two_passes<norm_rope::KvWrite, Float16, 8>)
VIDK_KERNEL(vidk_norm_rope_f16_4B, NormRopeParams, (512, 2),
            norm_rope::in_two_passes<norm_rope::KvWrite, Float16, 4>)
VIDK_KERNEL(vidk_norm_rope_f16_2B, NormRopeParams, (512, 2),
            norm_rope::in_two_passes<norm_rope::KvWrite, Float16, 2>)
VIDK_KERNEL(vidk_norm_rope_f32_16B, NormRopeParams, (512, 2),
            norm_rope::in_two_passes<norm_rope::KvWrite, Float32, 16>)
VIDK_KERNEL(vidk_norm_rope_f32_8B, NormRopeParams, (512, 2),
            norm_rope::in_two_passes<norm_rope::KvWrite, Float32, 8>)
VIDK_KERNEL(vidk_norm_rope_f32_4B, NormRopeParams, (512, 2),
            norm_rope::in_two_passes<norm_rope::KvWrite, Float32, 4>)
