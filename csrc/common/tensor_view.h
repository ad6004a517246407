// A [B, S, H, D] tensor as the kernels see it: a pointer, sizes and strides. No torch header, so
// that device code and SIMD files can take it too.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>

namespace vidk {

// Sizes and strides count elements; D is contiguous, so only B, S and H have strides.
template <class T>
struct TensorView {
  T* data;
  int64_t batch, tokens, heads, dim;
  int64_t batch_stride, token_stride, head_stride;

  T* row(int64_t b, int64_t s, int64_t h) const {
    return data + b * batch_stride + s * token_stride + h * head_stride;
  }
  bool empty() const { return batch == 0 || tokens == 0 || heads == 0 || dim == 0; }
  // All heads of one token lie in one run of `heads * dim` elements.
  bool heads_are_dense() const { return heads == 1 || head_stride == dim; }
};

// The same memory in bytes, whatever the element type.
struct ByteView : TensorView<char> {
  // Bytes from the first byte to one past the last, of the dimensions whose stride is below `cut`.
  int64_t span_below(int64_t cut) const {
    int64_t span = dim;
    if (batch > 1 && batch_stride < cut) span += (batch - 1) * batch_stride;
    if (tokens > 1 && token_stride < cut) span += (tokens - 1) * token_stride;
    if (heads > 1 && head_stride < cut) span += (heads - 1) * head_stride;
    return span;
  }
  // The greatest common divisor of the strides from `cut` on; 0 if there is none.
  int64_t gcd_from(int64_t cut) const {
    int64_t g = 0;
    if (batch > 1 && batch_stride >= cut) g = std::gcd(g, batch_stride);
    if (tokens > 1 && token_stride >= cut) g = std::gcd(g, token_stride);
    if (heads > 1 && head_stride >= cut) g = std::gcd(g, head_stride);
    return g;
  }
};

// Whether two tensors provably share no byte. Interleaved views of one buffer (k and v of a fused
// QKV output, layers of a stacked cache) are proved disjoint; what cannot be proved counts as
// shared.
//
// For a cut, all bytes of a view lie in [p, p + span) plus multiples of g, with `span` over the
// strides below the cut and g the gcd of the others. Views whose two spans do not meet modulo the
// common g are disjoint; with the cut above all strides this is the plain range test.
inline bool disjoint(const ByteView& a, const ByteView& b) {
  if (a.empty() || b.empty()) return true;
  const int64_t delta = static_cast<int64_t>(reinterpret_cast<uintptr_t>(b.data) -
                                             reinterpret_cast<uintptr_t>(a.data));
  const int64_t cuts[] = {a.batch_stride, a.token_stride, a.head_stride, b.batch_stride,
                          b.token_stride, b.head_stride,  INT64_MAX};
  for (int64_t cut : cuts) {
    const int64_t span_a = a.span_below(cut);
    const int64_t span_b = b.span_below(cut);
    const int64_t g = std::gcd(a.gcd_from(cut), b.gcd_from(cut));
    if (g == 0) {
      if (delta >= span_a || -delta >= span_b) return true;
      continue;
    }
    const int64_t d = (delta % g + g) % g;
    if (d >= span_a && d + span_b <= g) return true;
  }
  return false;
}

// Whether no two elements of a view share memory, as a tensor that is written to must not (an
// expanded one does). True when, from the innermost stride out, each steps over all inner ones.
inline bool elements_are_distinct(const ByteView& a) {
  if (a.empty()) return true;
  struct Axis {
    int64_t size, stride;
  } axes[] = {{a.batch, a.batch_stride}, {a.tokens, a.token_stride}, {a.heads, a.head_stride}};
  std::sort(axes, axes + 3, [](const Axis& x, const Axis& y) { return x.stride < y.stride; });
  int64_t span = a.dim;
  for (const Axis& axis : axes) {
    if (axis.size <= 1) continue;
    if (axis.stride < span) return false;
    span += (axis.size - 1) * axis.stride;
  }
  return true;
}

}  // namespace vidk
