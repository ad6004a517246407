// qk_norm_rope_pack for a range of tokens; compiled once per instruction set.
#include "exchange/exchange_simd.h"

#include "norm_rope/norm_rope_rows.h"

namespace vidk {
namespace VIDK_ISA {
namespace {

// Calls f(from, to, h) for each head of a token and its place in the send buffer.
template <class F>
VIDK_INLINE void for_heads(const ByteView& x, const ByteView& out, int64_t rank_stride,
                           int64_t batch, int64_t token, F f) {
  const Heads from = heads_of(x, batch, token);
  char* chunk = out.row(batch, token, 0);
  for (int64_t h = 0; h < x.heads; chunk += rank_stride) {
    for (int64_t i = 0; i < out.heads; ++i, ++h) f(from.at(h), chunk + i * out.head_stride, h);
  }
}

template <class Format>
VIDK_INLINE void pack_normed(const PackArgs& args, const ByteView& x, const void* weight,
                             const ByteView& out, int64_t batch, int64_t token,
                             const TokenAngles& angles) {
  if (x.data == nullptr) return;
  const int64_t pairs = args.grid.time_pairs + 2 * args.grid.space_pairs;
  const float scale = norm_scale<Format>(heads_of(x, batch, token), x.heads, pairs, args.eps);
  for_heads(x, out, args.out.rank_stride, batch, token, [&](char* from, char* to, int64_t h) {
    norm_rope_head<Format>(from, (const char*)weight + h * x.dim, scale, angles, pairs, to);
    prefetch(from + x.token_stride, x.dim);
  });
}

template <class Format>
void pack_range(const PackArgs& args, int64_t begin, int64_t end, float* buffer) {
  TokenAngles angles(args.grid, buffer);
  int64_t batch = begin / args.tokens;
  int64_t token = begin % args.tokens;
  angles.seek(token);
  for (int64_t i = begin; i < end; ++i) {
    if (angles.is_padding()) angles.clear();
    pack_normed<Format>(args, args.q, args.q_weight, args.out.q, batch, token, angles);
    pack_normed<Format>(args, args.k, args.k_weight, args.out.k, batch, token, angles);
    if (args.v.data != nullptr) {
      for_heads(args.v, args.out.v, args.out.rank_stride, batch, token,
                [&](char* from, char* to, int64_t) {
                  memcpy(to, from, args.v.dim);
                  prefetch(from + args.v.token_stride, args.v.dim);
                });
    }
    if (++token < args.tokens) {
      angles.next();
    } else {
      ++batch;
      angles.seek(token = 0);
    }
  }
}

}  // namespace

void pack_tokens(const PackArgs& args, int64_t begin, int64_t end, float* angles) {
  switch (args.element) {
    case Element::kFloat32:
      return pack_range<Float32>(args, begin, end, angles);
    case Element::kBFloat16:
      return pack_range<BFloat16>(args, begin, end, angles);
    case Element::kFloat16:
      return pack_range<Float16>(args, begin, end, angles);
  }
}

}  // namespace VIDK_ISA
}  // namespace vidk
