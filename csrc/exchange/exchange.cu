// Device code of the sequence->head exchange's two sides. Torch-free.
#include <cstdint>
#include <type_traits>

#include "common/kernel.cuh"
#include "exchange/exchange_kernel.h"
#include "norm_rope/norm_rope_block.cuh"

namespace vidk::exchange {

// The tokens of one rank's shard, as rope_3d numbers them.
template <class Index>
struct ShardWalk : norm_rope::GridToken<Index> {
  using Unsigned = std::make_unsigned_t<Index>;
  using Base = norm_rope::GridToken<Index>;
  using Base::batch, Base::token, Base::frame, Base::row, Base::col, Base::time, Base::new_bands;

  Index slice_left, slice_frame;

  __device__ ShardWalk(const PackParams& p, Unsigned item) {
    const Unsigned tokens = p.tokens;
    const Unsigned slice_tokens = p.grid.slice_tokens;
    const Unsigned width = p.grid.width;
    const Unsigned frame_tokens = p.grid.height * p.grid.width;
    const Unsigned b = item / tokens;
    const Unsigned t = item - b * tokens;
    const Unsigned slice = t / slice_tokens;
    const Unsigned in_slice = t - slice * slice_tokens;
    const Unsigned index =
        slice * frame_tokens + static_cast<Unsigned>(p.grid.token_offset) + in_slice;
    const Unsigned f = index / frame_tokens;
    const Unsigned in_frame = index - f * frame_tokens;
    batch = b;
    token = t;
    slice_left = slice_tokens - in_slice;
    slice_frame = slice + static_cast<Unsigned>(p.first_frame);
    frame = f;
    row = in_frame / width;
    col = in_frame - row * width;
    enter_frame(p);
  }

  // Without a division: it would need registers while all of a token is in them.
  __device__ void next(const PackParams& p) {
    new_bands = Base::kColumn;
    if (++token == static_cast<Index>(p.tokens)) {
      ++batch;
      token = 0;
      enter_slice(p, p.first_frame);
    } else if (--slice_left == 0) {
      enter_slice(p, slice_frame + 1);
    } else if (++col == static_cast<Index>(p.grid.width)) {
      col = 0;
      if (++row == static_cast<Index>(p.grid.height)) {
        row = 0;
        ++frame;
        enter_frame(p);
      } else {
        new_bands = Base::kRow | Base::kColumn;
      }
    }
  }

  // k and v stay where they are in the order of tokens, as q does.
  __device__ Index kv_row(const PackParams&) const { return token; }

 private:
  __device__ void enter_slice(const PackParams& p, Index first_frame) {
    slice_left = p.grid.slice_tokens;
    slice_frame = first_frame;
    frame = first_frame;
    row = p.first_row;
    col = p.first_col;
    enter_frame(p);
  }
  // Padding past the last frame has no angles, nor has v alone a use for any.
  __device__ void enter_frame(const PackParams& p) {
    new_bands = Base::kAllBands;
    const bool has_angles = frame < p.grid.frames && (p.q.data != nullptr || p.k.data != nullptr);
    time = has_angles ? time_row(p.grid, frame) : kNoPosition;
  }
};

// Every tensor goes to the chunks of the ranks that own its heads.
struct Pack {
  using Params = PackParams;
  using OutRows = Rows;
  template <class Index>
  using Walk = ShardWalk<Index>;

  static constexpr bool kMayLack = true;
  static __device__ bool has(const PassRows& x) { return x.data != nullptr; }
  static __device__ int64_t head_offset(const PackParams& p, const Rows& x, uint64_t head) {
    const uint64_t rank = head / static_cast<uint64_t>(p.rank_heads);
    return rank * p.rank_stride + (head - rank * p.rank_heads) * x.head_stride;
  }

  // The three outputs are alike, so that a head's place in one is its place in all. Counted in
  // vectors of 16 bytes, which the plan has seen to fit: registers are scarce here.
  template <int kVecs>
  struct ThreadHeads {
    uint32_t offset[kVecs];

    __device__ ThreadHeads(const PackParams& p, int first_head, int at) {
#pragma unroll
      for (int i = 0; i < kVecs; ++i) {
        const unsigned head = first_head + i * p.pass_heads;
        const unsigned rank = head / static_cast<unsigned>(p.rank_heads);
        const unsigned in_rank = head - rank * static_cast<unsigned>(p.rank_heads);
        offset[i] = (rank * p.rank_stride + in_rank * p.q_out.head_stride + at) / 16;
      }
    }
    template <class Visit>
    __device__ void visit(const Rows&, char* token, Visit&& visit) const {
#pragma unroll
      for (int i = 0; i < kVecs; ++i) visit(i, token + int64_t{offset[i]} * 16);
    }
  };
};

constexpr int64_t kSkipped = -1;

// The cache row and the batch row of a received token; no row for padding, and none for a slot
// outside the cache: it is data on the device, and memory around must never be touched.
struct CacheRow {
  int64_t batch, row;

  __device__ CacheRow(const UnpackParams& p, uint64_t token) : row(kSkipped) {
    const uint64_t shard = token / static_cast<uint64_t>(p.shard_tokens);
    const uint64_t in_shard = token - shard * p.shard_tokens;
    const uint64_t rank = shard / static_cast<uint64_t>(p.batch);
    batch = shard - rank * p.batch;
    const uint64_t slice = in_shard / static_cast<uint64_t>(p.slice_tokens);
    const int64_t at = rank * p.slice_tokens + (in_shard - slice * p.slice_tokens);
    const int64_t index = slice * p.frame_tokens + at;
    if (at >= p.slice_end || index >= p.block_tokens) return;
    const uint64_t frame = static_cast<uint64_t>(index) / static_cast<uint64_t>(p.frame_tokens);
    const int64_t slot = __ldg(p.frame_slot + frame);
    // Compared before multiplied: a hostile slot times frame_tokens could overflow.
    if (slot < 0 || slot > p.cache_rows / p.frame_tokens) return;
    const int64_t to =
        slot * p.frame_tokens + (index - static_cast<int64_t>(frame) * p.frame_tokens);
    if (to < p.cache_rows) row = to;
  }
};

// A pure copy: T is as wide as alignment allows. What a tile reads is one run of memory, and its
// first loads are under way before anyone asks where they will go.
template <class T>
__device__ void unpack(const UnpackParams& p) {
  __shared__ int64_t to_k[kUnpackMaxTokens], to_v[kUnpackMaxTokens];
  const unsigned row_vecs = p.row_vecs;
  const unsigned head_vecs = p.head_vecs;
  for (int64_t first = int64_t{blockIdx.x} * p.tile_tokens; first < p.tokens;
       first += int64_t{gridDim.x} * p.tile_tokens) {
    const unsigned tokens = min(int64_t{p.tile_tokens}, p.tokens - first);
    const unsigned items = tokens * row_vecs;
    const T* const k_from = reinterpret_cast<const T*>(p.k) + first * p.row_vecs;
    const T* const v_from = reinterpret_cast<const T*>(p.v) + first * p.row_vecs;
    T k[kUnpackUnroll], v[kUnpackUnroll];
    const auto load = [&](unsigned item) {
#pragma unroll
      for (int i = 0; i < kUnpackUnroll; ++i, item += kUnpackThreads) {
        if (item < items) {
          k[i] = __ldg(k_from + item);
          v[i] = __ldg(v_from + item);
        }
      }
    };
    load(threadIdx.x);
    if (threadIdx.x < tokens) {
      const CacheRow to(p, first + threadIdx.x);
      const bool is_kept = to.row != kSkipped;
      const auto offset = [&](const Rows& x) {
        return is_kept ? norm_rope::row_offset(x, to.batch, to.row) : kSkipped;
      };
      to_k[threadIdx.x] = offset(p.k_cache);
      to_v[threadIdx.x] = offset(p.v_cache);
    }
    __syncthreads();
    for (unsigned item = threadIdx.x; item < items;) {
#pragma unroll
      for (int i = 0; i < kUnpackUnroll; ++i, item += kUnpackThreads) {
        if (item >= items) break;
        const unsigned token = item / row_vecs;
        if (to_k[token] == kSkipped) continue;
        const unsigned in_row = item - token * row_vecs;
        const unsigned head = in_row / head_vecs;
        const int64_t at = int64_t{in_row - head * head_vecs} * sizeof(T);
        *reinterpret_cast<T*>(p.k_cache.data + to_k[token] + head * p.k_cache.head_stride + at) =
            k[i];
        *reinterpret_cast<T*>(p.v_cache.data + to_v[token] + head * p.v_cache.head_stride + at) =
            v[i];
      }
      load(item);
    }
    __syncthreads();
  }
}

}  // namespace vidk::exchange

using namespace vidk;
VIDK_KERNEL(vidk_pack_bf16_x1, PackParams, (256, 4),
            norm_rope::in_registers<exchange::Pack, BFloat16, 1>)
VIDK_KERNEL(vidk_pack_bf16_x2, PackParams, (256, 3),
            norm_rope::in_registers<exchange::Pack, BFloat16, 2>)
VIDK_KERNEL(vidk_pack_bf16_x4, PackParams, (384, 1),
            norm_rope::in_registers<exchange::Pack, BFloat16, 4>)
VIDK_KERNEL(vidk_pack_f16_x1, PackParams, (256, 4),
            norm_rope::in_registers<exchange::Pack, Float16, 1>)
VIDK_KERNEL(vidk_pack_f16_x2, PackParams, (256, 3),
            norm_rope::in_registers<exchange::Pack, Float16, 2>)
VIDK_KERNEL(vidk_pack_f16_x4, PackParams, (384, 1),
            norm_rope::in_registers<exchange::Pack, Float16, 4>)
VIDK_KERNEL(vidk_pack_f32_x1, PackParams, (256, 4),
            norm_rope::in_registers<exchange::Pack, Float32, 1>)
VIDK_KERNEL(vidk_pack_f32_x2, PackParams, (256, 3),
            norm_rope::in_registers<exchange::Pack, Float32, 2>)
VIDK_KERNEL(vidk_pack_f32_x4, PackParams, (384, 1),
            norm_rope::in_registers<exchange::Pack, Float32, 4>)
VIDK_KERNEL(vidk_pack_bf16_16B, PackParams, (512, 2),
            norm_rope::in_two_passes<exchange::Pack, BFloat16, 16>)
VIDK_KERNEL(vidk_pack_bf16_8B, PackParams, (512, 2),
            norm_rope::in_two_passes<exchange::Pack, BFloat16, 8>)
VIDK_KERNEL(vidk_pack_bf16_4B, PackParams, (512, 2),
            norm_rope::in_two_passes<exchange::Pack, BFloat16, 4>)
VIDK_KERNEL(vidk_pack_bf16_2B, PackParams, (512, 2),
            norm_rope::in_two_passes<exchange::Pack, BFloat16, 2>)
VIDK_KERNEL(vidk_pack_f16_16B, PackParams, (512, 2),
            norm_rope::in_two_passes<exchange::Pack, Float16, 16>)
VIDK_KERNEL(vidk_pack_f16_8B, PackParams, (512, 2),
            norm_rope::in_two_passes<exchange::Pack, Float16, 8>)
VIDK_KERNEL(vidk_pack_f16_4B, PackParams, (512, 2),
            norm_rope::in_two_passes<exchange::Pack, Float16, 4>)
VIDK_KERNEL(vidk_pack_f16_2B, PackParams, (512, 2),
            norm_rope::in_two_passes<exchange::Pack, Float16, 2>)
VIDK_KERNEL(vidk_pack_f32_16B, PackParams, (512, 2),
            norm_rope::in_two_passes<exchange::Pack, Float32, 16>)
VIDK_KERNEL(vidk_pack_f32_8B, PackParams, (512, 2),
            norm_rope::in_two_passes<exchange::Pack, Float32, 8>)
VIDK_KERNEL(vidk_pack_f32_4B, PackParams, (512, 2),
            norm_rope::in_two_passes<exchange::Pack, Float32, 4>)
VIDK_KERNEL(vidk_unpack_16B, UnpackParams, (kUnpackThreads, 4), exchange::unpack<uint4>)
VIDK_KERNEL(vidk_unpack_8B, UnpackParams, (kUnpackThreads, 4), exchange::unpack<uint2>)
VIDK_KERNEL(vidk_unpack_4B, UnpackParams, (kUnpackThreads, 4), exchange::unpack<uint32_t>)
VIDK_KERNEL(vidk_unpack_2B, UnpackParams, (kUnpackThreads, 4), exchange::unpack<uint16_t>)
