#include "fp4_kv/fp4_kv_plan.h"

#include <algorithm>
#include <string>

#include "common/access.h"
#include "common/ceil_div.h"
#include "common/error.h"
#include "fp4_kv/fp4_kv_kernel.h"

namespace vidk {
namespace {

constexpr int64_t kMaxHeads = 40;

void check_kernel_takes(const Fp4KvArgs& args) {
  const char* op = "qk_norm_rope_nvfp4_kv_write";
  if (args.element != Element::kBFloat16) {
    fail(op, "q",
         std::string("dtype ") + (args.element == Element::kFloat16 ? "float16" : "float32"),
         "dtype bfloat16 on CUDA");
  }
  if (args.q.dim != 2 * kFp4KvDim) {
    fail(op, "q", "D = " + std::to_string(args.q.dim / 2), "D = 128 on CUDA");
  }
  if (args.q.heads > kMaxHeads) {
    fail(op, "q", std::to_string(args.q.heads) + " heads", "at most 40 heads on CUDA");
  }
  const auto aligned = [&](const char* arg, const ByteView& x, int64_t bytes) {
    if (access_bytes({x}) < bytes) {
      fail(op, arg, "rows that are not aligned",
           "rows aligned to " + std::to_string(bytes) + " bytes", "call .contiguous()");
    }
  };
  aligned("q", args.q, 16);
  aligned("k", args.k, 16);
  aligned("v", args.v, 16);
  aligned("v_cache", args.v_cache, args.v_is_fp8 ? 8 : 16);
  const auto flat = [&](const char* arg, const void* data) {
    ByteView x = args.q;
    x.data = static_cast<char*>(const_cast<void*>(data));
    x.batch = x.tokens = x.heads = 1;
    aligned(arg, x, 16);
  };
  flat("q_weight", args.q_weight);
  flat("k_weight", args.k_weight);
  flat("k_codes", args.k_rows.codes);
  flat("k_scales", args.k_rows.scales);
  flat("k_mean", args.k_mean);
}

// The threads that hold a token: as few vectors each as 320 of them can.
struct GroupShape {
  int64_t vecs, pass_heads, threads;

  int64_t most_groups() const {
    return (vecs == 1 ? kFp4KvMaxThreads : kFp4KvWideThreads) / threads;
  }

  explicit GroupShape(int64_t heads)
      : vecs(heads <= 16 ? 1 : 2),
        pass_heads(ceil_div(heads, vecs)),
        threads(ceil_div(pass_heads * kFp4KvHeadVecs, 32) * 32) {}
};

Fp4KvTarget target_of(const Fp4KvArgs& args, const Fp4Rows& rows, int64_t pass_heads) {
  const int64_t plane = rows.slots * rows.rows * args.recipe.row_bytes(kFp4KvDim);
  return {rows.codes, rows.scales, plane, pass_heads * plane, rows.slots * fp4_tiles(rows.rows)};
}

Fp4KvParams params_of(const Fp4KvArgs& args, const GroupShape& shape) {
  const auto pass_rows = [&](const ByteView& x) {
    return PassRows{rows_of(x), shape.pass_heads * x.head_stride};
  };
  Fp4KvParams p{};
  p.q = pass_rows(args.q);
  p.k = pass_rows(args.k);
  p.v = pass_rows(args.v);
  p.q_weight = static_cast<const char*>(args.q_weight);
  p.k_weight = static_cast<const char*>(args.k_weight);
  p.grid = args.grid;
  p.batch = args.q.batch;
  p.tokens = args.q.tokens;
  p.heads = args.q.heads;
  p.head_vecs = kFp4KvHeadVecs;
  p.channels = static_cast<float>(args.q.heads * kFp4KvDim);
  p.eps = args.eps;
  p.pass_heads = static_cast<int32_t>(shape.pass_heads);
  p.q_out = pass_rows(args.q_out);
  p.v_out = pass_rows(args.v_cache);
  p.q_to = target_of(args, args.q_rows, shape.pass_heads);
  p.k_to = target_of(args, args.k_rows, shape.pass_heads);
  p.k_mean = reinterpret_cast<char*>(args.k_mean);
  p.frame_slot = args.frame_slot;
  p.perm = args.perm;
  p.slots = args.k_rows.slots;
  p.frames = static_cast<int32_t>(args.q.tokens / args.k_rows.rows);
  p.frame_tokens = static_cast<int32_t>(args.k_rows.rows);
  p.frame_tiles = static_cast<int32_t>(fp4_tiles(args.k_rows.rows));
  p.row_bytes = static_cast<int32_t>(args.recipe.row_bytes(kFp4KvDim));
  p.columns = static_cast<int32_t>(args.recipe.row_scales(kFp4KvDim));
  p.cross = args.recipe.cross;
  p.v_is_fp8 = args.v_is_fp8;
  p.group_threads = static_cast<int32_t>(shape.threads);
  return p;
}

// Parts of a thread block's shared memory, one behind the other.
class SharedMemory {
 public:
  int32_t add(int64_t bytes) {
    bytes_ += bytes;
    return static_cast<int32_t>(bytes_ - bytes);
  }
  int64_t bytes() const { return bytes_; }

 private:
  int64_t bytes_ = 0;
};

constexpr int64_t kFloat = sizeof(float);
constexpr int64_t kAngleBytes = 2 * kFp4KvPairs * kFloat;  // of one token

int64_t exchange_bytes(const Fp4KvParams& p) {
  return p.perm == nullptr ? 0 : p.groups * p.group_threads * 8 * kFloat;
}

LaunchPlan plan_of(const std::string& kernel, const GroupShape& shape, int64_t blocks,
                   const SharedMemory& shared, const Fp4KvParams& p) {
  LaunchPlan plan;
  plan.kernel = "vidk_fp4_kv_" + kernel + "_x" + std::to_string(shape.vecs);
  plan.grid[0] = static_cast<uint32_t>(blocks);
  plan.block[0] = static_cast<uint32_t>(p.groups * p.group_threads);
  plan.shared_bytes = static_cast<uint32_t>(shared.bytes());
  plan.args.add(p);
  return plan;
}

std::string quantizer(const Fp4Recipe& recipe) {
  switch (recipe.scale) {
    case Fp4Scale::kPlain:
      return "plain";
    case Fp4Scale::kMxfp8:
      return "mxfp8";
    case Fp4Scale::kFourOverSix:
      break;
  }
  return recipe.cross > 0 ? "cross" : "46";
}

LaunchPlan plan_means(Fp4KvParams& p, const Fp4Recipe& recipe, const GroupShape& shape,
                      int64_t tiles) {
  constexpr int64_t kFours = kFp4Samples / 4;
  const int64_t channels = p.heads * kFp4KvDim;
  // Where each group has four of the rows and no more, their keys can be finished too.
  p.samples_are_done = shape.vecs == 1 && kFours * shape.threads <= kFp4KvMeansThreads;
  p.groups =
      static_cast<int32_t>(p.samples_are_done ? kFours : std::min(kFours, shape.most_groups()));
  SharedMemory shared;
  shared.add(kFours * (channels + 32) * kFloat);
  p.weights_at = shared.add(2 * channels);
  p.angles_at = shared.add(4 * p.groups * kAngleBytes);
  if (p.samples_are_done) {
    p.means_at = shared.add(2 * channels);
    p.exchange_at = shared.add(exchange_bytes(p));
    p.stage_at = shared.add(kFp4Samples * p.stage_row_bytes);
  }
  return plan_of(p.samples_are_done ? "samples_" + quantizer(recipe) : "means", shape, tiles,
                 shared, p);
}

LaunchPlan plan_write(Fp4KvParams& p, const Fp4Recipe& recipe, const GroupShape& shape,
                      int64_t tiles) {
  const int64_t channels = p.heads * kFp4KvDim;
  p.groups = static_cast<int32_t>(std::min<int64_t>(8, shape.most_groups()));
  // Weights and means are read once for all tokens of a thread block, which has more of them where
  // keys are read twice.
  p.part_rows = recipe.mean && !p.samples_are_done ? 12 : 8;
  p.parts = static_cast<int32_t>(ceil_div(kFp4KvQuarterRows, p.part_rows));
  SharedMemory shared;
  shared.add(2 * channels);
  p.weights_at = shared.add(2 * channels);
  p.means_at = shared.add(recipe.mean ? 2 * channels : 0);
  p.perm_at = shared.add(p.perm != nullptr ? channels : 0);
  p.angles_at = shared.add(2 * p.groups * kAngleBytes);
  p.exchange_at = shared.add(exchange_bytes(p));
  p.stage_bytes = p.stage_row_bytes * p.part_rows * kFp4KvQuarters;
  p.stage_at = shared.add(2 * p.stage_bytes);
  return plan_of("write_" + quantizer(recipe), shape, tiles * p.parts, shared, p);
}

}  // namespace

Fp4KvPlans plan_qk_norm_rope_nvfp4_kv_write(const Fp4KvArgs& args) {
  if (args.q.empty()) return {};
  check_kernel_takes(args);
  const GroupShape shape(args.q.heads);
  Fp4KvParams p = params_of(args, shape);
  // An odd number of words a row: neighbouring rows lie in different banks.
  p.stage_row_bytes = static_cast<int32_t>((p.heads * p.columns / 4 | 1) * 4);
  const int64_t tiles = p.batch * p.frames * p.frame_tiles;
  Fp4KvPlans plans;
  if (args.recipe.mean) plans.means = plan_means(p, args.recipe, shape, tiles);
  plans.write = plan_write(p, args.recipe, shape, tiles);
  return plans;
}

}  // namespace vidk
