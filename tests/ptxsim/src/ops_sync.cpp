// Fences, and the small instructions of warp-specialised kernels: elect, setmaxnreg, nanosleep,
// griddepcontrol.

#include <algorithm>

#include "async.h"

namespace ptxsim {

void add_sync_ops();

namespace {

Flow nothing(Warp&, const Inst&, Mask) { return Flow::kNext; }

// The initialised mbarriers of this warp are visible to copies from here on.
void fence_mbarriers(Warp& w) {
  if (!w.cta.async) return;
  for (auto& [at, made] : w.cta.async->made) made.fenced = made.fenced || made.warp == w.index;
}

Flow fence_mbarrier_init(Warp& w, const Inst&, Mask) {
  fence_mbarriers(w);
  return Flow::kNext;
}

// fence.proxy.async: what this thread wrote, or learnt of, is ordered before asynchronous accesses
// that it issues or releases to others.
Flow fence_proxy_async(Warp& w, const Inst&, Mask active) {
  w.cta.shadow.proxy_fence(w.index, active);
  fence_mbarriers(w);
  return Flow::kNext;
}

// Multicast addresses are aliases of the memory behind them.
Flow fence_proxy_alias(Warp& w, const Inst&, Mask active) {
  w.multicast &= ~active;
  return Flow::kNext;
}

// PTX ISA 9.7.13.4. Between the threads of a block, order comes from barriers alone; fences that
// order other blocks' accesses change no value here, because those are checked by address.
void decode_fence(Decoder& d) {
  d.inst.cls = Class::kBarrier;
  d.results(0);
  d.inst.execute = nothing;
  if (d.take("proxy")) {
    if (d.take("alias")) {
      d.inst.execute = fence_proxy_alias;
    } else if (d.take("async")) {
      const int space = d.choose({"global", "shared::cta", "shared::cluster"});
      if (space != 0) d.inst.execute = fence_proxy_async;
    } else {
      d.fail("no fence.proxy but .alias and .async is supported");
    }
  } else if (d.take("mbarrier_init")) {
    if (!d.take("release") || !d.take("cluster")) d.fail("no .release.cluster");
    d.inst.execute = fence_mbarrier_init;
  } else {
    d.choose({"sc", "acq_rel", "acquire", "release"});
    if (d.choose({"cta", "cluster", "gpu", "sys"}) < 0) d.fail("no scope");
  }
  d.finish({0});
}

void decode_membar(Decoder& d) {
  d.inst.cls = Class::kBarrier;
  d.results(0);
  d.inst.execute = nothing;
  if (d.choose({"cta", "gl", "sys"}) < 0) d.fail("no scope");
  d.finish({0});
}

// elect.sync d|p, mask: one leader, unspecified but always the same; here the lowest lane.
Flow elect(Warp& w, const Inst& inst, Mask active) {
  const int leader = __builtin_ctz(active);
  Lanes out;
  std::fill_n(out.v, kLanes, static_cast<uint64_t>(leader));
  w.write(inst.arg(0), active, out.v);
  if (inst.operands[0].pair >= 0) w.write_predicate(inst.operands[0].pair, active, 1u << leader);
  return Flow::kNext;
}

void decode_elect(Decoder& d) {
  if (!d.take("sync")) d.fail("no .sync");
  d.inst.execute = elect;
  d.inst.cls = Class::kWarpOp;
  d.inst.gather = Gather::kMembers;
  d.inst.members = 1;
  d.finish({2});
}

// A block's registers are those that it was launched with, and warps exchange them through a pool
// (PTX ISA 9.7.19.5). How many each thread starts with is in the machine code; assumed: as many as
// fit, which is what ptxas gives a kernel with .maxntid and setmaxnreg.
constexpr uint32_t kRegisters = 65536, kMostRegisters = 248;

uint32_t initial_registers(uint32_t threads) {
  return std::min(kMostRegisters, kRegisters / threads / 8 * 8);
}

Flow give_registers(Warp& w, const Inst& inst, Mask) {
  async_of(w).registers = static_cast<uint32_t>(inst.arg(0).value);
  ++w.cta.progress;
  return Flow::kNext;
}

Flow take_registers(Warp& w, const Inst& inst, Mask) {
  const auto warps = static_cast<uint32_t>(w.cta.warps.size());
  const uint32_t initial = initial_registers(warps * kLanes);
  const auto wanted = static_cast<uint32_t>(inst.arg(0).value);
  uint32_t taken = wanted;
  for (const Warp& other : w.cta.warps) {
    const uint32_t now = async_of(w.cta).warp[other.index].registers;
    if (other.index != w.index) taken += now == 0 ? initial : now;
  }
  if (taken > warps * initial) {
    --w.current->pc;  // tries again
    return Flow::kYield;
  }
  async_of(w).registers = wanted;
  ++w.cta.progress;
  return Flow::kNext;
}

void decode_setmaxnreg(Decoder& d) {
  const int form = d.choose({"inc", "dec"});
  if (form < 0 || !d.take("sync") || !d.take("aligned") || !d.take("u32")) {
    d.fail("setmaxnreg is .inc or .dec, .sync.aligned.u32");
  }
  d.inst.execute = form == 0 ? take_registers : give_registers;
  d.inst.gather = Gather::kWarp;
  d.results(0);
  d.finish({1});
  const Arg& count = d.inst.arg(0);
  if (count.kind != Arg::Kind::kImmediate || count.value < 24 || count.value > 256 ||
      count.value % 8 != 0) {
    d.fail("the register count must be a multiple of 8 from 24 to 256");
  }
}

Flow nanosleep(Warp&, const Inst&, Mask) { return Flow::kYield; }

void decode_nanosleep(Decoder& d) {
  if (!d.take("u32")) d.fail("no .u32");
  d.inst.execute = nanosleep;
  d.inst.cls = Class::kControl;
  d.results(0);
  d.finish({1});
}

// One grid at a time: what came before is complete.
void decode_griddepcontrol(Decoder& d) {
  if (d.choose({"wait", "launch_dependents"}) < 0) d.fail("no .wait or .launch_dependents");
  d.inst.execute = nothing;
  d.inst.cls = Class::kControl;
  d.results(0);
  d.finish({0});
}

}  // namespace

void add_sync_ops() {
  add_op("fence", decode_fence);
  add_op("membar", decode_membar);
  add_op("elect", decode_elect);
  add_op("setmaxnreg", decode_setmaxnreg);
  add_op("nanosleep", decode_nanosleep);
  add_op("griddepcontrol", decode_griddepcontrol);
}

}  // namespace ptxsim
