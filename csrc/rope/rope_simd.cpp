// rope_3d for a range of tokens; compiled once per instruction set.
#include "rope/rope_simd.h"

#include "rope/rope_angles.h"

namespace vidk {
namespace VIDK_ISA {
namespace {

template <class Format>
void rope_range(const RopeArgs& args, int64_t begin, int64_t end, float* buffer) {
  using T = typename Format::T;
  const ByteView x = args.x;
  const ByteView out = args.out;
  const int64_t pairs = args.grid.time_pairs + 2 * args.grid.space_pairs;
  TokenAngles angles(args.grid, buffer);
  int64_t batch = begin / x.tokens;
  int64_t token = begin % x.tokens;
  angles.seek(token);
  for (int64_t i = begin; i < end; ++i) {
    const char* from = x.data + batch * x.batch_stride + token * x.token_stride;
    char* to = out.data + batch * out.batch_stride + token * out.token_stride;
    for (int64_t h = 0; h < x.heads; ++h, from += x.head_stride, to += out.head_stride) {
      if (angles.is_padding()) {
        memcpy(to, from, x.dim);
        continue;
      }
      // The next token, which the hardware does not foresee in a view of fused q, k and v.
      prefetch(from + x.token_stride, x.dim);
      for_pairs<kLanes>(0, pairs, [&](auto lanes, int64_t p) {
        constexpr int N = lanes();
        const Pairs<N> t = Format::template load<N>((const T*)from + 2 * p);
        Format::template store<N>((T*)to + 2 * p, rotate<N>(t, angles.cos + p, angles.sin + p));
      });
    }
    if (++token < x.tokens) {
      angles.next();
    } else {
      ++batch;
      angles.seek(token = 0);
    }
  }
}

}  // namespace

void rope_tokens(const RopeArgs& args, int64_t begin, int64_t end, float* angles) {
  switch (args.element) {
    case Element::kFloat32:
      return rope_range<Float32>(args, begin, end, angles);
    case Element::kBFloat16:
      return rope_range<BFloat16>(args, begin, end, angles);
    case Element::kFloat16:
      return rope_range<Float16>(args, begin, end, angles);
  }
}

}  // namespace VIDK_ISA
}  // namespace vidk
