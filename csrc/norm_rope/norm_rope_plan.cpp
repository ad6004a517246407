#include "norm_rope/norm_rope_plan.h"

#include <algorithm>
#include <string>

#include "common/access.h"
#include "common/ceil_div.h"
#include "norm_rope/norm_rope_kernel.h"

namespace vidk {
namespace {

// A weight as the one run of bytes it is.
ByteView run_of(const void* data, int64_t bytes) {
  ByteView view;
  static_cast<TensorView<char>&>(view) = {
      static_cast<char*>(const_cast<void*>(data)), 1, 1, 1, bytes, 0, 0, 0};
  return view;
}

// How many 16-byte vectors of a row a thread holds in registers, and the threads that takes; none
// where the row does not fit.
struct RegisterShape {
  int64_t vecs;
  int64_t pass_heads;
  int64_t threads;
};

RegisterShape register_shape(int64_t heads, int64_t head_vecs) {
  const struct {
    int64_t vecs, most_threads;
  } shapes[] = {{1, 256}, {2, 256}, {4, 512}};
  for (const auto& [vecs, most_threads] : shapes) {
    const int64_t pass_heads = ceil_div(heads, vecs);
    if (head_vecs <= most_threads && pass_heads <= most_threads / head_vecs) {
      return {vecs, pass_heads, ceil_div(head_vecs * pass_heads, 32) * 32};
    }
  }
  return {0, 0, 0};
}

}  // namespace

LaunchPlan plan_qk_norm_rope_kv_write(const NormRopePlanArgs& args, const DeviceInfo& device) {
  LaunchPlan plan;
  const ByteView& q = args.q;
  if (q.empty()) return plan;
  const int64_t row_bytes = q.heads * q.dim;
  const int64_t pair_bytes = args.element == Element::kFloat32 ? 8 : 4;
  const int64_t access =
      access_bytes({q, args.k, args.v, args.q_out, args.k_cache, args.v_cache,
                    run_of(args.q_weight, row_bytes), run_of(args.k_weight, row_bytes)});
  const int64_t vec_bytes = std::max(access, pair_bytes);

  const RegisterShape shape = register_shape(q.heads, q.dim / vec_bytes);
  const auto pass_rows = [&](const ByteView& x) {
    return PassRows{rows_of(x), shape.pass_heads * x.head_stride};
  };
  NormRopeParams p{};
  p.q = pass_rows(q);
  p.k = pass_rows(args.k);
  p.v = pass_rows(args.v);
  p.q_out = pass_rows(args.q_out);
  p.k_cache = pass_rows(args.k_cache);
  p.v_cache = pass_rows(args.v_cache);
  p.q_weight = static_cast<const char*>(args.q_weight);
  p.k_weight = static_cast<const char*>(args.k_weight);
  p.frame_slot = args.frame_slot;
  p.grid = args.grid;
  p.batch = q.batch;
  p.tokens = q.tokens;
  p.cache_rows = args.k_cache.tokens;
  p.heads = q.heads;
  p.head_vecs = q.dim / vec_bytes;
  p.channels = static_cast<float>(row_bytes / (pair_bytes / 2));
  p.eps = args.eps;

  const std::string family = std::string("vidk_norm_rope_") + element_name(args.element) + "_";
  const int64_t items = q.batch * q.tokens;
  const bool is_small = items <= INT32_MAX && p.cache_rows <= INT32_MAX &&
                        args.grid.height <= INT32_MAX / args.grid.width;
  if (access == 16 && shape.vecs > 0 && is_small) {
    // One wave of blocks that stay: enough of them for some 576 threads a multiprocessor, whose
    // loads then cover the memory's latency. Only blocks of many tokens are worth splitting.
    const int64_t resident = std::max<int64_t>(1, 576 / shape.threads);
    p.block_tokens = std::clamp<int64_t>(ceil_div(items, device.sm_count * resident), 1, 32);
    p.pass_heads = static_cast<int32_t>(shape.pass_heads);
    const int64_t pairs = q.dim / pair_bytes;
    plan.kernel = family + "x" + std::to_string(shape.vecs);
    plan.grid[0] = static_cast<uint32_t>(ceil_div(items, p.block_tokens));
    plan.block[0] = static_cast<uint32_t>(shape.threads);
    plan.shared_bytes = static_cast<uint32_t>(2 * shape.vecs * shape.threads * 16 +
                                              4 * pairs * int64_t{sizeof(float)});
  } else {
    p.block_tokens = 1;
    plan.kernel = family + std::to_string(access) + "B";
    plan.grid[0] = static_cast<uint32_t>(std::min<int64_t>(items, INT32_MAX));
    plan.block[0] = static_cast<uint32_t>(
        std::clamp<int64_t>(ceil_div(row_bytes / vec_bytes, 32) * 32, 32, 512));
  }
  plan.args.add(p);
  return plan;
}

}  // namespace vidk
