// mbarrier objects (PTX ISA 9.7.13.15). A phase completes when all expected arrivals have come and
// as many bytes have been copied as were announced; then the next one begins.
//
// The state is kept beside shared memory, by the object's address, and a state token is
// phase << 32 | pending count.

#include "async.h"

namespace ptxsim {

void add_sync_ops();

namespace {

constexpr int64_t kMostPending = (1 << 20) - 1;

// Phase after phase; a fresh object has completed none.
void settle(Cta& cta, Mbarrier& bar) {
  ++cta.progress;
  if (bar.pending != 0 || bar.tx != 0) return;
  ++bar.phase;
  bar.pending = bar.expected;
  for (int e = 0; e < SharedShadow::kEntities; ++e) {
    bar.done[e] = std::max(bar.done[e], bar.arriving[e]);
  }
  bar.arriving = {};
  // Who acquires `done` is ordered behind the copies that completed in this phase.
  bar.done[static_cast<size_t>(bar.entity)] = bar.phase;
}

}  // namespace

Mbarrier& mbarrier_at(Cta& cta, int warp, uint32_t at) {
  cta.shared_at(at, 8, 8);
  const auto found = cta.mbarriers.find(at);
  if (found == cta.mbarriers.end()) {
    throw Fault("barrier", "no mbarrier was initialised at shared address " + hex(at));
  }
  const auto made = async_of(cta).made.find(at)->second;
  if (warp >= 0 && warp != made.warp &&
      cta.shadow.clock(warp)[static_cast<size_t>(made.warp)] < made.clock) {
    throw Fault("race", "the mbarrier at " + hex(at) + " is used without a barrier after its " +
                            "initialisation by warp " + std::to_string(made.warp));
  }
  return found->second;
}

void mbarrier_expect(Cta& cta, Mbarrier& bar, int64_t bytes) {
  bar.tx += bytes;
  if (std::abs(bar.tx) > kMostPending) {
    throw Fault("barrier", "an mbarrier with " + std::to_string(bar.tx) + " outstanding bytes");
  }
  ++cta.progress;
}

void mbarrier_complete(Cta& cta, Mbarrier& bar, int64_t bytes) {
  mbarrier_expect(cta, bar, -bytes);
  settle(cta, bar);
}

void mbarrier_arrive(Cta& cta, Mbarrier& bar, uint32_t count) {
  bar.pending -= count;
  if (bar.pending < 0) {
    throw Fault("barrier", "more arrivals at an mbarrier than the " + std::to_string(bar.expected) +
                               " that its phase expects");
  }
  settle(cta, bar);
}

void mbarrier_seen_by_proxy(Warp& w, uint32_t at) {
  const auto made = async_of(w.cta).made.find(at);
  if (made != async_of(w.cta).made.end() && !made->second.fenced) {
    w.warn("a bulk copy uses an mbarrier without fence.mbarrier_init after its initialisation");
  }
}

namespace {

enum Mode { kRelaxed, kParity, kExpects, kDrops };

// A count from operand `operand`, or 1 without one.
uint32_t count_of(const Warp& w, const Inst& inst, size_t operand, int lane) {
  if (operand >= inst.operands.size()) return 1;
  const Arg& arg = inst.arg(static_cast<int>(operand));
  w.require(arg, 1u << lane, "a count of an mbarrier");
  const auto count = static_cast<uint32_t>(w.lane_value(arg, lane));
  if (count > kMostPending) throw Fault("barrier", "an mbarrier count of " + std::to_string(count));
  return count;
}

// Calls f(lane, address, object) for each active lane.
template <class F>
void for_each(Warp& w, const Inst& inst, int operand, Mask active, F f) {
  uint32_t at[kLanes];
  shared_addresses(w, inst, operand, active, at);
  for (int l = 0; l < kLanes; ++l) {
    if (active >> l & 1) f(l, mbarrier_at(w.cta, w.index, at[l]));
  }
}

Flow init(Warp& w, const Inst& inst, Mask active) {
  uint32_t at[kLanes];
  shared_addresses(w, inst, 0, active, at);
  for (int l = 0; l < kLanes; ++l) {
    if (!(active >> l & 1)) continue;
    const uint32_t count = count_of(w, inst, 1, l);
    if (count == 0) throw Fault("barrier", "mbarrier.init with a count of 0");
    w.cta.shared_at(at[l], 8, 8);
    if (w.cta.mbarriers.count(at[l]) != 0) {
      throw Fault("barrier", "mbarrier.init of the live object at " + hex(at[l]));
    }
    if (w.cta.mbarriers_made == SharedShadow::kEntities - SharedShadow::kWarps) {
      throw Fault("unsupported", "more than 64 mbarrier objects in a block");
    }
    w.cta.shadow.write(w.index, l, at[l], 8);
    w.cta.shadow.mark_barrier(at[l], true);
    Mbarrier& bar = w.cta.mbarriers[at[l]];
    bar.entity = SharedShadow::kWarps + w.cta.mbarriers_made++;
    bar.expected = count;
    bar.pending = count;
    const uint32_t now = w.cta.shadow.clock(w.index)[static_cast<size_t>(w.index)];
    async_of(w.cta).made[at[l]] = {w.index, now, false};
  }
  return Flow::kNext;
}

Flow inval(Warp& w, const Inst& inst, Mask active) {
  uint32_t at[kLanes];
  shared_addresses(w, inst, 0, active, at);
  for (int l = 0; l < kLanes; ++l) {
    if (!(active >> l & 1)) continue;
    mbarrier_at(w.cta, w.index, at[l]);
    w.cta.mbarriers.erase(at[l]);
    w.cta.shadow.mark_barrier(at[l], false);
  }
  return Flow::kNext;
}

Flow expect(Warp& w, const Inst& inst, Mask active) {
  for_each(w, inst, 0, active,
           [&](int l, Mbarrier& bar) { mbarrier_expect(w.cta, bar, count_of(w, inst, 1, l)); });
  return Flow::kNext;
}

Flow complete(Warp& w, const Inst& inst, Mask active) {
  for_each(w, inst, 0, active,
           [&](int l, Mbarrier& bar) { mbarrier_complete(w.cta, bar, count_of(w, inst, 1, l)); });
  return Flow::kNext;
}

// arrive, arrive.expect_tx, arrive_drop, arrive_drop.expect_tx
Flow arrive(Warp& w, const Inst& inst, Mask active) {
  Lanes token;
  const Mbarrier* released = nullptr;
  for_each(w, inst, 1, active, [&](int l, Mbarrier& bar) {
    token.v[l] = uint64_t{bar.phase} << 32 | static_cast<uint64_t>(bar.pending);
    const uint32_t count = inst.mode[kExpects] ? 1 : count_of(w, inst, 2, l);
    if (inst.mode[kExpects]) mbarrier_expect(w.cta, bar, count_of(w, inst, 2, l));
    if (inst.mode[kDrops]) {
      if (count > bar.expected) throw Fault("barrier", "arrive_drop of more than is expected");
      bar.expected -= count;
    }
    // Once per warp: its lanes share a clock.
    if (!inst.mode[kRelaxed] && &bar != released)
      w.cta.shadow.release(w.index, bar.arriving, active);
    released = &bar;
    mbarrier_arrive(w.cta, bar, count);
  });
  w.write(inst.arg(0), active, token.v);
  return Flow::kNext;
}

// test_wait and try_wait. The hardware may let a try_wait sleep; here it tests, and others run.
Flow wait(Warp& w, const Inst& inst, Mask active) {
  Mask passed = 0;
  const Mbarrier* acquired = nullptr;
  for_each(w, inst, 1, active, [&](int l, Mbarrier& bar) {
    w.require(inst.arg(2), 1u << l, "the phase of an mbarrier wait");
    const uint64_t which = w.lane_value(inst.arg(2), l);
    const bool completed = inst.mode[kParity] ? (bar.phase & 1) != (which & 1)
                                              : bar.phase > static_cast<uint32_t>(which >> 32);
    if (!completed) return;
    passed |= 1u << l;
    if (!inst.mode[kRelaxed] && &bar != acquired) w.cta.shadow.acquire(w.index, bar.done);
    acquired = &bar;
  });
  w.write_predicate(inst.arg(0).reg, active, passed);
  return passed == active ? Flow::kNext : Flow::kYield;
}

Flow pending_count(Warp& w, const Inst& inst, Mask active) {
  Lanes room, out;
  const uint64_t* token = w.read(inst.arg(1), room);
  for (int l = 0; l < kLanes; ++l) out.v[l] = static_cast<uint32_t>(token[l]);
  w.write(inst.arg(0), active, out.v);
  return Flow::kNext;
}

void decode_mbarrier(Decoder& d) {
  Inst& inst = d.inst;
  inst.cls = Class::kBarrier;
  const int form = d.choose({"init", "inval", "arrive", "arrive_drop", "test_wait", "try_wait",
                             "pending_count", "expect_tx", "complete_tx"});
  const bool arrives = form == 2 || form == 3, waits = form == 4 || form == 5;
  const bool counts_bytes = form >= 7;
  if (arrives) {
    inst.mode[kExpects] = d.take("expect_tx");
    inst.mode[kDrops] = form == 3;
    inst.mode[kRelaxed] = d.choose({"release", "relaxed"}) == 1;
    d.choose({"cta", "cluster"});
  } else if (waits) {
    inst.mode[kParity] = d.take("parity");
    inst.mode[kRelaxed] = d.choose({"acquire", "relaxed"}) == 1;
    d.choose({"cta", "cluster"});
  } else if (counts_bytes) {
    d.take("relaxed");
    d.choose({"cta", "cluster"});
  }
  // Clusters are of one block, so all of shared::cluster is the block's own.
  inst.space = Space::kGeneric;
  if (form != 6) {
    if (d.choose({"shared", "shared::cta"}) >= 0 ||
        ((arrives || counts_bytes) && d.take("shared::cluster"))) {
      inst.space = Space::kShared;
    }
  }
  if (!d.take("b64")) d.fail("no .b64");
  d.results(arrives || waits || form == 6 ? 1 : 0);
  switch (form) {
    case 0:
      inst.execute = init;
      return d.finish({2});
    case 1:
      inst.execute = inval;
      return d.finish({1});
    case 2:
    case 3:
      inst.execute = arrive;
      if (inst.mode[kExpects]) return d.finish({3});
      return d.finish({2, 3});
    case 4:
      inst.execute = wait;
      return d.finish({3});
    case 5:
      inst.execute = wait;
      return d.finish({3, 4});  // with a hint how long to suspend
    case 6:
      inst.execute = pending_count;
      return d.finish({2});
    case 7:
      inst.execute = expect;
      return d.finish({2});
    case 8:
      inst.execute = complete;
      return d.finish({2});
    default:
      d.fail("unknown form of mbarrier");
  }
}

}  // namespace

void add_mbarrier_ops() {
  add_op("mbarrier", decode_mbarrier);
  add_sync_ops();
}

}  // namespace ptxsim
