#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

namespace vidk {

// Switches gradient recording off. Needed by kernels that call ATen ops: those would otherwise
// record a graph behind the back of an operator that has no backward.
class NoGrad {
 public:
  NoGrad() { aoti_torch_grad_mode_set_enabled(false); }
  ~NoGrad() { aoti_torch_grad_mode_set_enabled(before_); }
  NoGrad(const NoGrad&) = delete;
  NoGrad& operator=(const NoGrad&) = delete;

 private:
  const bool before_ = aoti_torch_grad_mode_is_enabled();
};

}  // namespace vidk
