// vidk::fp4_attention on the CPU. The length of the prefix is host data here.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>
#include <tuple>

#include "common/ceil_div.h"
#include "common/parallel.h"
#include "fp4_attention/fp4_attention_args.h"
#include "fp4_attention/fp4_attention_simd.h"

namespace vidk {
namespace {

std::tuple<Tensor, Tensor> fp4_attention(const Tensor& q_codes, const Tensor& q_scales,
                                         const Tensor& k_codes, const Tensor& k_scales,
                                         const Tensor& v_cache, const Tensor& kv_len,
                                         int64_t frame_tokens, const std::optional<Tensor>& q,
                                         const std::optional<Tensor>& k_mean,
                                         std::optional<double> scale) {
  const char* op = "fp4_attention";
  check_fp4_attention(q_codes, q_scales, k_codes, k_scales, v_cache, kv_len, frame_tokens, q,
                      k_mean, scale);
  const int64_t length = *kv_len.const_data_ptr<int32_t>();
  check_length(op, "kv_len", length, k_codes.size(2), "k_codes");
  const Fp4Outputs out(q_codes, v_cache, q);
  if (length == 0) return out.without_keys();
  const Fp4HostArgs args{fp4_args(q_codes, q_scales, k_codes, k_scales, v_cache, kv_len,
                                  frame_tokens, q, k_mean, scale, out),
                         element_of(out.out), length};
  const int64_t blocks = args.op.batch * args.op.heads * ceil_div(args.op.tokens, kFp4BlockRows);
  // Keys are read once for up to a block's rows, which makes any block worth a thread.
  const int64_t block_bytes = length * (args.op.row_bytes + args.op.v.dim);
  parallel_for(blocks, block_bytes * kFp4BlockRows, [&](int64_t begin, int64_t end) {
    VIDK_DISPATCH_ISA(fp4_attention_blocks, args, begin, end);
  });
  return {out.out, out.lse};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vidk, CPU, m) { m.impl("fp4_attention", TORCH_BOX(&fp4_attention)); }

}  // namespace vidk
