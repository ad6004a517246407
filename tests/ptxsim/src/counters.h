// What a launch did, counted: the same on every machine.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "program.h"

namespace ptxsim {

struct Counters {
  uint64_t warp_instructions = 0;
  uint64_t thread_instructions = 0;
  uint64_t warp_class[static_cast<int>(Class::kCount)] = {};

  // Global memory through loads, stores, atomics and cp.async. `sectors` are distinct 32-byte
  // blocks per warp-wide access, `bytes` the distinct bytes that its lanes asked for.
  struct Global {
    uint64_t requests = 0, bytes = 0, sectors = 0;
  } load, store;
  // Through bulk and tensor copies.
  uint64_t bulk_read_bytes = 0, bulk_written_bytes = 0;

  // Shared memory. `wavefronts` is what the access takes, `ideal` what it would without conflicts.
  struct Shared {
    uint64_t requests = 0, bytes = 0, wavefronts = 0, ideal = 0;
  } shared_load, shared_store, matrix_load, matrix_store;

  uint64_t local_bytes = 0;
  uint64_t barriers = 0;      // bar.sync completed, per block
  uint64_t matrix_flops = 0;  // of mma and wgmma, 2 per multiply-add
  uint64_t special = 0;       // thread-level ex2, rcp, sqrt, sin ...
  uint64_t divergent = 0;     // warp instructions not executed by all live lanes at once
};

// Counts one warp-wide access: `at[lane]` are byte addresses, `bytes` per lane.
void count_global(Counters::Global& c, Mask active, const uint64_t* at, uint32_t bytes);
void count_shared(Counters::Shared& c, Mask active, const uint32_t* at, uint32_t bytes);
// ldmatrix and stmatrix: `matrices` times eight rows of 16 bytes.
void count_matrix(Counters::Shared& c, int matrices, const uint32_t* row_at);

}  // namespace ptxsim
