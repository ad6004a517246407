// bar and barrier: sync, arrive, red, and bar.warp.sync [PTX ISA 9.7.13.1, 9.7.13.2].

#include <algorithm>

#include "lanes.h"

namespace ptxsim {
namespace {

enum Kind : uint32_t { kSync, kArrive, kRedPopc, kRedAnd, kRedOr };

// The operands behind the result of .red: barrier, then maybe a thread count.
int first_operand(const Inst& inst) { return inst.mode[0] >= kRedPopc ? 1 : 0; }

uint64_t uniform(const Warp& w, const Arg& arg, Mask active, const char* what) {
  w.require(arg, active, what);
  const uint64_t value = w.lane_value(arg, __builtin_ctz(active));
  for (int l = 0; l < kLanes; ++l) {
    if ((active >> l & 1) && w.lane_value(arg, l) != value) {
      throw Fault("barrier", std::string(what) + " differs between the lanes of a warp");
    }
  }
  return value;
}

Flow arrive(Warp& w, const Inst& inst, Mask active) {
  w.require_no_multicast(active);
  const int first = first_operand(inst);
  const uint64_t id = uniform(w, inst.arg(first), active, "the number of a barrier");
  if (id >= 16) throw Fault("barrier", "barrier " + std::to_string(id) + ", there are 16");
  Barrier& barrier = w.cta.barriers[id];
  const bool counted = inst.mode[1] != 0;
  uint32_t expected = 0;
  if (counted) {
    const uint64_t threads = uniform(w, inst.arg(first + 1), active, "the count of a barrier");
    if (threads == 0 || threads % kLanes != 0) {
      throw Fault("barrier", "a count of " + std::to_string(threads) + " threads");
    }
    expected = static_cast<uint32_t>(threads / kLanes);
  }
  const bool open = !barrier.waiting.empty() || !barrier.arrived_only.empty();
  if (open && (barrier.all == counted || barrier.expected != expected)) {
    throw Fault("barrier", "warps use barrier " + std::to_string(id) + " with different counts");
  }
  if (!open) barrier.red_count = inst.mode[0] == kRedAnd ? 1 : 0;
  barrier.all = !counted;
  barrier.expected = expected;
  if (inst.mode[0] >= kRedPopc) {
    const Arg& p = inst.arg(first + 1 + counted);
    w.require(p, active, "a predicate");
    for (int l = 0; l < kLanes; ++l) {
      if (!(active >> l & 1)) continue;
      const auto bit = static_cast<uint32_t>(w.lane_value(p, l) & 1);
      if (inst.mode[0] == kRedPopc) barrier.red_count += bit;
      if (inst.mode[0] == kRedAnd) barrier.red_count &= bit;
      if (inst.mode[0] == kRedOr) barrier.red_count |= bit;
    }
  }
  ++w.cta.progress;
  if (inst.mode[0] == kArrive) {
    barrier.arrived_only.push_back(w.index);
    SharedShadow::Clock released{};
    w.cta.shadow.release(w.index, released);
    barrier.arrived_clocks.push_back(released);
    ++w.current->pc;
    w.cta.settle_barriers();
    return Flow::kMoved;
  }
  barrier.waiting.push_back(w.index);
  w.current->blocked = true;
  w.cta.settle_barriers();
  return Flow::kMoved;
}

void decode_barrier(Decoder& d) {
  Inst& inst = d.inst;
  if (d.take("warp")) d.fail("bar.warp has a decoder of its own");
  d.take("cta");
  d.take("aligned");
  const int kind = d.choose({"sync", "arrive", "red"});
  if (kind < 0) d.fail("only sync, arrive and red are supported");
  inst.mode[0] = static_cast<uint32_t>(kind);
  if (kind == 2) {
    const int op = d.choose({"popc", "and", "or"});
    if (op < 0) d.fail("unknown reduction");
    inst.mode[0] = kRedPopc + static_cast<uint32_t>(op);
    d.type();
  }
  const int operands = static_cast<int>(d.text.operands.size());
  inst.mode[1] = kind == 2 ? operands == 4 : operands == 2;
  inst.cls = Class::kBarrier;
  inst.gather = Gather::kWarp;
  inst.sets_defined = true;
  inst.execute = arrive;
  d.results(kind == 2 ? 1 : 0);
  if (kind == 0) d.finish({1, 2});
  if (kind == 1) d.finish({2});
  if (kind == 2) d.finish({3, 4});
}

Flow warp_sync(Warp& w, const Inst&, Mask) {
  w.cta.shadow.warp_sync(w.index);
  return Flow::kNext;
}

void decode_bar(Decoder& d) {
  if (!d.take("warp")) return decode_barrier(d);
  if (!d.take("sync")) d.fail("no .sync");
  d.inst.cls = Class::kWarpOp;
  d.inst.gather = Gather::kMembers;
  d.inst.members = 0;
  d.inst.execute = warp_sync;
  d.results(0);
  d.finish({1});
}

}  // namespace

void Cta::settle_barriers() {
  const auto alive = static_cast<uint32_t>(
      std::count_if(warps.begin(), warps.end(), [](const Warp& w) { return w.live != 0; }));
  for (Barrier& barrier : barriers) {
    const size_t come = barrier.waiting.size() + barrier.arrived_only.size();
    if (come == 0 || come < (barrier.all ? alive : barrier.expected)) continue;
    shadow.barrier(barrier.waiting, barrier.arrived_clocks);
    for (int index : barrier.waiting) {
      // .aligned: all lanes of the warp wait together, as one group.
      Warp& w = warps[index];
      Group& group = w.groups[0];
      const Inst& inst = w.program.insts[group.pc];
      if (inst.mode[0] >= kRedPopc) {
        Lanes out;
        std::fill_n(out.v, kLanes, barrier.red_count);
        w.write(inst.arg(0), group.mask, out.v);
        w.set_defined(inst.arg(0), group.mask, group.mask);
      }
      group.blocked = false;
      ++group.pc;
    }
    barrier = Barrier{};
    ++machine.counters.barriers;
    ++progress;
  }
}

void add_barrier_ops() {
  add_op("bar", decode_bar);
  add_op("barrier", decode_barrier);
}

}  // namespace ptxsim
