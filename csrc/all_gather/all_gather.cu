// Device code of the fused AllGather + RoPE: a rank rotates its tokens once and stores each vector,
// straight from registers, into every rank's buffer. Torch-free.
#include <cstdint>

#include "all_gather/all_gather_kernel.h"
#include "common/kernel.cuh"
#include "rope/rope_block.cuh"

namespace vidk::all_gather {

// Signals go between devices, so their scope is the system. Each has one writer: no atomics, which
// not every link between devices has.
__device__ inline uint32_t acquire(const uint32_t* signal) {
  uint32_t value;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(signal) : "memory");
  return value;
}

__device__ inline void release(uint32_t* signal, uint32_t value) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(signal), "r"(value) : "memory");
}

// A signal may already be a call ahead; the difference survives a wrap.
__device__ inline void wait_for(const uint32_t* signal, uint32_t call) {
  while (static_cast<int32_t>(acquire(signal) - call) < 0) {
  }
}

#if __CUDA_ARCH__ >= 900
constexpr bool kHasMulticast = true;

// One store that the switch repeats into every rank's memory (NVLS).
template <int kBytes>
__device__ inline void store_to_all(char* p, const uint32_t* w) {
  static_assert(kBytes == 16 || kBytes == 8 || kBytes == 4);
  if constexpr (kBytes == 16) {
    asm volatile("multimem.st.weak.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(w[0]),
                 "r"(w[1]), "r"(w[2]), "r"(w[3])
                 : "memory");
  } else if constexpr (kBytes == 8) {
    asm volatile("multimem.st.weak.global.v2.f32 [%0], {%1, %2};" ::"l"(p), "r"(w[0]), "r"(w[1])
                 : "memory");
  } else {
    asm volatile("multimem.st.weak.global.b32 [%0], %1;" ::"l"(p), "r"(w[0]) : "memory");
  }
}
#else
constexpr bool kHasMulticast = false;

template <int kBytes>
__device__ inline void store_to_all(char*, const uint32_t*) {}
#endif

// Between accesses by a multicast address and by others to the memory behind it.
__device__ inline void fence_alias() { asm volatile("fence.proxy.alias;" ::: "memory"); }

struct Peers {
  const int64_t* table;
  int ranks;

  __device__ char* out(int rank) const { return reinterpret_cast<char*>(table[rank]); }
  __device__ uint32_t* signals(int rank) const {
    return reinterpret_cast<uint32_t*>(table[ranks + rank]);
  }
  __device__ char* multicast() const { return reinterpret_cast<char*>(table[2 * ranks]); }
  // The number of this call: that of the calls so far changes when all blocks have finished.
  __device__ uint32_t call(int rank) const { return acquire(signals(rank) + 2 * ranks + 1) + 1; }
};

// Where a rank stores; in shared memory.
struct Places {
  char* out[kGatherMaxRanks];
  char* multicast;
};

// Nothing is stored in a rank's buffer before that rank's kernel runs: whatever read the buffer
// before it on the stream is done then. A rank's first block tells all ranks, every block waits.
__device__ inline void wait_until_ready(const Peers& peers, int rank, bool is_first,
                                        Places& places) {
  if (threadIdx.x == 0) places.multicast = kHasMulticast ? peers.multicast() : nullptr;
  for (int r = threadIdx.x; r < peers.ranks; r += blockDim.x) {
    const uint32_t call = peers.call(rank);
    if (is_first) release(peers.signals(r) + rank, call);
    places.out[r] = peers.out(r);
    wait_for(peers.signals(rank) + r, call);
  }
}

// The last block of a rank to finish tells all ranks, and waits until all have told it: then every
// rank's tokens are in this rank's buffer before whatever comes next on the stream.
__device__ inline void tell_and_wait(const Peers& peers, int rank, uint32_t blocks,
                                     bool by_multicast) {
  if (by_multicast) fence_alias();
  __syncthreads();
  if (threadIdx.x != 0) return;
  __threadfence_system();  // of all stores that this thread has learnt of at the barrier
  const int ranks = peers.ranks;
  uint32_t* const own = peers.signals(rank);
  const uint32_t call = peers.call(rank);
  if (atomicAdd(own + 2 * ranks, 1u) != blocks - 1) return;
  __threadfence_system();
  atomicExch(own + 2 * ranks, 0u);
  atomicExch(own + 2 * ranks + 1, call);
  for (int r = 0; r < ranks; ++r) release(peers.signals(r) + ranks + rank, call);
  for (int r = 0; r < ranks; ++r) wait_for(own + ranks + r, call);
  if (by_multicast) fence_alias();
}

template <class Format, int kAccess>
__device__ void all_gather_rope(const GatherParams& p) {
  __shared__ Places places;
  // A rank's first block is among the grid's first: ranks that wait for it cannot keep it out.
  const int local = static_cast<int>(blockIdx.x) % p.local;
  const uint32_t tile = blockIdx.x / p.local;
  const int rank = p.first_rank + local;
  const Peers peers{p.peers, p.ranks};
  // The caller's buffer is not the one that the ranks know: a copy, or another table's.
  if (blockIdx.x == 0 && threadIdx.x == 0 && peers.out(rank) != p.out) __trap();

  RopeParams rope = p.rope;
  rope.x.data = const_cast<char*>(p.x[local]);
  rope.grid.token_offset += local * p.offset_step;
  const int64_t chunk = rank * p.chunk;
  rope::rotate<Format, kAccess>(
      rope, tile, [&] { wait_until_ready(peers, rank, tile == 0, places); },
      [&](const auto& vector, char* at) {
        const int64_t offset = chunk + reinterpret_cast<int64_t>(at);
        if constexpr (kAccess > 2) {  // the switch knows no access of 2 bytes
          if (places.multicast != nullptr) {
            using Vec = Vector<Format, kAccess>;
#pragma unroll
            for (int i = 0; i < Vec::kBytes; i += Vec::kStep) {
              store_to_all<Vec::kStep>(places.multicast + offset + i, vector.word + i / 4);
            }
            return;
          }
        }
        // Each rank begins with its neighbour: at any time each receives from another.
        int to = rank;
        for (int i = 0; i < p.ranks; ++i) {
          if (++to == p.ranks) to = 0;
          vector.store(places.out[to] + offset);
        }
      });
  tell_and_wait(peers, rank, gridDim.x / p.local, kAccess > 2 && places.multicast != nullptr);
}

}  // namespace vidk::all_gather

using namespace vidk;
VIDK_KERNEL(vidk_all_gather_rope_bf16_16B, GatherParams, (kRopeThreads, 3),
            all_gather::all_gather_rope<BFloat16, 16>)
VIDK_KERNEL(vidk_all_gather_rope_bf16_8B, GatherParams, (kRopeThreads, 3),
            all_gather::all_gather_rope<BFloat16, 8>)
VIDK_KERNEL(vidk_all_gather_rope_bf16_4B, GatherParams, (kRopeThreads, 3),
            all_gather::all_gather_rope<BFloat16, 4>)
VIDK_KERNEL(vidk_all_gather_rope_bf16_2B, GatherParams, (kRopeThreads, 3),
            all_gather::all_gather_rope<BFloat16, 2>)
VIDK_KERNEL(vidk_all_gather_rope_f16_16B, GatherParams, (kRopeThreads, 3),
            all_gather::all_gather_rope<Float16, 16>)
VIDK_KERNEL(vidk_all_gather_rope_f16_8B, GatherParams, (kRopeThreads, 3),
            all_gather::all_gather_rope<Float16, 8>)
VIDK_KERNEL(vidk_all_gather_rope_f16_4B, GatherParams, (kRopeThreads, 3),
            all_gather::all_gather_rope<Float16, 4>)
VIDK_KERNEL(vidk_all_gather_rope_f16_2B, GatherParams, (kRopeThreads, 3),
            all_gather::all_gather_rope<Float16, 2>)
VIDK_KERNEL(vidk_all_gather_rope_f32_16B, GatherParams, (kRopeThreads, 3),
            all_gather::all_gather_rope<Float32, 16>)
VIDK_KERNEL(vidk_all_gather_rope_f32_8B, GatherParams, (kRopeThreads, 3),
            all_gather::all_gather_rope<Float32, 8>)
VIDK_KERNEL(vidk_all_gather_rope_f32_4B, GatherParams, (kRopeThreads, 3),
            all_gather::all_gather_rope<Float32, 4>)
