// What attention and cross_attention demand of their arguments on every device; the lengths
// themselves, where they are host data, come on top.
#pragma once

#include <string>

#include "common/check.h"

namespace vidk {

inline void check_length_vector(const char* op, const char* arg, const Tensor& x, const Tensor& q,
                                int64_t size, const char* expected) {
  check_int_vector(op, arg, x, "q", q);
  if (x.size(0) != size) fail(op, arg, std::to_string(x.size(0)) + " elements", expected);
}

inline void check_attention(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache,
                            const Tensor& kv_len) {
  const char* op = "attention";
  check_activation(op, "q", q);
  check_cache(op, "k_cache", k_cache, "q", q);
  check_like(op, "v_cache", v_cache, "k_cache", k_cache);
  check_length_vector(op, "kv_len", kv_len, q, 1, "1 element");
}

inline void check_cross_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                  const Tensor& context_lens, const std::string& pad) {
  const char* op = "cross_attention";
  check_activation(op, "q", q);
  check_cache(op, "k", k, "q", q);
  check_like(op, "v", v, "k", k);
  check_length_vector(op, "context_lens", context_lens, q, q.size(0),
                      "one length for each batch row");
  if (pad != "trained" && pad != "mask") fail(op, "pad", "'" + pad + "'", "'trained' or 'mask'");
}

}  // namespace vidk
