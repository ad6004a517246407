// Shared memory of one block as the checks see it: for every byte whether it was ever written, who
// wrote it last and when, who read it, and whether an asynchronous operation still works on it.
//
// "When" is a vector clock. Its entities are the warps of the block and the live mbarriers: warps
// order themselves through barriers, and data that a bulk copy delivers is ordered only for those
// who waited for the phase of the mbarrier that it completes on. Two accesses to a byte, not both
// reads and not both atomic, are a race unless one happens before the other.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "program.h"

namespace ptxsim {

class SharedShadow {
 public:
  static constexpr int kWarps = 32;
  static constexpr int kEntities = kWarps + 64;
  using Clock = std::array<uint32_t, kEntities>;

  // `base` is the address of the first byte; without `enabled` every call does nothing.
  SharedShadow(int warps, uint32_t base, uint32_t bytes, bool enabled);

  // --- accesses of threads -----------------------------------------------------------------------
  void read(int warp, int lane, uint32_t at, uint32_t bytes);
  void write(int warp, int lane, uint32_t at, uint32_t bytes);
  void atomic(int warp, int lane, uint32_t at, uint32_t bytes);

  // --- asynchronous accesses, on behalf of the warp that issued them
  // ------------------------------ cp.async: the destination belongs to the copy from begin to end
  // (the issuing thread's wait).
  void copy_begin(int warp, int lane, uint32_t at, uint32_t bytes);
  void copy_end(int warp, int lane, uint32_t at, uint32_t bytes);
  // Bulk and tensor copies into shared memory: visible to who waits for `phase` of the mbarrier.
  void bulk_write(int warp, uint32_t at, uint32_t bytes, int mbarrier, uint32_t phase);
  // wgmma operands and sources of bulk stores: nobody may write from begin to end. What threads
  // wrote must have been fenced (fence.proxy.async) before.
  void proxy_read_begin(int warp, uint32_t at, uint32_t bytes);
  void proxy_read_end(int warp, uint32_t at, uint32_t bytes);
  // The same for reads that are over for who has seen `clock` of `entity`.
  void proxy_read_end(int entity, uint32_t clock, uint32_t at, uint32_t bytes);

  // --- order
  // --------------------------------------------------------------------------------------
  void warp_sync(int warp);                            // bar.warp.sync orders the lanes of a warp
  void proxy_fence(int warp, Mask lanes = kAllLanes);  // fence.proxy.async
  // A barrier that these warps completed together, and what those who only arrived had released.
  void barrier(const std::vector<int>& waiting, const std::vector<Clock>& arrived);
  const Clock& clock(int warp) const { return clocks_[warp]; }
  // Release: `into` learns all that the warp knows; what the warp does next is later. What lanes
  // outside of `lanes` wrote since the last sync of the warp is not theirs to release.
  void release(int warp, Clock& into, Mask lanes = kAllLanes);
  // Acquire: the warp learns all of `from`.
  void acquire(int warp, const Clock& from);

  // The 8 bytes of an mbarrier: nothing but mbarrier instructions may touch them while it lives.
  void mark_barrier(uint32_t at, bool live);

  bool initialised(uint32_t at, uint32_t bytes) const;

 private:
  struct Byte;
  enum Flag : uint8_t { kWritten = 1, kCopying = 2, kAsyncProxy = 4, kBarrier = 8, kAtomic = 16 };

  uint32_t index(uint32_t at) const { return at - base_; }
  void check_write_order(int warp, uint32_t i, uint32_t bytes, const char* what);
  void check_read_order(int warp, int lane, uint32_t i, uint32_t bytes, const char* what);
  void check_idle(uint32_t i, uint32_t bytes, bool writes, const char* what) const;
  void note_read(int entity, uint32_t i, uint32_t bytes, uint32_t clock);
  void stamp(uint32_t i, uint32_t bytes, int entity, uint32_t clock, int lane, uint8_t flags);
  void check_fenced(int warp, uint32_t byte, const char* what) const;
  void settle(int warp);
  [[noreturn]] void race(uint32_t i, const char* what, const char* against, int entity) const;

  uint32_t base_;
  bool enabled_;
  int warps_;
  // Of the last write, per byte: entity in the top 8 bits, its clock below.
  std::vector<uint32_t> write_;
  std::vector<uint32_t> plain_;  // of the last one that was not atomic
  std::vector<uint8_t> flags_;
  std::vector<uint8_t> lane_;         // that wrote, and ...
  std::vector<uint16_t> lane_sync_;   // ... its warp's count of bar.warp.sync then
  std::vector<uint8_t> proxy_reads_;  // asynchronous reads under way
  // Per entity and 4-byte word, the clock of its last read; empty until it reads.
  std::array<std::vector<uint32_t>, kEntities> reads_;
  std::vector<int> readers_;  // entities with a non-empty one
  std::vector<Clock> clocks_;
  std::vector<Clock> fence_view_;  // clocks_[w] at w's last fence.proxy.async
  std::vector<uint32_t> warp_syncs_;
  std::vector<Mask> unsynced_;    // lanes that wrote since the last sync of their warp ...
  std::vector<uint32_t> synced_;  // ... and its own clock then
};

}  // namespace ptxsim
