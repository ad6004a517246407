// What the kinds of asynchronous copies have in common.
#pragma once

#include <vector>

#include "async.h"

namespace ptxsim {

struct Piece {
  const uint8_t* from;  // null: zeros
  uint8_t* to;
  uint32_t bytes;
};
using Pieces = std::vector<Piece>;
void move(const Pieces& pieces);

// Checks and notes a read of global memory, and faults if nobody ever wrote there.
const uint8_t* copy_source(Warp& w, uint64_t at, uint32_t bytes, uint32_t align);
// A bulk copy that reads `bytes` of shared memory joins the lane's open group.
void begin_store(Warp& w, int lane, uint32_t at, uint32_t bytes, Pieces pieces);
// A bulk copy into `bytes` of shared memory that completes `bytes` on the mbarrier.
void begin_load(Warp& w, uint32_t at, uint32_t bytes, uint32_t mbarrier, Pieces pieces);

// The rest of cp.async.bulk and of cp.async.bulk.tensor.
void decode_bulk_copy(Decoder& d);
void decode_tensor_copy(Decoder& d);

}  // namespace ptxsim
