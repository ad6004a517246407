// qk_norm_rope_kv_write for a range of tokens; compiled once per instruction set.
#include "norm_rope/norm_rope_simd.h"

#include "norm_rope/norm_rope_rows.h"

namespace vidk {
namespace VIDK_ISA {
namespace {

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
