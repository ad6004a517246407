// vidk::qk_norm_rope_pack and vidk::unpack_kv_write on the CPU.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "common/parallel.h"
#include "exchange/exchange_args.h"
#include "exchange/exchange_check.h"
#include "exchange/exchange_simd.h"
#include "kv_cache/kv_cache_copy.h"
#include "rope/rope_args.h"

namespace vidk {
namespace {

Tensor qk_norm_rope_pack(const std::optional<Tensor>& q, const std::optional<Tensor>& k,
                         const std::optional<Tensor>& v, const std::optional<Tensor>& q_weight,
                         const std::optional<Tensor>& k_weight, double eps, const Tensor& frame_pos,
                         const Tensor& time_freqs, const Tensor& space_freqs, int64_t height,
                         int64_t width, int64_t ranks, int64_t token_offset,
                         std::optional<int64_t> slice_tokens) {
  const Tensor& x =
      check_qk_norm_rope_pack(q, k, v, q_weight, k_weight, eps, frame_pos, time_freqs, space_freqs,
                              height, width, ranks, token_offset, slice_tokens)
          .x;
  check_positions("qk_norm_rope_pack", frame_pos.const_data_ptr<int32_t>(), frame_pos.size(0),
                  time_freqs.size(0));

  const int64_t given = q.has_value() + k.has_value() + v.has_value();
  Tensor out = torch::stable::new_empty(
      x, {ranks, given, x.size(0), x.size(1), x.size(2) / ranks, x.size(3)});
  const ByteView q_view = view_of_given(q), k_view = view_of_given(k), v_view = view_of_given(v);
  const PackArgs args{
      element_of(x),
      q_view,
      k_view,
      v_view,
      data_of_given(q_weight),
      data_of_given(k_weight),
      static_cast<float>(eps),
      rope_grid(frame_pos, time_freqs, space_freqs, height, width, token_offset,
                slice_tokens.value_or(height * width)),
      packed_chunks(q_view, k_view, v_view, ranks, static_cast<char*>(out.mutable_data_ptr())),
      x.size(1)};
  const ByteView first = byte_view(x);
  if (first.empty()) return out;
  parallel_for(first.batch * first.tokens, 2 * given * first.heads * first.dim,
               [&](int64_t begin, int64_t end) {
                 AngleBuffer angles(x.size(3));
                 VIDK_DISPATCH_ISA(pack_tokens, args, begin, end, angles.data());
               });
  return out;
}

void unpack_block(const ByteView& x, const ByteView& cache, const ShardLayout& layout,
                  const int32_t* frame_slot) {
  parallel_for(x.batch * x.tokens, 2 * x.heads * x.dim, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t shard = begin / x.tokens;
      const int64_t token = begin % x.tokens;
      const ShardLayout::Run run = layout.run_at(shard / layout.batch, token);
      const int64_t count = std::min({run.count, end - begin, x.tokens - token});
      if (run.token >= 0) {
        const int64_t slot = frame_slot[run.token / layout.frame_tokens];
        const int64_t row = slot * layout.frame_tokens + run.token % layout.frame_tokens;
        copy_tokens({x, shard, token}, {cache, shard % layout.batch, row}, count);
      }
      begin += count;
    }
  });
}

void unpack_kv_write(const Tensor& k, const Tensor& v, Tensor k_cache, Tensor v_cache,
                     const Tensor& frame_slot, int64_t frame_tokens, int64_t tokens,
                     std::optional<int64_t> slice_tokens) {
  check_unpack_kv_write(k, v, k_cache, v_cache, frame_slot, frame_tokens, tokens, slice_tokens);
  const int32_t* slots = frame_slot.const_data_ptr<int32_t>();
  check_slots("unpack_kv_write", slots, tokens, frame_tokens, k_cache.size(1));

  const ByteView k_view = received_view(k);
  if (k_view.empty()) return;
  const ShardLayout layout = shard_layout(k, frame_tokens, tokens, slice_tokens);
  unpack_block(k_view, byte_view(k_cache), layout, slots);
  unpack_block(received_view(v), byte_view(v_cache), layout, slots);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vidk, CPU, m) {
  m.impl("qk_norm_rope_pack", TORCH_BOX(&qk_norm_rope_pack));
  m.impl("unpack_kv_write", TORCH_BOX(&unpack_kv_write));
}

}  // namespace vidk
