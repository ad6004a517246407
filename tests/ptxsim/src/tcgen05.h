// What the tcgen05 instructions have in common.
#pragma once

#include "matrix.h"
#include "tensor_memory.h"

namespace ptxsim {

// An address of tensor memory: the row in the upper half, the column in the lower.
struct TensorAddress {
  uint32_t row, column;
  explicit TensorAddress(uint64_t bits)
      : row(static_cast<uint32_t>(bits) >> 16), column(static_cast<uint32_t>(bits) & 0xffff) {}
};

// The only lane that executes; faults if there are several, as each would start the operation.
int single_lane(Mask active, const char* what);
// Address operand `operand` of one lane, which must name row 0.
uint32_t first_column(const Warp& w, const Inst& inst, int operand, int lane, const char* what);
uint64_t scalar(const Warp& w, const Arg& arg, int lane, const char* what);
// Begins the reads of shared memory that belong to `op`.
void begin_reads(Warp& w, TensorOperation& op);
// `work`, with the place of the instruction added to what it throws.
std::function<void()> located(Warp& w, const Inst& inst, int lane, std::function<void()> work);

void decode_tensor_product(Decoder& d);
void decode_copy_to_tensor(Decoder& d);

}  // namespace ptxsim
