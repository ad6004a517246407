// The torch-free side of rope_3d: a range of tokens, one function per instruction set.
#pragma once

#include <cstdint>

#include "common/element.h"
#include "common/isa.h"
#include "common/tensor_view.h"
#include "rope/rope_grid.h"

namespace vidk {

struct RopeArgs {
  Element element;
  ByteView x;
  ByteView out;
  RopeGrid grid;
};

}  // namespace vidk

// Rotates tokens [begin, end) of the B * S ones. `angles` is room for D floats.
VIDK_DECLARE_ISA(void rope_tokens(const RopeArgs& args, int64_t begin, int64_t end, float* angles);)
