// The torch-free side of nvfp4_quantize: a range of tokens, one function per instruction set.
#pragma once

#include <cstdint>

#include "common/element.h"
#include "common/isa.h"
#include "common/tensor_view.h"
#include "nvfp4/nvfp4_recipe.h"

namespace vidk {

struct Nvfp4Args {
  Element element;
  Nvfp4Recipe recipe;
  ByteView x;
  uint8_t* packed;  // dense
  uint8_t* scales;  // dense
};

}  // namespace vidk

// Quantises tokens [begin, end) of the B * S ones.
VIDK_DECLARE_ISA(void nvfp4_tokens(const Nvfp4Args& args, int64_t begin, int64_t end);)
