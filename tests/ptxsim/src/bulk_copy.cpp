// cp.async.bulk (PTX ISA 9.7.9.25.4): one thread copies a run of bytes. Into shared memory it
// completes on an mbarrier; out of it, in groups of its own that the thread waits for.

#include "copy.h"

namespace ptxsim {

void begin_load(Warp& w, uint32_t at, uint32_t bytes, uint32_t mbarrier, Pieces pieces) {
  Cta& cta = w.cta;
  const Mbarrier& bar = mbarrier_at(cta, w.index, mbarrier);
  mbarrier_seen_by_proxy(w, mbarrier);
  cta.shadow.bulk_write(w.index, at, bytes, bar.entity, bar.phase);
  cta.defer([&cta, bytes, mbarrier, pieces = std::move(pieces)] {
    move(pieces);
    mbarrier_complete(cta, mbarrier_at(cta, -1, mbarrier), bytes);
  });
}

void begin_store(Warp& w, int lane, uint32_t at, uint32_t bytes, Pieces pieces) {
  w.cta.shadow.proxy_read_begin(w.index, at, bytes);
  const uint64_t ticket = w.cta.defer([pieces = std::move(pieces)] { move(pieces); });
  Cta::AsyncState::PerWarp& state = async_of(w);
  state.stores.push_back({ticket, lane, state.store_groups[lane], at, bytes});
}

namespace {

constexpr uint32_t kAlign = 16;

// Size operand `operand` of lane `l`.
uint32_t size_of(const Warp& w, const Inst& inst, int operand, int l) {
  w.require(inst.arg(operand), 1u << l, "the size of a bulk copy");
  const auto bytes = static_cast<uint32_t>(w.lane_value(inst.arg(operand), l));
  if (bytes % kAlign != 0) {
    throw Fault("alignment", "a bulk copy of " + std::to_string(bytes) + " bytes");
  }
  return bytes;
}

// [shared], [global], size, [mbarrier]
Flow load(Warp& w, const Inst& inst, Mask active) {
  uint32_t to[kLanes], bar[kLanes];
  uint64_t from[kLanes];
  shared_addresses(w, inst, 0, active, to);
  w.addresses(inst, 1, active, from);
  shared_addresses(w, inst, 3, active, bar);
  for (int l = 0; l < kLanes; ++l) {
    const uint32_t bytes = active >> l & 1 ? size_of(w, inst, 2, l) : 0;
    if (bytes == 0) continue;
    uint8_t* const target = w.cta.shared_at(to[l], bytes, kAlign);
    const uint8_t* const source = copy_source(w, from[l], bytes, kAlign);
    begin_load(w, to[l], bytes, bar[l], {{source, target, bytes}});
    w.cta.machine.counters.bulk_read_bytes += bytes;
  }
  return Flow::kNext;
}

// [global], [shared], size
Flow store(Warp& w, const Inst& inst, Mask active) {
  uint32_t from[kLanes];
  uint64_t to[kLanes];
  w.addresses(inst, 0, active, to);
  shared_addresses(w, inst, 1, active, from);
  for (int l = 0; l < kLanes; ++l) {
    const uint32_t bytes = active >> l & 1 ? size_of(w, inst, 2, l) : 0;
    if (bytes == 0) continue;
    const uint8_t* const source = w.cta.shared_at(from[l], bytes, kAlign);
    uint8_t* const target = w.cta.machine.memory.write(to[l], bytes, kAlign, w.cta.index);
    begin_store(w, l, from[l], bytes, {{source, target, bytes}});
    w.cta.machine.counters.bulk_written_bytes += bytes;
  }
  return Flow::kNext;
}

Flow commit(Warp& w, const Inst&, Mask active) {
  Cta::AsyncState::PerWarp& state = async_of(w);
  for (int l = 0; l < kLanes; ++l) state.store_groups[l] += active >> l & 1;
  return Flow::kNext;
}

// With .read only until the sources may be written again; the results are then on their way, which
// is no different here.
Flow wait(Warp& w, const Inst& inst, Mask active) {
  const auto n = static_cast<uint32_t>(inst.arg(0).value);
  Cta::AsyncState::PerWarp& state = async_of(w);
  size_t kept = 0;
  for (const Cta::AsyncState::BulkStore& s : state.stores) {
    if ((active >> s.lane & 1) && covered(s.group, state.store_groups[s.lane], n)) {
      w.cta.finish(s.ticket);
      w.cta.shadow.proxy_read_end(w.index, s.at, s.bytes);
    } else {
      state.stores[kept++] = s;
    }
  }
  state.stores.resize(kept);
  return Flow::kNext;
}

Flow nothing(Warp&, const Inst&, Mask) { return Flow::kNext; }

}  // namespace

void decode_bulk_copy(Decoder& d) {
  if (d.take("commit_group")) {
    d.inst.execute = commit;
    return d.finish({0});
  }
  if (d.take("wait_group")) {
    d.take("read");
    d.inst.execute = wait;
    d.finish({1});
    if (d.inst.arg(0).kind != Arg::Kind::kImmediate) d.fail("the group count must be a constant");
    return;
  }
  if (!d.take("global")) d.fail("copies between blocks of a cluster are not supported");
  const int policy = d.take("L2::cache_hint") ? 1 : 0;
  if (d.take("prefetch")) {
    if (!d.take("L2")) d.fail("no .L2");
    d.inst.execute = nothing;
    return d.finish({2 + policy});
  }
  d.inst.space = Space::kShared;
  if (d.take("mbarrier::complete_tx::bytes")) {
    if (d.choose({"shared::cluster", "shared::cta"}) < 0) d.fail("not to shared memory");
    d.inst.execute = load;
    return d.finish({4 + policy});
  }
  if (!d.take("bulk_group") || !d.take("shared::cta")) d.fail("not .shared::cta.bulk_group");
  d.inst.execute = store;
  d.finish({3 + policy});
}

}  // namespace ptxsim
