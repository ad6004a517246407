#include "shadow.h"

#include <algorithm>

#include "fault.h"

namespace ptxsim {
namespace {

constexpr uint32_t kClockBits = 24;
constexpr uint32_t kClockMask = (1u << kClockBits) - 1;

std::string name_of(int entity) {
  return entity < SharedShadow::kWarps ? "warp " + std::to_string(entity)
                                       : "an operation completing on mbarrier #" +
                                             std::to_string(entity - SharedShadow::kWarps);
}

void join(SharedShadow::Clock& into, const SharedShadow::Clock& from) {
  for (int e = 0; e < SharedShadow::kEntities; ++e) into[e] = std::max(into[e], from[e]);
}

}  // namespace

SharedShadow::SharedShadow(int warps, uint32_t base, uint32_t bytes, bool enabled)
    : base_(base), enabled_(enabled), warps_(warps) {
  clocks_.assign(warps, Clock{});
  fence_view_.assign(warps, Clock{});
  warp_syncs_.assign(warps, 0);
  unsynced_.assign(warps, 0);
  synced_.assign(warps, 0);
  for (int w = 0; w < warps; ++w) clocks_[w][w] = 1;
  if (!enabled) return;
  write_.assign(bytes, 0);
  plain_.assign(bytes, 0);
  flags_.assign(bytes, 0);
  lane_.assign(bytes, 0);
  lane_sync_.assign(bytes, 0);
  proxy_reads_.assign(bytes, 0);
}

void SharedShadow::race(uint32_t i, const char* what, const char* against, int entity) const {
  throw Fault("race", std::string(what) + " of shared byte " + hex(base_ + i) +
                          " is not ordered against the " + against + " by " + name_of(entity));
}

void SharedShadow::check_idle(uint32_t i, uint32_t bytes, bool writes, const char* what) const {
  for (uint32_t b = i; b < i + bytes; ++b) {
    if (flags_[b] & kBarrier) {
      throw Fault("barrier", std::string(what) + " of shared byte " + hex(base_ + b) +
                                 ", which belongs to a live mbarrier");
    }
    if (flags_[b] & kCopying) {
      throw Fault("async", std::string(what) + " of shared byte " + hex(base_ + b) +
                               ", which a copy that nobody waited for still writes");
    }
    if (writes && proxy_reads_[b] != 0) {
      throw Fault("async", std::string(what) + " of shared byte " + hex(base_ + b) +
                               ", which an asynchronous operation that nobody waited for reads");
    }
  }
}

// Everything that was written there happened before.
void SharedShadow::check_read_order(int warp, int lane, uint32_t i, uint32_t bytes,
                                    const char* what) {
  const Clock& now = clocks_[warp];
  uint32_t known = 0;  // the last stamp found in order
  for (uint32_t b = i; b < i + bytes; ++b) {
    const uint32_t stamp = write_[b];
    if (stamp == 0) continue;
    const int entity = static_cast<int>(stamp >> kClockBits);
    if (stamp != known) {
      if (entity != warp && now[entity] < (stamp & kClockMask)) race(b, what, "write", entity);
      known = stamp;
    }
    // Lanes of a warp are ordered by bar.warp.sync or something wider.
    if (entity == warp && lane >= 0 && lane_[b] != lane && !(flags_[b] & kAsyncProxy) &&
        lane_sync_[b] == static_cast<uint16_t>(warp_syncs_[warp]) &&
        (stamp & kClockMask) == now[warp]) {
      throw Fault("race", std::string(what) + " of shared byte " + hex(base_ + b) + " by lane " +
                              std::to_string(lane) +
                              " without a bar.warp.sync after the write by lane " +
                              std::to_string(lane_[b]) + " of the same warp");
    }
  }
}

void SharedShadow::check_write_order(int warp, uint32_t i, uint32_t bytes, const char* what) {
  const Clock& now = clocks_[warp];
  for (int entity : readers_) {
    if (entity == warp) continue;
    for (uint32_t word = i / 4; word <= (i + bytes - 1) / 4; ++word) {
      if (reads_[entity][word] > now[entity]) race(4 * word, what, "read", entity);
    }
  }
}

void SharedShadow::note_read(int entity, uint32_t i, uint32_t bytes, uint32_t clock) {
  std::vector<uint32_t>& reads = reads_[entity];
  if (reads.empty()) {
    reads.assign(write_.size() / 4 + 1, 0);
    readers_.push_back(entity);
  }
  for (uint32_t word = i / 4; word <= (i + bytes - 1) / 4; ++word) reads[word] = clock;
}

void SharedShadow::stamp(uint32_t i, uint32_t bytes, int entity, uint32_t clock, int lane,
                         uint8_t flags) {
  if (clock > kClockMask) throw Fault("unsupported", "a kernel with this many barriers");
  const uint32_t value = static_cast<uint32_t>(entity) << kClockBits | clock;
  const auto sync =
      static_cast<uint16_t>(entity < warps_ ? warp_syncs_[static_cast<size_t>(entity)] : 0);
  std::fill_n(write_.begin() + i, bytes, value);
  if (!(flags & kAtomic)) std::fill_n(plain_.begin() + i, bytes, value);
  std::fill_n(flags_.begin() + i, bytes, flags);
  std::fill_n(lane_.begin() + i, bytes, static_cast<uint8_t>(lane));
  std::fill_n(lane_sync_.begin() + i, bytes, sync);
}

void SharedShadow::read(int warp, int lane, uint32_t at, uint32_t bytes) {
  if (!enabled_) return;
  const uint32_t i = index(at);
  check_idle(i, bytes, false, "read");
  check_read_order(warp, lane, i, bytes, "read");
  note_read(warp, i, bytes, clocks_[warp][warp]);
}

void SharedShadow::write(int warp, int lane, uint32_t at, uint32_t bytes) {
  if (!enabled_) return;
  const uint32_t i = index(at);
  check_idle(i, bytes, true, "write");
  check_read_order(warp, lane, i, bytes, "write");
  check_write_order(warp, i, bytes, "write");
  stamp(i, bytes, warp, clocks_[warp][warp], lane, kWritten);
  unsynced_[warp] |= 1u << lane;
}

void SharedShadow::atomic(int warp, int lane, uint32_t at, uint32_t bytes) {
  // Atomics on one word are in no order, and need none; against plain accesses they do. A plain
  // access is held against the last atomic only.
  if (!enabled_) return;
  const uint32_t i = index(at);
  check_idle(i, bytes, true, "atomic");
  for (uint32_t b = i; b < i + bytes; ++b) {
    const int writer = static_cast<int>(plain_[b] >> kClockBits);
    if (writer != warp && (plain_[b] & kClockMask) > clocks_[warp][writer]) {
      race(b, "atomic", "write", writer);
    }
  }
  check_write_order(warp, i, bytes, "atomic");
  stamp(i, bytes, warp, clocks_[warp][warp], lane, kWritten | kAtomic);
  unsynced_[warp] |= 1u << lane;
}

void SharedShadow::copy_begin(int warp, int lane, uint32_t at, uint32_t bytes) {
  if (!enabled_) return;
  const uint32_t i = index(at);
  check_idle(i, bytes, true, "cp.async");
  check_read_order(warp, lane, i, bytes, "cp.async");
  check_write_order(warp, i, bytes, "cp.async");
  stamp(i, bytes, warp, clocks_[warp][warp], lane, kCopying);
}

void SharedShadow::copy_end(int warp, int lane, uint32_t at, uint32_t bytes) {
  if (!enabled_) return;
  stamp(index(at), bytes, warp, clocks_[warp][warp], lane, kWritten);
}

void SharedShadow::bulk_write(int warp, uint32_t at, uint32_t bytes, int mbarrier, uint32_t phase) {
  if (!enabled_) return;
  const uint32_t i = index(at);
  check_idle(i, bytes, true, "bulk copy");
  check_read_order(warp, -1, i, bytes, "bulk copy");
  check_write_order(warp, i, bytes, "bulk copy");
  for (uint32_t b = i; b < i + bytes; ++b) {
    if (flags_[b] & kWritten) check_fenced(warp, b, "bulk copy over");
  }
  stamp(i, bytes, mbarrier, phase + 1, 0, kWritten | kAsyncProxy);
}

// What threads wrote was fenced by the writer behind its write, or by who uses it after it learnt
// of the write.
void SharedShadow::check_fenced(int warp, uint32_t b, const char* what) const {
  if (flags_[b] & kAsyncProxy) return;
  const int writer = static_cast<int>(write_[b] >> kClockBits);
  const uint32_t clock = write_[b] & kClockMask;
  if (fence_view_[writer][writer] >= clock || fence_view_[warp][writer] >= clock) return;
  throw Fault("proxy", std::string(what) + " shared byte " + hex(base_ + b) +
                           " without fence.proxy.async after the write by " + name_of(writer));
}

void SharedShadow::proxy_read_begin(int warp, uint32_t at, uint32_t bytes) {
  if (!enabled_) return;
  const uint32_t i = index(at);
  check_idle(i, bytes, false, "asynchronous read");
  check_read_order(warp, -1, i, bytes, "asynchronous read");
  for (uint32_t b = i; b < i + bytes; ++b) {
    if (!(flags_[b] & kWritten)) {
      throw Fault("uninitialised", "asynchronous read of shared byte " + hex(base_ + b) +
                                       ", which nobody has written");
    }
    check_fenced(warp, b, "asynchronous read of");
    if (proxy_reads_[b] == UINT8_MAX) throw Fault("unsupported", "255 reads under way");
    ++proxy_reads_[b];
  }
}

void SharedShadow::proxy_read_end(int warp, uint32_t at, uint32_t bytes) {
  proxy_read_end(warp, clocks_[warp][warp], at, bytes);
}

void SharedShadow::proxy_read_end(int entity, uint32_t clock, uint32_t at, uint32_t bytes) {
  if (!enabled_) return;
  const uint32_t i = index(at);
  for (uint32_t b = i; b < i + bytes; ++b) --proxy_reads_[b];
  note_read(entity, i, bytes, clock);
}

void SharedShadow::proxy_fence(int warp, Mask lanes) {
  fence_view_[warp] = clocks_[warp];
  if (unsynced_[warp] & ~lanes) fence_view_[warp][warp] = synced_[warp];
  // Writes from here on are later than the fence.
  ++clocks_[warp][warp];
}

// All lanes of the warp have met: what they wrote so far is known to each of them.
void SharedShadow::settle(int warp) {
  if (unsynced_[warp] == 0) return;
  unsynced_[warp] = 0;
  synced_[warp] = clocks_[warp][warp]++;
}

void SharedShadow::warp_sync(int warp) {
  ++warp_syncs_[warp];
  settle(warp);
}

void SharedShadow::mark_barrier(uint32_t at, bool live) {
  if (!enabled_) return;
  for (uint32_t b = index(at); b < index(at) + 8; ++b) {
    flags_[b] = static_cast<uint8_t>(live ? flags_[b] | kBarrier : flags_[b] & ~kBarrier);
  }
}

void SharedShadow::barrier(const std::vector<int>& waiting, const std::vector<Clock>& arrived) {
  Clock all{};
  for (int w : waiting) settle(w);
  for (int w : waiting) join(all, clocks_[w]);
  for (const Clock& c : arrived) join(all, c);
  for (int w : waiting) {
    clocks_[w] = all;
    ++clocks_[w][w];
  }
}

void SharedShadow::release(int warp, Clock& into, Mask lanes) {
  Clock known = clocks_[warp];
  unsynced_[warp] &= ~lanes;
  if (unsynced_[warp] != 0) known[warp] = std::min(known[warp], synced_[warp]);
  join(into, known);
  ++clocks_[warp][warp];
}

void SharedShadow::acquire(int warp, const Clock& from) { join(clocks_[warp], from); }

bool SharedShadow::initialised(uint32_t at, uint32_t bytes) const {
  if (!enabled_) return true;
  const uint32_t i = at - base_;
  return std::all_of(flags_.begin() + i, flags_.begin() + i + bytes,
                     [](uint8_t f) { return (f & (kWritten | kCopying)) != 0; });
}

}  // namespace ptxsim
