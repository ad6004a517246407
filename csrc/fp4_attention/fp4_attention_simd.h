// The torch-free side of fp4_attention: a range of row blocks, one function per instruction set.
#pragma once

#include <cstdint>

#include "common/element.h"
#include "common/isa.h"
#include "fp4_attention/fp4_attention_plan.h"

namespace vidk {

// Rows of q of one head that are handed out together: whole panels of every instruction set.
constexpr int64_t kFp4BlockRows = 48;

struct Fp4HostArgs {
  Fp4AttentionArgs op;
  Element element;  // of q and out; of v too, unless that is fp8
  int64_t length;   // valid keys, at least 1
};

}  // namespace vidk

// Computes blocks [begin, end) of the B * H * ceil(S / kFp4BlockRows) ones.
VIDK_DECLARE_ISA(void fp4_attention_blocks(const Fp4HostArgs& args, int64_t begin, int64_t end);)
