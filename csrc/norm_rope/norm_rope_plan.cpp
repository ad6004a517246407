#include "norm_rope/norm_rope_plan.h"

#include <algorithm>
#include <string>

#include "common/access.h"
#include "common/ceil_div.h"

namespace vidk {
namespace {

// A weight as the one run of bytes it is.
ByteView run_of(const void* data, int64_t bytes) {
  if (data == nullptr) return {};
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
  } shapes[] = {{1, 256}, {2, 256}, {4, 384}};
  for (const auto& [vecs, most_threads] : shapes) {
    const int64_t pass_heads = ceil_div(heads, vecs);
    if (head_vecs <= most_threads && pass_heads <= most_threads / head_vecs) {
      return {vecs, pass_heads, ceil_div(head_vecs * pass_heads, 32) * 32};
    }
  }
  return {0, 0, 0};
}

}  // namespace

TokenLaunch plan_tokens(const char* prefix, const TokenInputs& in,
                        std::initializer_list<ByteView> outputs, bool counts_fit,
                        const DeviceInfo& device) {
  const ByteView& x = in.q.data != nullptr ? in.q : in.k.data != nullptr ? in.k : in.v;
  const int64_t row_bytes = x.heads * x.dim;
  const int64_t pair_bytes = in.element == Element::kFloat32 ? 8 : 4;
  const int64_t access = std::min(access_bytes({in.q, in.k, in.v, run_of(in.q_weight, row_bytes),
                                                run_of(in.k_weight, row_bytes)}),
                                  access_bytes(outputs));
  const int64_t vec_bytes = std::max(access, pair_bytes);
  const RegisterShape shape = register_shape(x.heads, x.dim / vec_bytes);

  TokenLaunch launch{};
  launch.pass_heads = shape.pass_heads;
  NormRopeTokens& p = launch.tokens;
  p.q = launch.pass_rows(in.q);
  p.k = launch.pass_rows(in.k);
  p.v = launch.pass_rows(in.v);
  p.q_weight = static_cast<const char*>(in.q_weight);
  p.k_weight = static_cast<const char*>(in.k_weight);
  p.grid = in.grid;
  p.batch = x.batch;
  p.tokens = x.tokens;
  p.heads = x.heads;
  p.head_vecs = x.dim / vec_bytes;
  p.channels = static_cast<float>(row_bytes / (pair_bytes / 2));
  p.eps = in.eps;

  LaunchPlan& plan = launch.plan;
  const std::string family = std::string(prefix) + element_name(in.element) + "_";
  const int64_t items = x.batch * x.tokens;
  if (access == 16 && shape.vecs > 0 && counts_fit && items <= INT32_MAX) {
    // One wave of blocks that stay: enough of them for some 576 threads a multiprocessor, whose
    // loads then cover the memory's latency. Only blocks of many tokens are worth splitting.
    const int64_t resident = std::max<int64_t>(1, 576 / shape.threads);
    p.block_tokens = std::clamp<int64_t>(ceil_div(items, device.sm_count * resident), 1, 32);
    p.pass_heads = static_cast<int32_t>(shape.pass_heads);
    const int64_t pairs = x.dim / pair_bytes;
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
  return launch;
}

LaunchPlan plan_qk_norm_rope_kv_write(const NormRopePlanArgs& args, const DeviceInfo& device) {
  if (args.in.q.empty()) return {};
  const bool counts_fit =
      args.k_cache.tokens <= INT32_MAX && args.in.grid.height <= INT32_MAX / args.in.grid.width;
  TokenLaunch launch = plan_tokens("vidk_norm_rope_", args.in,
                                   {args.q_out, args.k_cache, args.v_cache}, counts_fit, device);
  NormRopeParams p{};
  static_cast<NormRopeTokens&>(p) = launch.tokens;
  p.q_out = launch.pass_rows(args.q_out);
  p.k_out = launch.pass_rows(args.k_cache);
  p.v_out = launch.pass_rows(args.v_cache);
  p.frame_slot = args.frame_slot;
  p.cache_rows = args.k_cache.tokens;
  launch.plan.args.add(p);
  return launch.plan;
}

}  // namespace vidk
