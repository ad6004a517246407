// What a block remembers of asynchronous operations that nobody has waited for yet, and the
// mbarrier steps that copies take.
#pragma once

#include <deque>
#include <map>
#include <vector>

#include "machine.h"

namespace ptxsim {

// Groups are numbered per thread (wgmma: per warp) in the order of their commit_group. An operation
// belongs to the group that is open when it is issued, and wait_group N waits for all groups
// but the N youngest committed ones.
inline bool covered(uint32_t group, uint32_t committed, uint32_t n) {
  return uint64_t{group} + n < committed;
}

struct Cta::AsyncState {
  explicit AsyncState(size_t warps) : warp(warps) {}

  // One cp.async of a warp.
  struct Copy {
    uint64_t ticket, sequence;
    Mask open;  // lanes that have not waited for it
    uint32_t bytes;
    uint32_t at[kLanes], group[kLanes];
  };
  // One thread's bulk copy that reads shared memory.
  struct BulkStore {
    uint64_t ticket;
    int lane;
    uint32_t group, at, bytes;
  };
  struct Range {
    uint32_t at, bytes;
  };
  // One warp's part of a wgmma.mma_async.
  struct Product {
    uint64_t ticket = 0, sequence = 0;
    uint32_t group = 0;
    std::function<void()> compute;  // none once it is done
    std::vector<Range> reads;
    std::vector<int32_t> results, inputs;  // registers
    int n = 0, k = 0;                      // of its shape
  };
  struct PerWarp {
    std::vector<Copy> copies;
    uint64_t copies_issued = 0;
    uint32_t copy_groups[kLanes] = {};  // committed
    std::vector<BulkStore> stores;
    uint32_t store_groups[kLanes] = {};
    std::deque<Product> products;
    uint64_t products_issued = 0;
    uint32_t product_groups = 0;  // committed
    bool product_fence = false;   // wgmma.fence was executed
    uint32_t registers = 0;       // per thread, by setmaxnreg; 0: as launched
  };
  std::vector<PerWarp> warp;

  // The wgmma instructions that some warp of a group has executed and another has not yet.
  struct WarpGroup {
    struct Step {
      const Inst* inst;
      uint64_t a, b;  // descriptors
      bool operator==(const Step& o) const { return inst == o.inst && a == o.a && b == o.b; }
    };
    std::deque<Step> steps;
    uint64_t forgotten = 0;  // steps that all four have executed
    uint64_t count[4] = {};  // executed, per warp
  };
  std::vector<WarpGroup> groups;

  // Which warp initialised an mbarrier and when, for the order of its uses; `fenced` once the
  // asynchronous proxy can see it.
  struct Made {
    int warp;
    uint32_t clock;
    bool fenced;
  };
  std::map<uint32_t, Made> made;
};

inline Cta::AsyncState& async_of(Cta& cta) {
  if (!cta.async) cta.async = std::make_shared<Cta::AsyncState>(cta.warps.size());
  return *cta.async;
}
inline Cta::AsyncState::PerWarp& async_of(Warp& w) { return async_of(w.cta).warp[w.index]; }

// The shared offsets that an operand points at, generic or `.shared`, in 32 bits.
inline void shared_addresses(const Warp& w, const Inst& inst, int operand, Mask active,
                             uint32_t* at) {
  uint64_t wide[kLanes];
  w.addresses(inst, operand, active, wide);
  for (int l = 0; l < kLanes; ++l) {
    if (!(active >> l & 1)) continue;
    if (inst.space == Space::kGeneric && wide[l] >> 56 != kSharedWindow >> 56) {
      throw Fault("bounds", "the generic address " + hex(wide[l]) + " is not in shared memory");
    }
    at[l] = static_cast<uint32_t>(wide[l]);
  }
}

// To be called when a block is done: faults if it ends before operations that use its shared
// memory.
void check_finished(Cta& cta);

// What Warp::busy tells of a register: a wgmma writes or reads it, a tcgen05.ld writes it,
// something else than a wgmma has written it since the last wgmma.fence.
enum Busy : uint8_t { kResult = 1, kInput = 2, kLoading = 4, kUnfenced = 8 };
// Faults if the instruction touches registers of a matrix product or a load that is under way.
void check_busy(Warp& w, const Inst& inst);

// A live mbarrier; faults on anything else. `warp` is who uses it, -1: a copy.
Mbarrier& mbarrier_at(Cta& cta, int warp, uint32_t at);
void mbarrier_expect(Cta& cta, Mbarrier& bar, int64_t bytes);
void mbarrier_complete(Cta& cta, Mbarrier& bar, int64_t bytes);
void mbarrier_arrive(Cta& cta, Mbarrier& bar, uint32_t count);
// For bulk copies: warns unless the initialisation was fenced.
void mbarrier_seen_by_proxy(Warp& w, uint32_t at);

}  // namespace ptxsim
