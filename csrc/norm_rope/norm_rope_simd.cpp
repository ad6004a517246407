// qk_norm_rope_kv_write for a range of tokens; compiled once per instruction set.
#include "norm_rope/norm_rope_simd.h"

#include "rope/rope_angles.h"

namespace vidk {
namespace VIDK_ISA {
namespace {

// The heads of one token.
struct Heads {
  char* data;
  int64_t stride;

  VIDK_INLINE char* at(int64_t h) const { return data + h * stride; }
};

VIDK_INLINE Heads heads_of(const ByteView& x, int64_t batch, int64_t token) {
  return {x.data + batch * x.batch_stride + token * x.token_stride, x.head_stride};
}

// 1 / sqrt(mean(x^2) + eps) of one token. The order of the sum is fixed, whatever the register's
// width: pair p of a head goes to lane p % 16 of an accumulator for even and one for odd elements;
// pairs past a head's last full 16 have two accumulators of their own.
constexpr int kSumLanes = 16;

template <class Format>
VIDK_INLINE float norm_scale(Heads token, int64_t heads, int64_t pairs, float eps) {
  using T = typename Format::T;
  using F = typename Vec<kLanes>::F;
  constexpr int kParts = kSumLanes / kLanes;
  F even[kParts] = {}, odd[kParts] = {};
  float even_ends[kSumLanes] = {}, odd_ends[kSumLanes] = {};
  for (int64_t h = 0; h < heads; ++h) {
    const T* x = (const T*)token.at(h);
    int64_t full = 0;
    for (; full + kSumLanes <= pairs; full += kSumLanes) {
      for (int i = 0; i < kParts; ++i) {
        const auto t = Format::template load<kLanes>(x + 2 * (full + i * kLanes));
        even[i] += t.even * t.even;
        odd[i] += t.odd * t.odd;
      }
    }
    for_pairs<kLanes>(full, pairs, [&](auto lanes, int64_t p) {
      constexpr int N = lanes();
      using E = typename Vec<N>::F;
      const Pairs<N> t = Format::template load<N>(x + 2 * p);
      store(even_ends + p - full, load<E>(even_ends + p - full) + t.even * t.even);
      store(odd_ends + p - full, load<E>(odd_ends + p - full) + t.odd * t.odd);
    });
  }
  float sum[kSumLanes];
  for (int i = 0; i < kParts; ++i) {
    const int at = i * kLanes;
    store(sum + at, even[i] + odd[i] + (load<F>(even_ends + at) + load<F>(odd_ends + at)));
  }
  for (int n = kSumLanes / 2; n > 0; n /= 2) {
    for (int i = 0; i < n; ++i) sum[i] += sum[i + n];
  }
  const float mean = sum[0] / (float)(heads * pairs * 2);
  return 1.0f / __builtin_sqrtf(mean + eps);
}

template <class Format>
VIDK_INLINE void norm_rope_head(const char* from, const void* weight, float scale,
                                const TokenAngles& angles, int64_t pairs, char* to) {
  using T = typename Format::T;
  const float* cos = angles.cos;
  const float* sin = angles.sin;
  for_pairs<kLanes>(0, pairs, [&](auto lanes, int64_t p) {
    constexpr int N = lanes();
    const Pairs<N> w = Format::template load<N>((const T*)weight + 2 * p);
    Pairs<N> t = Format::template load<N>((const T*)from + 2 * p);
    t = Format::template round<N>({t.even * scale, t.odd * scale});
    t = Format::template round<N>({t.even * w.even, t.odd * w.odd});
    Format::template store<N>((T*)to + 2 * p, rotate<N>(t, cos + p, sin + p));
  });
}

template <class Format>
void norm_rope_range(const NormRopeArgs& args, int64_t begin, int64_t end, float* buffer) {
  const RopeGrid& grid = args.grid;
  const int64_t tokens = args.q.tokens;
  const int64_t heads = args.q.heads;
  const int64_t head_bytes = args.q.dim;
  const int64_t pairs = grid.time_pairs + 2 * grid.space_pairs;
  TokenAngles angles(grid, buffer);
  int64_t batch = begin / tokens;
  int64_t token = begin % tokens;
  angles.seek(token);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t row =
        args.frame_slot[angles.frame()] * (grid.height * grid.width) + angles.token_in_frame();
    const Heads q = heads_of(args.q, batch, token);
    const Heads k = heads_of(args.k, batch, token);
    const Heads v = heads_of(args.v, batch, token);
    const Heads q_out = heads_of(args.q_out, batch, token);
    const Heads k_cache = heads_of(args.k_cache, batch, row);
    const Heads v_cache = heads_of(args.v_cache, batch, row);
    const float q_scale = norm_scale<Format>(q, heads, pairs, args.eps);
    const float k_scale = norm_scale<Format>(k, heads, pairs, args.eps);
    // The second reading of q and k comes from the first-level cache and leaves the memory idle,
    // hence the prefetches of v and of the next token: they save a fifth of the time.
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t weight_at = h * head_bytes;
      norm_rope_head<Format>(q.at(h), (const char*)args.q_weight + weight_at, q_scale, angles,
                             pairs, q_out.at(h));
      prefetch(q.at(h) + args.q.token_stride, head_bytes);
      prefetch(v.at(h), head_bytes);
      norm_rope_head<Format>(k.at(h), (const char*)args.k_weight + weight_at, k_scale, angles,
                             pairs, k_cache.at(h));
      prefetch(k.at(h) + args.k.token_stride, head_bytes);
    }
    for (int64_t h = 0; h < heads; ++h) memcpy(v_cache.at(h), v.at(h), head_bytes);
    if (++token < tokens) {
      angles.next();
    } else {
      ++batch;
      angles.seek(token = 0);
    }
  }
}

}  // namespace

void norm_rope_tokens(const NormRopeArgs& args, int64_t begin, int64_t end, float* angles) {
  switch (args.element) {
    case Element::kFloat32:
      return norm_rope_range<Float32>(args, begin, end, angles);
    case Element::kBFloat16:
      return norm_rope_range<BFloat16>(args, begin, end, angles);
    case Element::kFloat16:
      return norm_rope_range<Float16>(args, begin, end, angles);
  }
}

}  // namespace VIDK_ISA
}  // namespace vidk
