// Barriers in shared memory (mbarrier objects) that threads, copies and matrix products arrive at.
// Device code, torch-free.
#pragma once

#include <cstdint>

namespace vidk {

// The 32-bit address that PTX takes of what lies in shared memory.
__device__ inline uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

class Mbarrier {
 public:
  __device__ void init(uint32_t arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address()), "r"(arrivals));
  }
  __device__ void arrive() {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(address()) : "memory");
  }
  // Arrives, and lets the phase last until as many bytes have been copied.
  __device__ void arrive_expect(uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address()),
                 "r"(bytes)
                 : "memory");
  }
  // Until the phase of this parity is over: the first has parity 0, and the one before it counts
  // as over.
  __device__ void wait(uint32_t parity) {
    uint32_t over = 0;
    while (!over) {
      asm volatile(
          "{ .reg .pred p;\n"
          "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
          "selp.u32 %0, 1, 0, p; }"
          : "=r"(over)
          : "r"(address()), "r"(parity)
          : "memory");
    }
  }
  __device__ uint32_t address() const { return shared_address(this); }

 private:
  uint64_t state_;
};

// After the initialisation of barriers that copies will use.
__device__ inline void fence_mbarrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// Between what threads wrote to shared memory and the copy or matrix product that reads it.
__device__ inline void fence_async_proxy() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

}  // namespace vidk
