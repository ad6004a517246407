// vidk::attention and vidk::cross_attention on the CPU: ATen's flash kernel on views of the valid
// keys. The length of the prefix is host data here, so reading it costs nothing.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <tuple>
#include <vector>

#include "attention/attention_check.h"
#include "common/no_grad.h"

namespace vidk {
namespace {

using torch::stable::detail::from;
using torch::stable::detail::to;

struct Flash {
  Tensor out;  // [B, S, H, D], contiguous
  Tensor lse;  // [B, H, S], any strides
};

// All tensors are [B, S, H, D]; `bias` is added to the scaled logits.
Flash flash_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                      const std::optional<Tensor>& bias, std::optional<double> scale) {
  StableIValue stack[] = {
      from(torch::stable::transpose(q, 1, 2)),
      from(torch::stable::transpose(k, 1, 2)),
      from(torch::stable::transpose(v, 1, 2)),
      from(0.0),    // dropout_p
      from(false),  // is_causal
      from(bias),
      from(scale),
  };
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::_scaled_dot_product_flash_attention_for_cpu",
                                               "", stack, TORCH_ABI_VERSION));
  // ATen allocates [B, S, H, D] and returns it transposed, so this is no copy.
  Tensor out = torch::stable::contiguous(torch::stable::transpose(to<Tensor>(stack[0]), 1, 2));
  return {out, to<Tensor>(stack[1])};
}

Tensor filled(const Tensor& like, const std::vector<int64_t>& shape, double value,
              ScalarType dtype) {
  return torch::stable::full(shape, value, dtype, std::nullopt, like.device());
}

std::vector<int64_t> shape_vector(const Tensor& x) { return {x.sizes().begin(), x.sizes().end()}; }

std::tuple<Tensor, Tensor> attention(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache,
                                     const Tensor& kv_len, std::optional<double> scale) {
  const char* op = "attention";
  check_attention(q, k_cache, v_cache, kv_len);
  const int64_t length = *kv_len.const_data_ptr<int32_t>();
  check_length(op, "kv_len", length, k_cache.size(1), "k_cache");

  const NoGrad no_grad;
  if (length == 0 || q.numel() == 0) {
    // With D = 0 all logits are 0, hence the logarithm; it is -inf for no key.
    return {filled(q, shape_vector(q), 0.0, q.scalar_type()),
            filled(q, {q.size(0), q.size(2), q.size(1)}, std::log(static_cast<float>(length)),
                   ScalarType::Float)};
  }
  Tensor k = k_cache;
  Tensor v = v_cache;
  const Flash flash = flash_attention(q, torch::stable::narrow(k, 1, 0, length),
                                      torch::stable::narrow(v, 1, 0, length), std::nullopt, scale);
  return {flash.out, torch::stable::contiguous(flash.lse)};
}

// Batch rows [begin, end), which all have `length` real keys of `k.size(1)`.
Tensor cross_attention_rows(Tensor q, Tensor k, Tensor v, int64_t begin, int64_t end,
                            int64_t length, bool fold_pad, std::optional<double> scale) {
  const int64_t pad_keys = fold_pad ? k.size(1) - length : 0;
  const int64_t keys = length + (pad_keys > 0);
  if (end - begin != q.size(0)) {
    q = torch::stable::narrow(q, 0, begin, end - begin);
    k = torch::stable::narrow(k, 0, begin, end - begin);
    v = torch::stable::narrow(v, 0, begin, end - begin);
  }
  if (keys == 0) return filled(q, shape_vector(q), 0.0, q.scalar_type());
  if (keys != k.size(1)) {
    k = torch::stable::narrow(k, 1, 0, keys);
    v = torch::stable::narrow(v, 1, 0, keys);
  }
  std::optional<Tensor> bias;
  if (pad_keys > 1) {
    // Float32 for every dtype of q: log(n) would lose digits in bfloat16.
    Tensor row = filled(q, {1, keys}, 0.0, ScalarType::Float);
    row.mutable_data_ptr<float>()[length] = std::log(static_cast<float>(pad_keys));
    bias = row;
  }
  return flash_attention(q, k, v, bias, scale).out;
}

Tensor cross_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                       const Tensor& context_lens, const std::string& pad,
                       std::optional<double> scale) {
  const char* op = "cross_attention";
  check_cross_attention(q, k, v, context_lens, pad);
  const int64_t batch = q.size(0);
  const int32_t* lens = context_lens.const_data_ptr<int32_t>();
  for (int64_t b = 0; b < batch; ++b) check_length(op, "context_lens", lens[b], k.size(1), "k");

  const NoGrad no_grad;
  if (q.numel() == 0) return filled(q, shape_vector(q), 0.0, q.scalar_type());
  Tensor out = q;
  for (int64_t begin = 0, end; begin < batch; begin = end) {
    end = std::find_if(lens + begin, lens + batch, [&](int32_t n) { return n != lens[begin]; }) -
          lens;
    Tensor rows = cross_attention_rows(q, k, v, begin, end, lens[begin], pad == "trained", scale);
    if (begin == 0 && end == batch) return rows;
    if (begin == 0) out = torch::stable::new_empty(q, shape_vector(q));
    Tensor place = torch::stable::narrow(out, 0, begin, end - begin);
    torch::stable::copy_(place, rows);
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vidk, CPU, m) {
  m.impl("attention", TORCH_BOX(&attention));
  m.impl("cross_attention", TORCH_BOX(&cross_attention));
}

}  // namespace vidk
