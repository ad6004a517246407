// qk_norm_rope_nvfp4_kv_write: the means of a range of tiles, then a range of tokens; compiled once
// per instruction set.
#include "fp4_kv/fp4_kv_simd.h"

#include "fp4_kv/fp4_kv_rows.h"
#include "norm_rope/norm_rope_rows.h"

namespace vidk {
namespace VIDK_ISA {
namespace {

struct Scratch {
  float* angles;  // [D]
  char* row;      // [H * D] elements: q or k, normalised and rotated
  float* values;  // [H * D]
  float* sums;    // [16, H * D] in the first pass; TokenCodes in the second

  Scratch(float* buffer, int64_t heads, int64_t dim)
      : angles(buffer),
        row((char*)(buffer + dim)),
        values(buffer + dim + heads * dim),
        sums(values + heads * dim) {}
};

// Where a tile of keys lies: of the block, and in the cache.
struct KeyTile {
  int64_t batch, frame, tile;

  KeyTile(const Fp4KvArgs& args, int64_t item) {
    const int64_t tiles = fp4_tiles(args.k_rows.rows);
    const int64_t frames = args.k.tokens / args.k_rows.rows;
    tile = item % tiles;
    frame = item / tiles % frames;
    batch = item / tiles / frames;
  }
};

VIDK_INLINE uint16_t* mean_of(const Fp4KvArgs& args, int64_t batch, int64_t head, int64_t slot,
                              int64_t tile, int64_t dim) {
  const int64_t tiles = fp4_tiles(args.k_rows.rows);
  return args.k_mean +
         (((batch * args.k.heads + head) * args.k_rows.slots + slot) * tiles + tile) * dim;
}

// Normalises and rotates one token of q or k to dense heads.
template <class Format>
VIDK_INLINE void norm_rope_token(const ByteView& x, const void* weight, float eps, int64_t batch,
                                 int64_t token, const TokenAngles& angles, int64_t pairs,
                                 Heads to) {
  const Heads from = heads_of(x, batch, token);
  const float scale = norm_scale<Format>(from, x.heads, pairs, eps);
  for (int64_t h = 0; h < x.heads; ++h) {
    norm_rope_head<Format>(from.at(h), (const char*)weight + h * x.dim, scale, angles, pairs,
                           to.at(h));
    prefetch(from.at(h) + x.token_stride, x.dim);
  }
}

template <class Format>
VIDK_INLINE void to_floats(const char* from, int64_t pairs, float* to) {
  using T = typename Format::T;
  for_pairs<kLanes>(0, pairs, [&](auto lanes, int64_t p) {
    constexpr int N = lanes();
    Float32::store<N>(to + 2 * p, Format::template load<N>((const T*)from + 2 * p));
  });
}

template <class Format>
VIDK_INLINE void minus_mean(const char* from, const uint16_t* mean, int64_t pairs, float* to) {
  using T = typename Format::T;
  for_pairs<kLanes>(0, pairs, [&](auto lanes, int64_t p) {
    constexpr int N = lanes();
    const Pairs<N> x = Format::template load<N>((const T*)from + 2 * p);
    const Pairs<N> m = BFloat16::load<N>(mean + 2 * p);
    Float32::store<N>(to + 2 * p, {x.even - m.even, x.odd - m.odd});
  });
}

template <class Format>
VIDK_INLINE void to_e4m3(const char* from, int64_t pairs, uint8_t* to) {
  using T = typename Format::T;
  for_pairs<kLanes>(0, pairs, [&](auto lanes, int64_t p) {
    constexpr int N = lanes();
    const Pairs<N> x = Format::template load<N>((const T*)from + 2 * p);
    const auto pair = e4m3_codes<N>(x.even) | e4m3_codes<N>(x.odd) << 8;
    store(to + 2 * p, __builtin_convertvector(pair, typename Vec<N>::H));
  });
}

// Replaces each head's channels by those that `perm` names, in its order.
VIDK_INLINE void permute(const int32_t* perm, int64_t heads, int64_t dim, float* x, float* room) {
  for (int64_t h = 0; h < heads; ++h) {
    memcpy(room, x + h * dim, dim * sizeof(float));
    for (int64_t i = 0; i < dim; ++i) x[h * dim + i] = room[perm[h * dim + i]];
  }
}

template <class Format>
void mean_range(const Fp4KvArgs& args, int64_t begin, int64_t end, float* buffer) {
  const int64_t heads = args.k.heads, head_bytes = args.k.dim;
  const int64_t pairs = args.grid.time_pairs + 2 * args.grid.space_pairs, dim = 2 * pairs;
  const Scratch scratch(buffer, heads, dim);
  TokenAngles angles(args.grid, scratch.angles);
  for (int64_t i = begin; i < end; ++i) {
    const KeyTile at(args, i);
    const int64_t first = at.tile * kFp4TileRows;
    const int64_t left = args.k_rows.rows - first;
    const int64_t rows = left < kFp4TileRows ? left : kFp4TileRows;
    // Neighbours first, then sums of neighbours: as soon as two sums of equal length are there,
    // they become one. Four at most are waiting.
    float* sums[5];
    for (int n = 0; n < 5; ++n) sums[n] = scratch.values + n * heads * dim;
    for (int64_t sample = 0; sample < kFp4Samples; ++sample) {
      const int64_t token = at.frame * args.k_rows.rows + first + sample * rows / kFp4Samples;
      angles.seek(token);
      norm_rope_token<Format>(args.k, args.k_weight, args.eps, at.batch, token, angles, pairs,
                              {scratch.row, head_bytes});
      int level = 0;
      while (sample >> level & 1) ++level;
      to_floats<Format>(scratch.row, heads * pairs, sums[4]);
      for (int n = 0; n < level; ++n) {
        for (int64_t c = 0; c < heads * dim; ++c) sums[4][c] = sums[n][c] + sums[4][c];
      }
      if (level < 4) memcpy(sums[level], sums[4], heads * dim * sizeof(float));
    }
    for (int64_t h = 0; h < heads; ++h) {
      uint16_t* mean = mean_of(args, at.batch, h, args.frame_slot[at.frame], at.tile, dim);
      for_pairs<kLanes>(0, pairs, [&](auto lanes, int64_t p) {
        constexpr int N = lanes();
        const Pairs<N> sum = Float32::load<N>(sums[4] + h * dim + 2 * p);
        const float part = 1.0f / kFp4Samples;
        BFloat16::store<N>(mean + 2 * p,
                           {plain_nan<N>(sum.even * part), plain_nan<N>(sum.odd * part)});
      });
    }
  }
}

template <class Format>
void token_range(const Fp4KvArgs& args, int64_t begin, int64_t end, float* buffer) {
  const int64_t heads = args.k.heads, head_bytes = args.k.dim;
  const int64_t pairs = args.grid.time_pairs + 2 * args.grid.space_pairs, dim = 2 * pairs;
  const int64_t tokens = args.q.tokens;
  const Scratch scratch(buffer, heads, dim);
  const TokenCodes codes(scratch.sums, heads, dim);
  const Heads row{scratch.row, head_bytes};
  float* const values = scratch.values;
  TokenAngles angles(args.grid, scratch.angles);
  int64_t batch = begin / tokens;
  int64_t token = begin % tokens;
  angles.seek(token);
  const auto quantize = [&](bool is_k, const Fp4Rows& to, int64_t at) {
    if (args.perm) permute(args.perm, heads, dim, values, codes.low_values);
    quantize_token(args.recipe, values, heads, dim, codes, is_k, to, batch, at);
  };
  for (int64_t i = begin; i < end; ++i) {
    const Heads q = args.q_out.data ? heads_of(args.q_out, batch, token) : row;
    norm_rope_token<Format>(args.q, args.q_weight, args.eps, batch, token, angles, pairs, q);
    to_floats<Format>(q.data, heads * pairs, values);
    quantize(false, args.q_rows, token);

    norm_rope_token<Format>(args.k, args.k_weight, args.eps, batch, token, angles, pairs, row);
    const int64_t slot = args.frame_slot[angles.frame()];
    const int64_t in_frame = angles.token_in_frame();
    if (args.k_mean) {
      for (int64_t h = 0; h < heads; ++h) {
        minus_mean<Format>(row.at(h), mean_of(args, batch, h, slot, in_frame / kFp4TileRows, dim),
                           pairs, values + h * dim);
      }
    } else {
      to_floats<Format>(row.data, heads * pairs, values);
    }
    const int64_t cache_row = slot * args.k_rows.rows + in_frame;
    quantize(true, args.k_rows, cache_row);

    const Heads v = heads_of(args.v, batch, token);
    const Heads v_cache = heads_of(args.v_cache, batch, cache_row);
    for (int64_t h = 0; h < heads; ++h) {
      if (args.v_is_fp8) {
        to_e4m3<Format>(v.at(h), pairs, (uint8_t*)v_cache.at(h));
      } else {
        memcpy(v_cache.at(h), v.at(h), head_bytes);
      }
      prefetch(v.at(h) + args.v.token_stride, head_bytes);
    }
    if (++token < tokens) {
      angles.next();
    } else {
      ++batch;
      angles.seek(token = 0);
    }
  }
}

}  // namespace

void fp4_kv_means(const Fp4KvArgs& args, int64_t begin, int64_t end, float* scratch) {
  switch (args.element) {
    case Element::kFloat32:
      return mean_range<Float32>(args, begin, end, scratch);
    case Element::kBFloat16:
      return mean_range<BFloat16>(args, begin, end, scratch);
    case Element::kFloat16:
      return mean_range<Float16>(args, begin, end, scratch);
  }
}

void fp4_kv_tokens(const Fp4KvArgs& args, int64_t begin, int64_t end, float* scratch) {
  switch (args.element) {
    case Element::kFloat32:
      return token_range<Float32>(args, begin, end, scratch);
    case Element::kBFloat16:
      return token_range<BFloat16>(args, begin, end, scratch);
    case Element::kFloat16:
      return token_range<Float16>(args, begin, end, scratch);
  }
}

}  // namespace VIDK_ISA
}  // namespace vidk
