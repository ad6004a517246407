// vidk::attention and vidk::cross_attention on CUDA.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <optional>
#include <tuple>

#include "attention/attention_check.h"
#include "attention/attention_plan.h"
#include "common/cuda.h"
#include "common/debug_cuda.h"
#include "common/launch_cuda.h"

namespace vidk {
namespace {

AttentionArgs args_of(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& lens,
                      const Tensor& out, std::optional<double> scale) {
  AttentionArgs args{};
  args.element = element_of(q);
  args.q = byte_view(q);
  args.k = byte_view(k);
  args.v = byte_view(v);
  args.out = out.mutable_data_ptr();
  args.lens = lens.const_data_ptr<int32_t>();
  // Without elements all logits are 0, whatever the scale; 1 / sqrt(0) would make them NaN.
  const double dim = static_cast<double>(std::max<int64_t>(q.size(3), 1));
  args.scale = static_cast<float>(scale.value_or(1 / std::sqrt(dim)));
  return args;
}

void run(const char* op, const AttentionArgs& args, int32_t device) {
  const AttentionChoice choice = attention_choice(op, std::getenv("VIDK_ATTENTION"));
  launch(op, plan_attention(op, args, choice, device_info(op, device)), device);
}

std::tuple<Tensor, Tensor> attention(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache,
                                     const Tensor& kv_len, std::optional<double> scale) {
  const char* op = "attention";
  check_attention(q, k_cache, v_cache, kv_len);
  const int32_t device = q.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  if (const auto length = values_to_check<int32_t>(kv_len)) {
    check_length(op, "kv_len", length->front(), k_cache.size(1), "k_cache");
  }
  Tensor out = torch::stable::new_empty(q, q.sizes());
  Tensor lse = torch::stable::new_empty(q, {q.size(0), q.size(2), q.size(1)}, ScalarType::Float);
  AttentionArgs args = args_of(q, k_cache, v_cache, kv_len, out, scale);
  args.lse = lse.mutable_data_ptr<float>();
  run(op, args, device);
  return {out, lse};
}

Tensor cross_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                       const Tensor& context_lens, const std::string& pad,
                       std::optional<double> scale) {
  const char* op = "cross_attention";
  check_cross_attention(q, k, v, context_lens, pad);
  const int32_t device = q.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  if (const auto lengths = values_to_check<int32_t>(context_lens)) {
    for (const int32_t length : *lengths) {
      check_length(op, "context_lens", length, k.size(1), "k");
    }
  }
  Tensor out = torch::stable::new_empty(q, q.sizes());
  AttentionArgs args = args_of(q, k, v, context_lens, out, scale);
  args.len_per_batch = true;
  args.fold = pad == "trained";
  run(op, args, device);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vidk, CUDA, m) {
  m.impl("attention", TORCH_BOX(&attention));
  m.impl("cross_attention", TORCH_BOX(&cross_attention));
}

}  // namespace vidk
