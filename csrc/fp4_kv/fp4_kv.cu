// Device code of qk_norm_rope_nvfp4_kv_write. Torch-free.
//
// Two launches: the means of the tiles, then all tokens. A token's row is in registers, eight
// channels a lane; neighbouring lanes share the blocks that have one scale.
#include <cstdint>

#include "common/kernel.cuh"
#include "fp4_kv/fp4_kv_means.cuh"
#include "fp4_kv/fp4_kv_quantize.cuh"

namespace vidk::fp4_kv {

// The rows of a tile that a thread block takes: the same of each quarter, as far as the tile has
// them. In order they are one run, of which each group takes a part.
struct Part {
  int first, count;  // rows of each quarter
  int tokens;

  __device__ Part(const Fp4KvParams& p, const Tile& tile, int part)
      : first(part * p.part_rows), count(min(p.part_rows, kFp4KvQuarterRows - first)), tokens(0) {
#pragma unroll
    for (int i = 0; i < kFp4KvQuarters; ++i) {
      tokens += max(0, min(count, tile.rows - i * kFp4KvQuarterRows - first));
    }
  }
  // The first token of a group; that of the group after it ends its run.
  __device__ int begin(const Fp4KvParams& p, int group) const { return group * tokens / p.groups; }
  __device__ int tile_row(int i) const {
    const int quarter = i / count;
    return quarter * kFp4KvQuarterRows + first + i - quarter * count;
  }
  // Rows whose scales lie side by side are staged one after the other.
  __device__ int stage_row(int tile_row) const {
    const int quarter = tile_row / kFp4KvQuarterRows;
    return (tile_row - quarter * kFp4KvQuarterRows - first) * kFp4KvQuarters + quarter;
  }
  __device__ int row_of_stage(int i) const {
    return first + i / kFp4KvQuarters + i % kFp4KvQuarters * kFp4KvQuarterRows;
  }
};

// The rows of q past the last one, in the last tile of each head, by all thread blocks.
__device__ inline void clear_padding(const Fp4KvParams& p) {
  const int64_t used = p.tokens % kFp4TileRows;
  if (used == 0) return;
  const int64_t column_tiles = p.columns / 4;
  const int64_t words = p.batch * p.heads * column_tiles * kFp4TileRows;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < words;
       i += int64_t{gridDim.x} * blockDim.x) {
    const int64_t word = i % kFp4TileRows;
    if (word / 4 + word % 4 * kFp4KvQuarterRows < used) continue;
    const int64_t piece = i / kFp4TileRows;
    const int64_t plane = piece / column_tiles;
    const int64_t at = ((plane + 1) * p.q_to.tiles - 1) * column_tiles + piece % column_tiles;
    reinterpret_cast<uint32_t*>(p.q_to.scales + at * kFp4TileBytes)[word] = 0;
  }
}

// The weights of q and of k, the means of a tile and the order of channels, for all groups.
template <bool kMean>
__device__ void load_shared_rows(const Fp4KvParams& p, const Tile& tile, char* shared) {
  const int channels = static_cast<int>(p.heads) * kFp4KvDim;
  for (int i = threadIdx.x; i < channels / 8; i += blockDim.x) {
    const int at = i * Vec::kBytes;
    Vec t;
    t.load(p.q_weight + at);
    t.store_shared(shared + at);
    t.load(p.k_weight + at);
    t.store_shared(shared + p.weights_at + at);
    if (kMean && tile.slot >= 0) {
      const int head = i / kFp4KvHeadVecs;
      t.load(p.k_mean + tile.cache_tile(p, head) * (2 * kFp4KvDim) + at - head * 2 * kFp4KvDim);
      t.store_shared(shared + p.means_at + at);
    }
    if (p.perm != nullptr) {
      reinterpret_cast<uint2*>(shared + p.perm_at)[i] = order_of(p.perm + 8 * i);
    }
  }
}

template <Fp4Scale kScale, bool kCross, int kVecs>
__device__ void write_tokens(const Fp4KvParams& p) {
  constexpr bool kMean = kScale == Fp4Scale::kFourOverSix;
  __shared__ float2 warp_sums[2][kFp4KvMaxThreads / 32];
  clear_padding(p);
  const Tile tile(p, blockIdx.x / p.parts);
  const Part part(p, tile, blockIdx.x - blockIdx.x / p.parts * p.parts);
  if (part.tokens <= 0) return;
  const Place place(p, threadIdx.x);
  const int group = place.group;
  char* const shared = reinterpret_cast<char*>(norm_rope::shared_data);
  float* const angles = reinterpret_cast<float*>(shared + p.angles_at) + group * 4 * kFp4KvPairs;

  int index = part.begin(p, group);
  const int end = part.begin(p, group + 1);
  int tile_row = part.tile_row(index);
  TileToken token(p, tile, tile_row);
  // Whether the key is this kernel's to write.
  const auto takes_key = [&] {
    return tile.slot >= 0 && !(kMean && p.samples_are_done && tile.is_sample(tile_row));
  };
  Vec q[kVecs], k[kVecs], v[kVecs];
  clear(k);
  const bool is_any = index < end;
  bool has_key = is_any && takes_key();
  if (is_any) load(q, p, place, p.q, token);
  if (has_key) load(k, p, place, p.k, token);
  if (is_any) load(v, p, place, p.v, token);
  load_shared_rows<kMean>(p, tile, shared);
  __syncthreads();

  for (int buffer = 0; index < end; buffer ^= 1) {
    // Whatever follows from a thread's place is computed for each token anew: all these addresses
    // at once are more than registers hold.
    Place at = place;
    asm volatile("" : "+r"(at.first_head), "+r"(at.vec), "+r"(at.thread), "+r"(at.group));
    float* const cos_sin = angles + buffer * 2 * kFp4KvPairs;
    norm_rope::stage_angles(p, token, kFp4KvPairs, angles + (buffer ^ 1) * 2 * kFp4KvPairs, cos_sin,
                            at.thread, p.group_threads);
    float2 sum = make_float2(0.0f, 0.0f);
#pragma unroll
    for (int i = 0; i < kVecs; ++i) {
      sum.x = norm_rope::add_squares(sum.x, q[i]);
      sum.y = norm_rope::add_squares(sum.y, k[i]);
    }
    sum = norm_rope::warp_sum(sum);
    if (threadIdx.x % 32 == 0) warp_sums[buffer][threadIdx.x / 32] = sum;
    const int32_t row = token.token;
    const int64_t cache_row = tile.cache_row(p, tile_row);
    char* const stage = shared + p.stage_at + part.stage_row(tile_row) * p.stage_row_bytes;
    const bool is_rotated = token.is_rotated();
    if (tile.slot >= 0) store_v(v, p, at, tile.batch, cache_row);
    at.sync(p);

    const bool has_next = ++index < end;
    if (has_next) {
      tile_row = part.tile_row(index);
      token.seek(p, tile, tile_row);
      load(v, p, at, p.v, token);
    }
    const int warps = at.warps(p);
    const float2 scale = norm_rope::scales(p, warp_sums[buffer] + at.group * warps, warps);
    float cos[Vec::kPairs], sin[Vec::kPairs];
    load_angles(cos_sin, is_rotated, at.vec, cos, sin);
    const auto finish = [&](Vec(&t)[kVecs], bool is_k, float t_scale, const Fp4KvTarget& to,
                            int64_t to_row) {
      uint8_t* codes = codes_of(to, p, at, tile.batch, to_row);
#pragma unroll
      for (int i = 0; i < kVecs; ++i, codes += to.pass_stride) {
        const bool has = at.has(p, i);
        const int head = at.head(p, i);
        const int channel = has ? at.channel(p, i) : 0;
        float x[8] = {};
        if (has) {
          Vec weight;
          weight.load_shared(shared + (is_k ? p.weights_at : 0) + channel * 2);
          norm_rope::norm_rotate(t[i], weight, t_scale, cos, sin);
          if (kMean && !is_k) {
            t[i].store(p.q_out.data + norm_rope::row_offset(p.q_out, tile.batch, row) +
                       head * p.q_out.head_stride + at.vec * Vec::kBytes);
          }
          unpack(t[i], kMean && is_k ? shared + p.means_at + channel * 2 : nullptr, x);
        }
        if (p.perm != nullptr) {
          permute(x, *reinterpret_cast<const uint2*>(shared + p.perm_at + channel),
                  shared + p.exchange_at);
        }
        quantize_vector<kScale, kCross>(x, p, at, has, is_k, codes,
                                        stage + (is_k ? p.stage_bytes : 0) + head * p.columns);
      }
    };
    finish(q, false, scale.x, p.q_to, row);
    if (has_next) load(q, p, at, p.q, token);
    if (has_key) finish(k, true, scale.y, p.k_to, cache_row);
    has_key = has_next && takes_key();
    if (has_key) load(k, p, at, p.k, token);
  }
  __syncthreads();

  const char* const stage = shared + p.stage_at;
  const int staged_rows = part.count * kFp4KvQuarters;
  store_scales(p, stage, staged_rows, [&](int head, int i) -> uint8_t* {
    const int row_of_tile = part.row_of_stage(i);
    if (row_of_tile >= tile.rows) return nullptr;
    const uint32_t q_row = tile.frame * p.frame_tokens + tile.first_row() + row_of_tile;
    const uint32_t q_tile = q_row / static_cast<uint32_t>(kFp4TileRows);
    const int64_t at_tile = (tile.batch * p.heads + head) * p.q_to.tiles + q_tile;
    return p.q_to.scales + at_tile * (p.columns / 4 * kFp4TileBytes) +
           fp4_scale_offset(q_row % static_cast<uint32_t>(kFp4TileRows));
  });
  if (tile.slot < 0) return;
  store_scales(p, stage + p.stage_bytes, staged_rows, [&](int head, int i) -> uint8_t* {
    const int row_of_tile = part.row_of_stage(i);
    if (row_of_tile >= tile.rows) return nullptr;
    if (kMean && p.samples_are_done && tile.is_sample(row_of_tile)) return nullptr;
    return cache_scales(p, tile, head, row_of_tile);
  });
}

}  // namespace vidk::fp4_kv

using namespace vidk;
constexpr auto kPlain = Fp4Scale::kPlain;
constexpr auto k46 = Fp4Scale::kFourOverSix;
constexpr auto kMxfp8 = Fp4Scale::kMxfp8;
VIDK_KERNEL(vidk_fp4_kv_means_x1, Fp4KvParams, (kFp4KvMaxThreads, 1),
            fp4_kv::tile_means<false, false, 1>)
VIDK_KERNEL(vidk_fp4_kv_means_x2, Fp4KvParams, (kFp4KvWideThreads, 1),
            fp4_kv::tile_means<false, false, 2>)
VIDK_KERNEL(vidk_fp4_kv_samples_46_x1, Fp4KvParams, (kFp4KvMeansThreads, 1),
            fp4_kv::tile_means<true, false, 1>)
VIDK_KERNEL(vidk_fp4_kv_samples_cross_x1, Fp4KvParams, (kFp4KvMeansThreads, 1),
            fp4_kv::tile_means<true, true, 1>)
VIDK_KERNEL(vidk_fp4_kv_write_plain_x1, Fp4KvParams, (kFp4KvMaxThreads, 1),
            fp4_kv::write_tokens<kPlain, false, 1>)
VIDK_KERNEL(vidk_fp4_kv_write_plain_x2, Fp4KvParams, (kFp4KvWideThreads, 1),
            fp4_kv::write_tokens<kPlain, false, 2>)
VIDK_KERNEL(vidk_fp4_kv_write_46_x1, Fp4KvParams, (kFp4KvMaxThreads, 1),
            fp4_kv::write_tokens<k46, false, 1>)
VIDK_KERNEL(vidk_fp4_kv_write_46_x2, Fp4KvParams, (kFp4KvWideThreads, 1),
            fp4_kv::write_tokens<k46, false, 2>)
VIDK_KERNEL(vidk_fp4_kv_write_cross_x1, Fp4KvParams, (kFp4KvMaxThreads, 1),
            fp4_kv::write_tokens<k46, true, 1>)
VIDK_KERNEL(vidk_fp4_kv_write_cross_x2, Fp4KvParams, (kFp4KvWideThreads, 1),
            fp4_kv::write_tokens<k46, true, 2>)
// With the bound that the others have, ptxas spills for sm_100a.
VIDK_KERNEL(vidk_fp4_kv_write_mxfp8_x1, Fp4KvParams, (kFp4KvMaxThreads + 64, 1),
            fp4_kv::write_tokens<kMxfp8, false, 1>)
VIDK_KERNEL(vidk_fp4_kv_write_mxfp8_x2, Fp4KvParams, (kFp4KvWideThreads, 1),
            fp4_kv::write_tokens<kMxfp8, false, 2>)
