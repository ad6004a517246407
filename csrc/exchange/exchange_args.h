// From tensors to what the exchange's torch-free kernels take.
#pragma once

#include <cstdint>
#include <optional>

#include "common/check.h"
#include "exchange/exchange_layout.h"

namespace vidk {

inline ByteView view_of_given(const std::optional<Tensor>& x) {
  return x ? byte_view(*x) : ByteView{};
}

inline const void* data_of_given(const std::optional<Tensor>& x) {
  return x ? x->const_data_ptr() : nullptr;
}

// [P, B, S_r, H / P, D] as [P * B, S_r, H / P, D].
inline ByteView received_view(const Tensor& x) {
  const int64_t bytes = static_cast<int64_t>(x.element_size());
  const int64_t dim = x.size(4) * bytes;
  ByteView view;
  static_cast<TensorView<char>&>(view) = {static_cast<char*>(const_cast<void*>(x.const_data_ptr())),
                                          x.size(0) * x.size(1),
                                          x.size(2),
                                          x.size(3),
                                          dim,
                                          x.size(2) * x.size(3) * dim,
                                          x.size(3) * dim,
                                          dim};
  return view;
}

inline ShardLayout shard_layout(const Tensor& k, int64_t frame_tokens, int64_t tokens,
                                std::optional<int64_t> slice_tokens) {
  return {k.size(1),
          k.size(2),
          slice_tokens.value_or(k.size(2)),
          slice_tokens ? frame_tokens : INT64_MAX,
          frame_tokens,
          tokens};
}

}  // namespace vidk
