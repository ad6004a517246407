// Bulk copies between global and shared memory, started by one thread. Device code, torch-free.
#pragma once

#include <cstdint>

#include "common/launch_plan.h"
#include "common/mbarrier.cuh"

namespace vidk {

// The box of a tensor whose first element has these coordinates, innermost first. What lies outside
// of the tensor becomes zero, and its bytes count at the barrier.
__device__ inline void load_box(void* to, const DeviceTensorMap& map, Mbarrier& loaded, int c0,
                                int c1, int c2, int c3, int c4) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3, %4, %5, %6}], [%7];" ::"r"(shared_address(to)),
      "l"(&map), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4), "r"(loaded.address())
      : "memory");
}

// A multiple of 16 bytes.
__device__ inline void load_bytes(void* to, const void* from, uint32_t bytes, Mbarrier& loaded) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(to)),
      "l"(from), "r"(bytes), "r"(loaded.address())
      : "memory");
}

// What lies outside of the tensor is not written.
__device__ inline void store_box(const DeviceTensorMap& map, const void* from, int c0, int c1,
                                 int c2, int c3, int c4) {
  asm volatile(
      "cp.async.bulk.tensor.5d.global.shared::cta.tile.bulk_group [%0, {%1, %2, %3, %4, %5}], "
      "[%6];" ::"l"(&map),
      "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4), "r"(shared_address(from))
      : "memory");
}

// Until the thread's stores have read shared memory.
__device__ inline void wait_for_stores_to_read() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
  asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}

}  // namespace vidk
