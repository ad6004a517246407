// From a thread's eight channels of a head to codes and scales in memory. Device code, torch-free.
#pragma once

#include <cstdint>

#include "fp4_kv/fp4_kv.cuh"
#include "nvfp4/mxfp8.cuh"

namespace vidk::fp4_kv {

// What a vector becomes: a lane's share of codes, and the scale of its block.
template <Fp4Scale kScale>
struct Quantized {
  static constexpr int kBlockLanes = 2;
  static constexpr int kLaneBytes = 4;
  uint32_t scale;
  uint32_t codes;

  __device__ Quantized(uint32_t scale, uint32_t codes) : scale(scale), codes(codes) {}
  __device__ explicit Quantized(const float (&x)[8]) {
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
      const uint32_t code = codes >> 4 * i & 7u;
      const float size = code < 2 ? 0.5f * static_cast<float>(code)
                                  : __uint_as_float((code >> 1) + 126u << 23 | (code & 1u) << 22);
      x[i] = __fsub_rn(x[i], __fmul_rn(codes >> 4 * i & 8u ? -size : size, s));
    }
  }
  __device__ Quantized of_lane(int lane) const {
    return {__shfl_sync(0xffffffffu, scale, lane), __shfl_sync(0xffffffffu, codes, lane)};
  }
};

template <>
struct Quantized<Fp4Scale::kMxfp8> {
  static constexpr int kBlockLanes = 4;
  static constexpr int kLaneBytes = 8;
  uint32_t scale;
  uint2 codes;

  __device__ explicit Quantized(const float (&x)[8]) {
    const nvfp4::Mxfp8 q = nvfp4::quantize_mxfp8(x);
    scale = q.scale;
    codes = make_uint2(q.codes[0], q.codes[1]);
  }
  __device__ void store(uint8_t* to) const { *reinterpret_cast<uint2*>(to) = codes; }
};

// The values of a vector, less a mean in shared memory if there is one.
__device__ inline void unpack(const Vec& t, const char* mean, float (&x)[8]) {
#pragma unroll
  for (int i = 0; i < Vec::kPairs; ++i) {
    const float2 pair = t.pair(i);
    x[2 * i] = pair.x;
    x[2 * i + 1] = pair.y;
  }
  if (mean == nullptr) return;
  Vec m;
  m.load_shared(mean);
#pragma unroll
  for (int i = 0; i < Vec::kPairs; ++i) {
    const float2 pair = m.pair(i);
    x[2 * i] = __fsub_rn(x[2 * i], pair.x);
    x[2 * i + 1] = __fsub_rn(x[2 * i + 1], pair.y);
  }
}

// A thread's eight channels in the order of quantisation, a byte each. Data on the device: none may
// lie outside the head.
__device__ inline uint2 order_of(const int32_t* perm) {
  uint32_t from[2] = {0, 0};
#pragma unroll
  for (int i = 7; i >= 0; --i) {
    from[i / 4] = from[i / 4] << 8 | min(max(__ldg(perm + i), 0), kFp4KvDim - 1);
  }
  return make_uint2(from[0], from[1]);
}

// Puts the channels of a warp's heads in that order, through shared memory.
__device__ inline void permute(float (&x)[8], uint2 from, char* exchange) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float* const warp = reinterpret_cast<float*>(exchange) + threadIdx.x / 32 * (32 * 8);
  float4* const mine = reinterpret_cast<float4*>(warp + lane * 8);
  __syncwarp();
  mine[0] = make_float4(x[0], x[1], x[2], x[3]);
  mine[1] = make_float4(x[4], x[5], x[6], x[7]);
  __syncwarp();
  const float* const head = warp + lane / kFp4KvHeadVecs * kFp4KvDim;
#pragma unroll
  for (int i = 0; i < 8; ++i) x[i] = head[(i < 4 ? from.x : from.y) >> 8 * (i % 4) & 0xffu];
}

// Where the codes of a row go, of a thread's first head.
__device__ inline uint8_t* codes_of(const Fp4KvTarget& to, const Fp4KvParams& p, const Place& at,
                                    int batch, int64_t row) {
  return to.codes + (batch * p.heads + at.first_head) * to.plane + row * p.row_bytes;
}

// Quantises one vector of a head; its codes are stored at once, its scale is staged for when those
// of all rows of the thread block are there. All lanes of the warp take part.
template <Fp4Scale kScale, bool kCross>
__device__ void quantize_vector(float (&x)[8], const Fp4KvParams& p, const Place& at, bool stores,
                                bool is_k, uint8_t* codes, char* stage) {
  using Q = Quantized<kScale>;
  const Q high(x);
  uint8_t* const scales = reinterpret_cast<uint8_t*>(stage) + at.vec / Q::kBlockLanes;
  const bool stores_scale = at.vec % Q::kBlockLanes == 0;
  if (stores) {
    high.store(codes + at.vec * Q::kLaneBytes);
    if (stores_scale) *scales = static_cast<uint8_t>(high.scale);
  }
  if constexpr (kCross) {
    const int cross_vecs = p.cross / 8;
    high.subtract_from(x);
    const Q low(x);
    // The leading lanes have both parts; as many more lanes store the second.
    const Q first = is_k ? low : high;
    const Q second = (is_k ? high : low).of_lane(static_cast<int>(threadIdx.x) % 32 - cross_vecs);
    const bool is_first = at.vec < cross_vecs;
    const Q part{is_first ? first.scale : second.scale, is_first ? first.codes : second.codes};
    if (stores && at.vec < 2 * cross_vecs) {
      part.store(codes + (kFp4KvHeadVecs + at.vec) * Q::kLaneBytes);
      if (stores_scale) scales[kFp4KvHeadVecs / Q::kBlockLanes] = static_cast<uint8_t>(part.scale);
    }
  }
}

// Where a row's scales of a head go in the cache, in the first of its column tiles.
__device__ inline uint8_t* cache_scales(const Fp4KvParams& p, const Tile& tile, int head,
                                        int tile_row) {
  const int64_t head_bytes = p.columns / 4 * kFp4TileBytes;
  return p.k_to.scales + tile.cache_tile(p, head) * head_bytes + fp4_scale_offset(tile_row);
}

// Writes the scales of staged rows; `place_of` gives the address of a row's in the first column
// tile of a head, or null.
template <class PlaceOf>
__device__ void store_scales(const Fp4KvParams& p, const char* stage, int rows,
                             PlaceOf&& place_of) {
  const int column_tiles = p.columns / 4;
  const int pieces = static_cast<int>(p.heads) * column_tiles;
  for (int i = threadIdx.x / 32; i < pieces; i += blockDim.x / 32) {
    const int head = i / column_tiles;
    for (int s = threadIdx.x % 32; s < rows; s += 32) {
      uint8_t* const to = place_of(head, s);
      if (to == nullptr) continue;
      const uint32_t four =
          *reinterpret_cast<const uint32_t*>(stage + s * p.stage_row_bytes + 4 * i);
      *reinterpret_cast<uint32_t*>(to + (i - head * column_tiles) * kFp4TileBytes) = four;
    }
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

}  // namespace vidk::fp4_kv
