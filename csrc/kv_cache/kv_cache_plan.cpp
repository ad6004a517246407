#include "kv_cache/kv_cache_plan.h"

#include <algorithm>
#include <string>

#include "common/access.h"
#include "common/error.h"

namespace vidk {
namespace {

constexpr uint32_t kThreads = 128;  // THREADS of kernels/kv_cache_write.py

}  // namespace

LaunchPlan plan_kv_cache_write(const KvCacheWriteArgs& args, const DeviceInfo&) {
  LaunchPlan plan;
  const ByteView& k = args.k;
  const ByteView& v = args.v;
  const ByteView& k_cache = args.k_cache;
  const ByteView& v_cache = args.v_cache;
  if (k.empty() || k_cache.tokens == 0) return plan;
  const int64_t access = access_bytes({k, v, k_cache, v_cache});
  const int64_t vectors = k.dim / access;
  // The kernel's indices have 32 bits; strides and addresses have 64.
  constexpr int64_t kLimit = INT32_MAX - kThreads;
  if (k.batch > kLimit / k.tokens || k.heads > kLimit / vectors ||
      args.frame_tokens > kLimit - std::min(k_cache.tokens, kLimit)) {
    fail("kv_cache_write", "k",
         std::to_string(k.batch) + " x " + std::to_string(k.tokens) + " tokens of " +
             std::to_string(k.heads) + " x " + std::to_string(vectors) + " vectors in frames of " +
             std::to_string(args.frame_tokens) + ", for a cache of " +
             std::to_string(k_cache.tokens) + " rows",
         "counts that fit in 31 bits");
  }
  const auto strides = [access](KernelArgs& out, const ByteView& x) {
    out.add(x.batch_stride / access);
    out.add(x.head_stride / access);
    out.add(x.token_stride / access);
  };
  plan.kernel = "vidk_kv_cache_write_" + std::to_string(access) + "B";
  plan.grid[0] = static_cast<uint32_t>(k.batch * k.tokens);
  plan.block[0] = kThreads;
  // TileLang's order: that of kernels/ptx/launch.json.
  KernelArgs& out = plan.args;
  out.add(args.frame_slot);
  for (const ByteView* x : {&k, &k_cache, &v, &v_cache}) out.add(x->data);
  out.add(static_cast<int32_t>(k.batch));
  out.add(static_cast<int32_t>(k_cache.tokens));
  out.add(static_cast<int32_t>(k.heads));
  out.add(static_cast<int32_t>(k.tokens));
  out.add(static_cast<int32_t>(args.frame_tokens));
  out.add(k.batch_stride / access);
  strides(out, k_cache);
  out.add(k.head_stride / access);
  out.add(k.token_stride / access);
  out.add(v.batch_stride / access);
  strides(out, v_cache);
  out.add(v.head_stride / access);
  out.add(v.token_stride / access);
  out.add(static_cast<int32_t>(vectors));
  return plan;
}

}  // namespace vidk
