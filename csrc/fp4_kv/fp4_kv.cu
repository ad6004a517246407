// Device code of qk_norm_rope_nvfp4_kv_write. Torch-free.
//
// Two launches: the means of the tiles, then all tokens. A token's row is in registers, eight
// channels a lane; neighbouring lanes share the blocks that have one scale.
#include <cstdint>
#include <type_traits>

#include "common/kernel.cuh"
#include "fp4_kv/fp4_kv.cuh"
#include "nvfp4/mxfp8.cuh"

namespace vidk::fp4_kv {

using norm_rope::shared_data;

// A thread block does a tile: 16 rows, four at a time by each group. Sums go by pairs of
// neighbours, as the CPU's do, so that their bits are the same.
template <int kVecs>
__device__ void tile_means(const Fp4KvParams& p) {
  constexpr int kRows = 4;
  __shared__ float2 warp_sums[kRows / 2][kFp4KvMeansThreads / 32];
  const Tile tile(p, blockIdx.x);
  if (tile.slot < 0) return;
  const Place at(p);
  const int warp = threadIdx.x / 32;
  const int first_warp = at.group * at.warps(p);
  const int channels = static_cast<int>(p.heads) * kFp4KvDim;
  // Shared: the sums of each four rows, the weights, then the angles of each group's rows.
  float* const sums = reinterpret_cast<float*>(shared_data);
  char* const weights = reinterpret_cast<char*>(sums + kRows * channels);
  float* const angles =
      reinterpret_cast<float*>(weights + 2 * channels) + at.group * kRows * 2 * kFp4KvPairs;
  for (int i = threadIdx.x; i < channels / 8; i += blockDim.x) {
    Vec weight;
    weight.load(p.k_weight + i * Vec::kBytes);
    weight.store_shared(weights + i * Vec::kBytes);
  }
  __syncthreads();

  for (int four = at.group; four < kFp4Samples / kRows; four += p.groups) {
    const auto row_of = [&](int i) {
      return (four * kRows + i) * tile.rows / static_cast<int>(kFp4Samples);
    };
    TileToken token(p, tile, row_of(0));
    const bool is_rotated = token.is_rotated();
    Vec k[kRows][kVecs];
    float2 sum[kRows / 2];
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if (i > 0) token.seek(p, tile, row_of(i));
      load<kVecs>(k[i], p, at, p.k, token);
      float* const staged = angles + i * 2 * kFp4KvPairs;
      norm_rope::stage_angles(p, token, kFp4KvPairs, staged - 2 * kFp4KvPairs, staged, at.thread,
                              p.group_threads);
    }
#pragma unroll
    for (int i = 0; i < kRows / 2; ++i) {
      sum[i] = make_float2(0.0f, 0.0f);
#pragma unroll
      for (int n = 0; n < kVecs; ++n) {
        sum[i].x = norm_rope::add_squares(sum[i].x, k[2 * i][n]);
        sum[i].y = norm_rope::add_squares(sum[i].y, k[2 * i + 1][n]);
      }
      sum[i] = norm_rope::warp_sum(sum[i]);
      if (threadIdx.x % 32 == 0) warp_sums[i][warp] = sum[i];
    }
    at.sync(p);
    float scale[kRows];
#pragma unroll
    for (int i = 0; i < kRows / 2; ++i) {
      const float2 two = norm_rope::scales(p, warp_sums[i] + first_warp, at.warps(p));
      scale[2 * i] = two.x;
      scale[2 * i + 1] = two.y;
    }
#pragma unroll
    for (int n = 0; n < kVecs; ++n) {
      if (!at.has(p, n)) continue;
      const int first_channel = at.head(p, n) * kFp4KvDim + at.vec * 2 * Vec::kPairs;
      Vec weight;
      weight.load_shared(weights + first_channel * 2);
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        float cos[Vec::kPairs], sin[Vec::kPairs];
        load_angles(angles + i * 2 * kFp4KvPairs, is_rotated, at.vec, cos, sin);
        norm_rope::norm_rotate(k[i][n], weight, scale[i], cos, sin);
      }
      float4 out[2];
      float* const of_four = &out[0].x;
#pragma unroll
      for (int c = 0; c < Vec::kPairs; ++c) {
        const float2 a = k[0][n].pair(c), b = k[1][n].pair(c), d = k[2][n].pair(c),
                     e = k[3][n].pair(c);
        of_four[2 * c] = __fadd_rn(__fadd_rn(a.x, b.x), __fadd_rn(d.x, e.x));
        of_four[2 * c + 1] = __fadd_rn(__fadd_rn(a.y, b.y), __fadd_rn(d.y, e.y));
      }
      float4* const to = reinterpret_cast<float4*>(sums + four * channels + first_channel);
      to[0] = out[0];
      to[1] = out[1];
    }
    at.sync(p);
  }
  __syncthreads();
  for (int c = 2 * static_cast<int>(threadIdx.x); c < channels; c += 2 * blockDim.x) {
    float2 four[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      four[i] = *reinterpret_cast<const float2*>(sums + i * channels + c);
    }
    const float x = __fadd_rn(__fadd_rn(four[0].x, four[1].x), __fadd_rn(four[2].x, four[3].x));
    const float y = __fadd_rn(__fadd_rn(four[0].y, four[1].y), __fadd_rn(four[2].y, four[3].y));
    constexpr float kPart = 1.0f / kFp4Samples;
    uint32_t mean;
    BFloat16::pack(make_float2(__fmul_rn(x, kPart), __fmul_rn(y, kPart)), &mean);
    const int head = c / kFp4KvDim;
    char* const to = p.k_mean + tile.cache_tile(p, head) * (2 * kFp4KvDim);
    *reinterpret_cast<uint32_t*>(to + 2 * (c - head * kFp4KvDim)) = mean;
  }
}

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
};

// What one head's vector becomes: codes of a lane's eight channels, in four or eight bytes.
template <Fp4Scale kScale>
struct Row;

template <>
struct Row<Fp4Scale::kMxfp8> {
  static constexpr int kBlockLanes = 4;
  static constexpr int kLaneBytes = 8;
  uint32_t scale;
  uint2 codes;

  __device__ explicit Row(const float (&x)[8]) {
    const nvfp4::Mxfp8 q = nvfp4::quantize_mxfp8(x);
    scale = q.scale;
    codes = make_uint2(q.codes[0], q.codes[1]);
  }
  __device__ void store(uint8_t* to) const { *reinterpret_cast<uint2*>(to) = codes; }
};

template <Fp4Scale kScale>
struct Row {
  static constexpr int kBlockLanes = 2;
  static constexpr int kLaneBytes = 4;
  uint32_t scale;
  uint32_t codes;

  __device__ Row(uint32_t scale, uint32_t codes) : scale(scale), codes(codes) {}
  __device__ explicit Row(const float (&x)[8]) {
    constexpr Nvfp4Recipe kRecipe =
        kScale == Fp4Scale::kPlain ? Nvfp4Recipe::kPlain : Nvfp4Recipe::kFourOverSix;
    const nvfp4::Quantized q = nvfp4::quantize<kRecipe>(x);
    scale = q.scale;
    codes = q.codes;
  }
  __device__ void store(uint8_t* to) const { *reinterpret_cast<uint32_t*>(to) = codes; }

  // Takes what the codes stand for off the values.
  __device__ void subtract_from(float (&x)[8]) const {
    const float s = scale == 0x7f ? __uint_as_float(0x7fc00000u) : nvfp4::e4m3_value(scale);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const uint32_t code = codes >> 4 * i;
      // Twice the value: a small number of bits 2..1 shifted by the exponent.
      const uint32_t bits = ((code & 7u) >> 1) + 126u;
      const float size = (code & 7u) < 2 ? 0.5f * static_cast<float>(code & 7u)
                                         : __uint_as_float(bits << 23 | (code & 1u) << 22);
      x[i] = __fsub_rn(x[i], __fmul_rn(code & 8u ? -size : size, s));
    }
  }
  // The same of another lane.
  __device__ Row of_lane(int lane) const {
    return {__shfl_sync(0xffffffffu, scale, lane), __shfl_sync(0xffffffffu, codes, lane)};
  }
};

// Puts the channels of a warp's heads in the order of `perm`, through shared memory.
__device__ inline void permute(float (&x)[8], const char* perm, char* exchange) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float* const warp = reinterpret_cast<float*>(exchange) + threadIdx.x / 32 * (32 * 8);
  float4* const mine = reinterpret_cast<float4*>(warp + lane * 8);
  __syncwarp();
  mine[0] = make_float4(x[0], x[1], x[2], x[3]);
  mine[1] = make_float4(x[4], x[5], x[6], x[7]);
  __syncwarp();
  const float* const head = warp + lane / kFp4KvHeadVecs * kFp4KvDim;
  const uint2 from = *reinterpret_cast<const uint2*>(perm);
#pragma unroll
  for (int i = 0; i < 8; ++i) x[i] = head[(i < 4 ? from.x : from.y) >> 8 * (i % 4) & 0xffu];
}

// Quantises one vector of a head; its codes are stored at once, its scales when those of all rows
// of the thread block are there. All lanes of the warp take part.
template <Fp4Scale kScale, bool kCross>
__device__ void quantize_vector(float (&x)[8], const Fp4KvParams& p, const Place& at, int i,
                                bool is_k, uint8_t* codes, uint8_t* scales) {
  using R = Row<kScale>;
  const R high(x);
  const bool has = at.has(p, i);
  scales += at.vec / R::kBlockLanes;
  if (has) {
    high.store(codes + at.vec * R::kLaneBytes);
    if (at.vec % R::kBlockLanes == 0) *scales = static_cast<uint8_t>(high.scale);
  }
  if constexpr (kCross) {
    const int cross_vecs = p.cross / 8;
    high.subtract_from(x);
    const R low(x);
    // The leading lanes have both parts; as many more lanes store the second.
    const R first = is_k ? low : high;
    const R second = (is_k ? high : low).of_lane(static_cast<int>(threadIdx.x) % 32 - cross_vecs);
    const bool is_first = at.vec < cross_vecs;
    const R part{is_first ? first.scale : second.scale, is_first ? first.codes : second.codes};
    if (has && at.vec < 2 * cross_vecs) {
      part.store(codes + (kFp4KvHeadVecs + at.vec) * R::kLaneBytes);
      if (at.vec % R::kBlockLanes == 0) {
        scales[kFp4KvHeadVecs / R::kBlockLanes] = static_cast<uint8_t>(part.scale);
      }
    }
  }
}

// Writes what is staged of one tensor; `place_of` gives the address of a tile row's scales in a
// head's first column tile, or null.
template <class PlaceOf>
__device__ void store_scales(const Fp4KvParams& p, const char* stage, const Part& part,
                             PlaceOf&& place_of) {
  const int column_tiles = p.columns / 4;
  const int pieces = static_cast<int>(p.heads) * column_tiles;
  for (int i = threadIdx.x / 32; i < pieces; i += blockDim.x / 32) {
    const int head = i / column_tiles;
    for (int s = threadIdx.x % 32; s < part.count * kFp4KvQuarters; s += 32) {
      const int tile_row = part.first + s / kFp4KvQuarters + s % kFp4KvQuarters * kFp4KvQuarterRows;
      uint8_t* const to = place_of(head, tile_row);
      if (to == nullptr) continue;
      const uint32_t four =
          *reinterpret_cast<const uint32_t*>(stage + s * p.stage_row_bytes + 4 * i);
      *reinterpret_cast<uint32_t*>(to + (i - head * column_tiles) * kFp4TileBytes) = four;
    }
  }
}

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

// A thread's vectors of v to the cache, as they are or in E4M3.
template <int kVecs>
__device__ void store_v(const Vec (&v)[kVecs], const Fp4KvParams& p, const Place& at, int batch,
                        int64_t cache_row) {
  char* to = p.v_out.data + norm_rope::row_offset(p.v_out, batch, cache_row) +
             at.first_head * p.v_out.head_stride + at.vec * (p.v_is_fp8 ? 8 : 16);
#pragma unroll
  for (int i = 0; i < kVecs; ++i, to += p.v_out.pass_stride) {
    if (!at.has(p, i)) continue;
    if (p.v_is_fp8) {
      uint32_t codes[2] = {0, 0};
#pragma unroll
      for (int n = 3; n >= 0; --n) {
        const float2 t = v[i].pair(n);
        codes[n / 2] = codes[n / 2] << 16 | nvfp4::e4m3_code(t.y) << 8 | nvfp4::e4m3_code(t.x);
      }
      *reinterpret_cast<uint2*>(to) = make_uint2(codes[0], codes[1]);
    } else {
      v[i].store(to);
    }
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
    t.store_shared(shared + 2 * channels + at);
    if (kMean && tile.slot >= 0) {
      const int head = i / kFp4KvHeadVecs;
      t.load(p.k_mean + tile.cache_tile(p, head) * (2 * kFp4KvDim) + at - head * 2 * kFp4KvDim);
      t.store_shared(shared + p.means_at + at);
    }
  }
  if (p.perm == nullptr) return;
  for (int i = threadIdx.x; i < channels; i += blockDim.x) {
    // Data on the device: no channel may lie outside the head.
    shared[p.perm_at + i] = static_cast<char>(min(max(__ldg(p.perm + i), 0), kFp4KvDim - 1));
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
  const Place place(p);
  const int group = place.group;
  char* const shared = reinterpret_cast<char*>(shared_data);
  float* const angles = reinterpret_cast<float*>(shared + p.angles_at) + group * 4 * kFp4KvPairs;

  int index = part.begin(p, group);
  const int end = part.begin(p, group + 1);
  int tile_row = part.tile_row(index);
  TileToken token(p, tile, tile_row);
  Vec q[kVecs], k[kVecs], v[kVecs];
  if (index < end) {
    load(q, p, place, p.q, token);
    load(k, p, place, p.k, token);
    load(v, p, place, p.v, token);
  }
  load_shared_rows<kMean>(p, tile, shared);
  __syncthreads();

  for (int buffer = 0; index < end; buffer ^= 1) {
    // Whatever follows from a thread's place is computed for each token anew: all these addresses
    // at once are more than registers hold.
    Place at = place;
    asm volatile("" : "+r"(at.first_head), "+r"(at.vec));
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
    const int64_t cache_row = tile.slot * p.frame_tokens + tile.first_row() + tile_row;
    const int stage_at = p.stage_at + part.stage_row(tile_row) * p.stage_row_bytes;
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
    const float2 scale = norm_rope::scales(p, warp_sums[buffer] + group * warps, warps);
    float cos[Vec::kPairs], sin[Vec::kPairs];
    load_angles(cos_sin, is_rotated, at.vec, cos, sin);
    const auto finish = [&](Vec(&t)[kVecs], bool is_k, float t_scale, const Fp4KvTarget& to,
                            int64_t to_row) {
      uint8_t* codes =
          to.codes + (tile.batch * p.heads + at.first_head) * to.plane + to_row * p.row_bytes;
#pragma unroll
      for (int i = 0; i < kVecs; ++i, codes += to.pass_stride) {
        const int head = at.head(p, i);
        const int channel = at.has(p, i) ? head * kFp4KvDim + at.vec * 8 : 0;
        float x[8] = {};
        if (at.has(p, i)) {
          Vec weight;
          weight.load_shared(shared + (is_k ? p.means_at / 2 : 0) + channel * 2);
          norm_rope::norm_rotate(t[i], weight, t_scale, cos, sin);
          if (kMean && !is_k) {
            t[i].store(p.q_out.data + norm_rope::row_offset(p.q_out, tile.batch, row) +
                       head * p.q_out.head_stride + at.vec * Vec::kBytes);
          }
#pragma unroll
          for (int n = 0; n < Vec::kPairs; ++n) {
            const float2 pair = t[i].pair(n);
            x[2 * n] = pair.x;
            x[2 * n + 1] = pair.y;
          }
          if (kMean && is_k) {
            Vec mean;
            mean.load_shared(shared + p.means_at + channel * 2);
#pragma unroll
            for (int n = 0; n < Vec::kPairs; ++n) {
              const float2 m = mean.pair(n);
              x[2 * n] = __fsub_rn(x[2 * n], m.x);
              x[2 * n + 1] = __fsub_rn(x[2 * n + 1], m.y);
            }
          }
        }
        if (p.perm != nullptr) {
          permute(x, shared + p.perm_at + channel, shared + p.exchange_at);
        }
        quantize_vector<kScale, kCross>(x, p, at, i, is_k, codes,
                                        reinterpret_cast<uint8_t*>(shared) + stage_at +
                                            (is_k ? p.stage_bytes : 0) + head * p.columns);
      }
    };
    finish(q, false, scale.x, p.q_to, row);
    if (has_next) load(q, p, at, p.q, token);
    if (tile.slot >= 0) finish(k, true, scale.y, p.k_to, cache_row);
    if (has_next) load(k, p, at, p.k, token);
  }
  __syncthreads();

  const int64_t head_bytes = p.columns / 4 * kFp4TileBytes;
  const int32_t first_token = tile.frame * p.frame_tokens + tile.first_row();
  const char* const stage = shared + p.stage_at;
  store_scales(p, stage, part, [&](int head, int tile_row) -> uint8_t* {
    if (tile_row >= tile.rows) return nullptr;
    const int32_t q_row = first_token + tile_row;
    const int64_t q_tile =
        (tile.batch * p.heads + head) * p.q_to.tiles + q_row / static_cast<int>(kFp4TileRows);
    return p.q_to.scales + q_tile * head_bytes + fp4_scale_offset(q_row % kFp4TileRows);
  });
  if (tile.slot < 0) return;
  store_scales(p, stage + p.stage_bytes, part, [&](int head, int tile_row) -> uint8_t* {
    if (tile_row >= tile.rows) return nullptr;
    return p.k_to.scales + tile.cache_tile(p, head) * head_bytes + fp4_scale_offset(tile_row);
  });
}

}  // namespace vidk::fp4_kv

using namespace vidk;
VIDK_KERNEL(vidk_fp4_kv_means_x1, Fp4KvParams, (kFp4KvMeansThreads, 1), fp4_kv::tile_means<1>)
VIDK_KERNEL(vidk_fp4_kv_means_x2, Fp4KvParams, (kFp4KvMeansThreads, 1), fp4_kv::tile_means<2>)
VIDK_KERNEL(vidk_fp4_kv_write_plain_x1, Fp4KvParams, (kFp4KvMaxThreads, 1),
            fp4_kv::write_tokens<Fp4Scale::kPlain, false, 1>)
VIDK_KERNEL(vidk_fp4_kv_write_plain_x2, Fp4KvParams, (kFp4KvMaxThreads, 1),
            fp4_kv::write_tokens<Fp4Scale::kPlain, false, 2>)
VIDK_KERNEL(vidk_fp4_kv_write_46_x1, Fp4KvParams, (kFp4KvMaxThreads, 1),
            fp4_kv::write_tokens<Fp4Scale::kFourOverSix, false, 1>)
VIDK_KERNEL(vidk_fp4_kv_write_46_x2, Fp4KvParams, (kFp4KvMaxThreads, 1),
            fp4_kv::write_tokens<Fp4Scale::kFourOverSix, false, 2>)
VIDK_KERNEL(vidk_fp4_kv_write_cross_x1, Fp4KvParams, (kFp4KvMaxThreads, 1),
            fp4_kv::write_tokens<Fp4Scale::kFourOverSix, true, 1>)
VIDK_KERNEL(vidk_fp4_kv_write_cross_x2, Fp4KvParams, (kFp4KvMaxThreads, 1),
            fp4_kv::write_tokens<Fp4Scale::kFourOverSix, true, 2>)
VIDK_KERNEL(vidk_fp4_kv_write_mxfp8_x1, Fp4KvParams, (kFp4KvMaxThreads, 1),
            fp4_kv::write_tokens<Fp4Scale::kMxfp8, false, 1>)
VIDK_KERNEL(vidk_fp4_kv_write_mxfp8_x2, Fp4KvParams, (kFp4KvMaxThreads, 1),
            fp4_kv::write_tokens<Fp4Scale::kMxfp8, false, 2>)
