#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>

namespace vidk {

// Runs `f(begin, end)` over [0, n) on torch's own thread pool, so that vidk and ATen never compete
// for cores. `item_bytes` is what one item reads and writes: a thread gets at least 128 KiB of it,
// below which waking the pool costs more than it gains.
//
// `f` must not throw: an exception would cross the C boundary and lose its text.
template <class F>
void parallel_for(int64_t n, int64_t item_bytes, const F& f) {
  if (n <= 0) return;
  const int64_t grain = std::max<int64_t>(1, (128 << 10) / std::max<int64_t>(1, item_bytes));
  if (n <= grain) return f(int64_t{0}, n);
  torch::stable::parallel_for(0, n, grain, f);
}

}  // namespace vidk
