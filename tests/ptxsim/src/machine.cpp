#include "machine.h"

#include <algorithm>

#include "async.h"

namespace ptxsim {
namespace {

constexpr uint32_t kQuantum = 256;  // instructions of a warp before the next one runs
constexpr int32_t kPatience = 64;   // backward branches of a group before another one runs
// Rounds of nothing but spinning: after some, what is asynchronous completes; after many, nobody
// can go on. A loop that waits may hold many instructions that let others run.
constexpr int kIdleRounds = 3;
constexpr int kDeadRounds = 10'000;

uint32_t count(const uint32_t* n) {
  const uint64_t product = uint64_t{n[0]} * n[1] * n[2];
  return product > UINT32_MAX ? UINT32_MAX : static_cast<uint32_t>(product);
}

// Shared memory per block that a kernel may ask for, in bytes.
uint32_t shared_limit(const std::string& target) {
  const int arch = std::atoi(target.c_str() + 3);
  switch (arch) {
    case 80:
    case 87:
      return 163 * 1024;
    case 86:
    case 89:
    case 120:
    case 121:
      return 99 * 1024;
    default:
      return arch >= 90 ? 227 * 1024 : 48 * 1024;
  }
}

}  // namespace

// --- Warp
// -----------------------------------------------------------------------------------------

Warp::Warp(Cta& cta, int index, Mask live, const Program& program)
    : cta(cta), index(index), live(live), program(program) {
  groups.push_back({0, live});
  reg.resize(program.registers);
  defined.assign(program.registers, 0);
  local.resize(size_t{kLanes} * program.layout.local_bytes);
  local_written.resize(local.size());
}

uint64_t Warp::lane_value(const Arg& arg, int lane) const {
  switch (arg.kind) {
    case Arg::Kind::kRegister: {
      const uint64_t value = reg[arg.reg].v[lane];
      return arg.negated ? value ^ 1 : value;
    }
    case Arg::Kind::kImmediate:
      return arg.value;
    case Arg::Kind::kNone:
      return 0;
    case Arg::Kind::kSpecial:
      break;
  }
  const Machine& m = cta.machine;
  const uint32_t* block = m.launch.block;
  const uint32_t thread = static_cast<uint32_t>(index * kLanes + lane);
  switch (arg.special) {
    case Special::kTidX:
      return thread % block[0];
    case Special::kTidY:
      return thread / block[0] % block[1];
    case Special::kTidZ:
      return thread / block[0] / block[1];
    case Special::kNtidX:
    case Special::kNtidY:
    case Special::kNtidZ:
      return block[static_cast<int>(arg.special) - static_cast<int>(Special::kNtidX)];
    case Special::kCtaidX:
    case Special::kCtaidY:
    case Special::kCtaidZ:
      return cta.id[static_cast<int>(arg.special) - static_cast<int>(Special::kCtaidX)];
    case Special::kNctaidX:
    case Special::kNctaidY:
    case Special::kNctaidZ:
      return m.launch.grid[static_cast<int>(arg.special) - static_cast<int>(Special::kNctaidX)];
    case Special::kLaneid:
      return static_cast<uint64_t>(lane);
    case Special::kWarpid:
      return static_cast<uint64_t>(index);
    case Special::kNwarpid:
      return (count(block) + kLanes - 1) / kLanes;
    case Special::kClusterNctaRank:
      return 1;
    case Special::kLaneMaskEq:
      return 1u << lane;
    case Special::kLaneMaskLt:
      return (1u << lane) - 1;
    case Special::kLaneMaskLe:
      return (2ull << lane) - 1;
    case Special::kLaneMaskGt:
      return static_cast<uint32_t>(~((2ull << lane) - 1));
    case Special::kLaneMaskGe:
      return static_cast<uint32_t>(~((1u << lane) - 1));
    case Special::kClock:
    case Special::kGlobalTimer:
      return m.counters.warp_instructions;
    case Special::kDynamicSharedBytes:
      return m.launch.shared_bytes;
    case Special::kTotalSharedBytes:
      return m.shared_bytes();
    default:
      return 0;
  }
}

const uint64_t* Warp::read(const Arg& arg, Lanes& room) const {
  if (arg.kind == Arg::Kind::kRegister && !arg.negated) return reg[arg.reg].v;
  if (arg.kind == Arg::Kind::kImmediate) {
    std::fill_n(room.v, kLanes, arg.value);
  } else {
    for (int l = 0; l < kLanes; ++l) room.v[l] = lane_value(arg, l);
  }
  return room.v;
}

Mask Warp::defined_of(const Arg& arg) const {
  return arg.kind == Arg::Kind::kRegister ? defined[arg.reg] : kAllLanes;
}

void Warp::write(const Arg& arg, Mask active, const uint64_t* values) {
  if (arg.kind == Arg::Kind::kNone) return;
  uint64_t* to = reg[arg.reg].v;
  if (active == kAllLanes) {
    std::copy_n(values, kLanes, to);
  } else {
    for (int l = 0; l < kLanes; ++l) to[l] = active >> l & 1 ? values[l] : to[l];
  }
}

void Warp::write_predicate(int32_t r, Mask active, Mask value) {
  uint64_t* to = reg[r].v;
  for (int l = 0; l < kLanes; ++l) to[l] = active >> l & 1 ? value >> l & 1 : to[l];
}

Mask Warp::predicate(int32_t r) const {
  Mask mask = 0;
  const uint64_t* from = reg[r].v;
  for (int l = 0; l < kLanes; ++l) mask |= static_cast<Mask>(from[l] & 1) << l;
  return mask;
}

void Warp::require(const Arg& arg, Mask active, const char* what) const {
  if (arg.kind != Arg::Kind::kRegister) return;
  const Mask missing = active & ~defined[arg.reg];
  if (missing != 0) {
    throw Fault("uninitialised",
                std::string(what) + " in register " + program.function->registers[arg.reg].name +
                    ", which depends on something never written, in lanes " + hex(missing));
  }
}

void Warp::set_defined(const Arg& arg, Mask active, Mask lanes) {
  if (arg.kind != Arg::Kind::kRegister) return;
  defined[arg.reg] = (defined[arg.reg] & ~active) | (lanes & active);
}

void Warp::addresses(const Inst& inst, int operand, Mask active, uint64_t* at) const {
  const Arg& base = inst.arg(operand);
  require(base, active, "an address");
  Lanes room;
  const uint64_t* from = read(base, room);
  const auto offset = static_cast<uint64_t>(inst.operands[operand].offset);
  for (int l = 0; l < kLanes; ++l) at[l] = from[l] + offset;
}

namespace {

// A generic address tells its space; the specific ones count in 32 bits.
Space resolve(Space space, uint64_t& at) {
  if (space == Space::kGeneric) {
    switch (at >> 56) {
      case kSharedWindow >> 56:
        space = Space::kShared;
        break;
      case kLocalWindow >> 56:
        space = Space::kLocal;
        break;
      case kParamWindow >> 56:
        space = Space::kParam;
        break;
      default:
        return Space::kGlobal;
    }
  }
  if (space == Space::kShared || space == Space::kLocal || space == Space::kParam) {
    at &= 0xffffffffu;
  }
  return space;
}

template <class Bytes>
auto* checked(Bytes& bytes, uint64_t begin, uint64_t size, uint64_t at, uint32_t n,
              const char* name) {
  if (at < begin || at - begin > size || size - (at - begin) < n) {
    throw Fault("bounds", std::string(name) + " access of " + std::to_string(n) + " bytes at " +
                              hex(at) + ", beyond " + hex(begin) + " + " + std::to_string(size));
  }
  if (at % n != 0) {
    throw Fault("alignment",
                std::string(name) + " access of " + std::to_string(n) + " bytes at " + hex(at));
  }
  return bytes.data();
}

}  // namespace

const uint8_t* Warp::load(Space space, int lane, uint64_t at, uint32_t bytes, bool constant,
                          bool* is_defined) {
  Machine& m = cta.machine;
  *is_defined = true;
  switch (resolve(space, at)) {
    case Space::kShared: {
      const uint8_t* from = cta.shared_at(static_cast<uint32_t>(at), bytes, bytes);
      cta.shadow.read(index, lane, static_cast<uint32_t>(at), bytes);
      *is_defined = cta.shadow.initialised(static_cast<uint32_t>(at), bytes);
      return from;
    }
    case Space::kLocal: {
      const uint32_t size = program.layout.local_bytes;
      const size_t i = static_cast<size_t>(lane) * size + at;
      const uint8_t* from = checked(local, 0, size, at, bytes, "local") + i;
      const auto written = local_written.begin() + static_cast<int64_t>(i);
      *is_defined = std::all_of(written, written + bytes, [](uint8_t x) { return x != 0; });
      return from;
    }
    case Space::kParam:
      return checked(m.launch.params, 0, m.launch.params.size(), at, bytes, "param") + at;
    default: {
      const uint8_t* from = m.memory.read(at, bytes, bytes, cta.index, constant);
      *is_defined = m.memory.initialised(at, bytes);
      return from;
    }
  }
}

uint8_t* Warp::store(Space space, int lane, uint64_t at, uint32_t bytes) {
  Machine& m = cta.machine;
  switch (resolve(space, at)) {
    case Space::kShared: {
      uint8_t* to = cta.shared_at(static_cast<uint32_t>(at), bytes, bytes);
      cta.shadow.write(index, lane, static_cast<uint32_t>(at), bytes);
      return to;
    }
    case Space::kLocal: {
      const uint32_t size = program.layout.local_bytes;
      const size_t i = static_cast<size_t>(lane) * size + at;
      uint8_t* to = checked(local, 0, size, at, bytes, "local") + i;
      std::fill_n(local_written.begin() + static_cast<int64_t>(i), bytes, uint8_t{1});
      return to;
    }
    case Space::kParam:
      throw Fault("bounds", "store to the parameters of the kernel");
    default:
      ++cta.progress;
      return m.memory.write(at, bytes, bytes, cta.index);
  }
}

uint8_t* Warp::atomic(Space space, int lane, uint64_t at, uint32_t bytes) {
  ++cta.progress;
  switch (resolve(space, at)) {
    case Space::kShared: {
      uint8_t* to = cta.shared_at(static_cast<uint32_t>(at), bytes, bytes);
      if (!cta.shadow.initialised(static_cast<uint32_t>(at), bytes)) {
        throw Fault("uninitialised",
                    "atomic on shared memory that was never written, at " + hex(at));
      }
      cta.shadow.atomic(index, lane, static_cast<uint32_t>(at), bytes);
      return to;
    }
    case Space::kGlobal:
      return cta.machine.memory.atomic(at, bytes, bytes, cta.index);
    default:
      throw Fault("bounds", "atomic on memory that is neither global nor shared");
  }
}

void Warp::branch(Mask taken, int32_t target) {
  Group& group = *current;
  if (target <= group.pc) ++group.loops;
  if (taken == group.mask) {
    group.pc = target;
    return;
  }
  const Group split{target, taken, false, 0, group.loops};
  group.mask &= ~taken;
  ++group.pc;
  groups.push_back(split);  // moves `group`
}

void Warp::exit(Mask lanes) {
  require_no_multicast(lanes);
  live &= ~lanes;
  current->mask &= ~lanes;
  ++current->pc;
  groups.erase(
      std::remove_if(groups.begin(), groups.end(), [](const Group& g) { return g.mask == 0; }),
      groups.end());
  current = nullptr;
  ++cta.progress;
  if (live == 0) cta.settle_barriers();
}

void Warp::require_no_multicast(Mask lanes) const {
  if (lanes & multicast) {
    throw Fault("multicast", "multicast stores without a fence.proxy.alias behind them");
  }
}

void Warp::warn(const std::string& what) { ++cta.machine.warnings[what]; }

// --- Cta
// ------------------------------------------------------------------------------------------

Cta::Cta(Machine& machine, uint32_t index)
    : machine(machine),
      index(index),
      shared(machine.shared_bytes()),
      shadow(static_cast<int>((count(machine.launch.block) + kLanes - 1) / kLanes), kSharedBase,
             machine.shared_bytes(), machine.launch.checks) {
  const uint32_t* grid = machine.launch.grid;
  id[0] = index % grid[0];
  id[1] = index / grid[0] % grid[1];
  id[2] = index / grid[0] / grid[1];
  const uint32_t threads = count(machine.launch.block);
  const int n = static_cast<int>((threads + kLanes - 1) / kLanes);
  warps.reserve(n);
  for (int w = 0; w < n; ++w) {
    const uint32_t lanes = std::min<uint32_t>(kLanes, threads - w * kLanes);
    warps.emplace_back(*this, w, lanes == kLanes ? kAllLanes : (1u << lanes) - 1, machine.program);
  }
}

uint8_t* Cta::shared_at(uint32_t at, uint32_t bytes, uint32_t align) {
  if (at < kSharedBase || at - kSharedBase > shared.size() ||
      shared.size() - (at - kSharedBase) < bytes) {
    throw Fault("bounds", "shared access of " + std::to_string(bytes) + " bytes at offset " +
                              std::to_string(static_cast<int64_t>(at) - kSharedBase) + " of " +
                              std::to_string(shared.size()));
  }
  if (at % align != 0) {
    throw Fault("alignment",
                "shared access at " + hex(at) + ", not a multiple of " + std::to_string(align));
  }
  return shared.data() + (at - kSharedBase);
}

uint64_t Cta::defer(std::function<void()> work) {
  if (machine.launch.policy == Policy::kEager) {
    work();
    return ++tickets_;
  }
  pending_.emplace_back(++tickets_, std::move(work));
  return tickets_;
}

void Cta::finish(uint64_t ticket) {
  for (auto it = pending_.begin(); it != pending_.end(); ++it) {
    if (it->first != ticket) continue;
    const auto work = std::move(it->second);
    pending_.erase(it);
    ++progress;
    work();
    return;
  }
}

bool Cta::finish_one(bool oldest) {
  if (pending_.empty()) return false;
  finish(pending_[oldest ? 0 : machine.random() % pending_.size()].first);
  return true;
}

bool Cta::done() const {
  return std::all_of(warps.begin(), warps.end(), [](const Warp& w) { return w.live == 0; });
}

namespace {

// Lets groups that are at the same instruction go on together, and picks the one to execute:
// the smallest program counter, unless it has looped for long. Null: all wait.
Group* pick(std::vector<Group>& groups) {
  for (size_t i = 0; i + 1 < groups.size(); ++i) {
    for (size_t j = i + 1; j < groups.size();) {
      if (groups[i].pc == groups[j].pc && !groups[i].blocked && !groups[j].blocked) {
        groups[i].mask |= groups[j].mask;
        groups[i].loops = std::max(groups[i].loops, groups[j].loops);
        groups.erase(groups.begin() + static_cast<int64_t>(j));
      } else {
        ++j;
      }
    }
  }
  Group* best = nullptr;
  for (Group& g : groups) {
    if (g.blocked || (g.gathered == g.mask)) continue;
    const bool better = best == nullptr || std::make_pair(g.loops > kPatience, g.pc) <
                                               std::make_pair(best->loops > kPatience, best->pc);
    if (better) best = &g;
  }
  if (best != nullptr && best->loops > kPatience) {
    for (Group& g : groups) g.loops = 0;
  }
  return best;
}

}  // namespace

Cta::Ran Cta::run_warp(Warp& warp, uint32_t quantum) {
  Machine& m = machine;
  Ran ran = Ran::kNothing;
  for (Group& g : warp.groups) g.gathered = 0;  // whoever exited meanwhile is not awaited
  for (uint32_t n = 0; n < quantum; ++n) {
    Group* group = warp.groups.size() == 1 && !warp.groups[0].blocked && !warp.groups[0].gathered
                       ? warp.groups.data()
                       : pick(warp.groups);
    if (group == nullptr) return ran;
    const int32_t pc = group->pc;
    const Inst& inst = warp.program.insts[pc];
    Mask active = group->mask;
    const bool divergent = active != warp.live;
    try {
      if (inst.guard >= 0) {
        const Arg guard{Arg::Kind::kRegister, false, inst.guard, 0, Special::kZero, 1};
        warp.require(guard, active, "a predicate");
        const Mask p = warp.predicate(inst.guard);
        active &= inst.guard_negated ? ~p : p;
      }
      if (active == 0) {
        ++group->pc;
        ++m.counters.warp_instructions;
        continue;
      }
      if (inst.gather != Gather::kNone) {
        Mask need = warp.live;
        if (inst.gather == Gather::kMembers) {
          const Arg& members = inst.arg(inst.members);
          warp.require(members, active, "a member mask");
          const int first = __builtin_ctz(active);
          need = static_cast<Mask>(warp.lane_value(members, first));
          if (!(need >> first & 1)) {
            throw Fault("divergence", "a lane that is not in its own member mask " + hex(need));
          }
          if (need & ~warp.live) {
            throw Fault("divergence",
                        "member mask " + hex(need) +
                            " names lanes that have exited: " + hex(need & ~warp.live));
          }
          for (int l = 0; l < kLanes; ++l) {
            // Lanes with another mask form their own rendezvous.
            if ((active >> l & 1) && static_cast<Mask>(warp.lane_value(members, l)) != need) {
              active &= ~(1u << l);
            }
          }
        }
        if ((active & need) != need) {
          group->gathered = group->mask;
          continue;
        }
        if (active != group->mask) {  // those that skip it, or wait for others, stay behind
          Mask skip = 0;
          if (inst.guard >= 0) {
            const Mask p = warp.predicate(inst.guard);
            skip = group->mask & (inst.guard_negated ? p : ~p);
          }
          const Mask rest = group->mask & ~active & ~skip;
          group->mask = active;
          if (skip != 0) warp.groups.push_back({pc + 1, skip});
          if (rest != 0) warp.groups.push_back({pc, rest});
          group = &*std::find_if(warp.groups.begin(), warp.groups.end(),
                                 [&](const Group& g) { return g.mask == active; });
        }
      }
      warp.current = group;
      if (!warp.busy.empty()) check_busy(warp, inst);
      const Flow flow = inst.execute(warp, inst, active);
      ++m.counters.warp_instructions;
      const auto lanes = static_cast<uint64_t>(__builtin_popcount(active));
      m.counters.thread_instructions += lanes;
      if (inst.cls == Class::kSpecial) m.counters.special += lanes;
      ++m.counters.warp_class[static_cast<int>(inst.cls)];
      m.counters.divergent += divergent;
      if (!inst.sets_defined && !inst.written.empty()) {
        Mask defined = kAllLanes;
        for (int32_t r : inst.read) defined &= warp.defined[r];
        for (int32_t r : inst.written) {
          warp.defined[r] = (warp.defined[r] & ~active) | (defined & active);
        }
      }
      switch (flow) {
        case Flow::kNext:
          ++warp.current->pc;
          break;
        case Flow::kYield:
          ++warp.current->pc;
          warp.current->loops = kPatience + 1;
          return ran == Ran::kMuch ? ran : Ran::kSpun;
        case Flow::kMoved:
          break;
        case Flow::kWait:
          warp.current->blocked = true;
          ran = Ran::kMuch;
          break;
      }
    } catch (const Fault& fault) {
      throw Fault(fault.kind, std::string(fault.what()) + "\n  " + m.where(warp, pc, active));
    }
  }
  if (m.counters.warp_instructions > m.launch.max_instructions) {
    throw Fault("runaway", "no end after " + std::to_string(m.counters.warp_instructions) +
                               " instructions\n" + state());
  }
  return Ran::kMuch;
}

bool Cta::round(uint32_t quantum) {
  const uint64_t before = progress;
  bool busy = false;
  std::vector<int> order(warps.size());
  for (size_t w = 0; w < order.size(); ++w) order[w] = static_cast<int>(w);
  if (machine.launch.seed != 0) std::shuffle(order.begin(), order.end(), machine.random);
  for (int w : order) {
    if (warps[w].live == 0) continue;
    busy |= run_warp(warps[w], quantum) == Ran::kMuch;
    if (machine.launch.policy == Policy::kRandom && machine.random() % 4 == 0) finish_one(false);
  }
  return busy || progress != before;
}

std::string Cta::state() const {
  std::string text;
  for (const Warp& w : warps) {
    for (const Group& g : w.groups) {
      text += std::string(g.blocked    ? "  waits "
                          : g.gathered ? "  gathers "
                                       : "  runs ") +
              machine.where(w, g.pc, g.mask) + "\n";
    }
  }
  for (int b = 0; b < 16; ++b) {
    const Barrier& barrier = barriers[b];
    if (barrier.waiting.empty() && barrier.arrived_only.empty()) continue;
    text += "  barrier " + std::to_string(b) + ": " +
            std::to_string(barrier.waiting.size() + barrier.arrived_only.size()) +
            (barrier.all ? " warps of all" : " warps of " + std::to_string(barrier.expected)) +
            "\n";
  }
  for (const auto& [at, m] : mbarriers) {
    text += "  mbarrier at " + hex(at) + ": phase " + std::to_string(m.phase) + ", pending " +
            std::to_string(m.pending) + " of " + std::to_string(m.expected) + ", bytes " +
            std::to_string(m.tx) + "\n";
  }
  return text;
}

// --- Machine
// --------------------------------------------------------------------------------------

Machine::Machine(const Program& program, Launch l, std::vector<Allocation> allocations)
    : program(program), launch(std::move(l)), memory(launch.checks), random(launch.seed) {
  for (Allocation& a : allocations) memory.add(std::move(a));
  for (const auto& [v, data] : program.data) {
    const Variable& var = program.module->variables[v];
    memory.add({var.name,
                reinterpret_cast<uint64_t>(data.data()),
                var.bytes,
                var.space == Space::kGlobal,
                true,
                {},
                {},
                {},
                {},
                {}});
  }
}

void Machine::check_launch() const {
  const auto fail = [](const std::string& what) { throw Fault("launch", what); };
  const uint32_t threads = count(launch.block);
  if (threads == 0 || threads > 1024) fail("a block of " + std::to_string(threads) + " threads");
  if (count(launch.grid) == 0) fail("an empty grid");
  if (launch.grid[0] > INT32_MAX || launch.grid[1] > 65535 || launch.grid[2] > 65535 ||
      launch.block[2] > 64) {
    fail("a grid of more than 2147483647 x 65535 x 65535 blocks, or a block of more than 64 in z");
  }
  const uint32_t* most = program.function->maxntid;
  if (most[0] != 0 && threads > most[0] * std::max(1u, most[1]) * std::max(1u, most[2])) {
    fail("a block of " + std::to_string(threads) + " threads, more than .maxntid allows");
  }
  const uint32_t limit = shared_limit(program.module->target);
  if (shared_bytes() > limit) {
    fail(std::to_string(shared_bytes()) + " bytes of shared memory; " + program.module->target +
         " has " + std::to_string(limit));
  }
  if (launch.params.size() != program.layout.param_bytes) {
    fail("parameters of " + std::to_string(launch.params.size()) + " bytes, expected " +
         std::to_string(program.layout.param_bytes));
  }
}

void Machine::run() {
  check_launch();
  const uint32_t blocks = count(launch.grid);
  const uint32_t batch = launch.coresident ? blocks : 1;
  for (uint32_t begin = 0; begin < blocks; begin += batch) {
    std::vector<std::unique_ptr<Cta>> ctas;
    for (uint32_t b = begin; b < std::min(blocks, begin + batch); ++b) {
      ctas.push_back(std::make_unique<Cta>(*this, b));
    }
    int idle = 0;
    while (!ctas.empty()) {
      bool busy = false;
      for (auto& cta : ctas) busy |= cta->round(kQuantum);
      for (auto& cta : ctas) {
        if (!cta->done()) continue;
        while (cta->finish_one(true)) {
        }
        check_finished(*cta);
      }
      const size_t before = ctas.size();
      ctas.erase(std::remove_if(ctas.begin(), ctas.end(), [](const auto& c) { return c->done(); }),
                 ctas.end());
      idle = busy || ctas.size() != before ? 0 : idle + 1;
      if (idle < kIdleRounds) continue;
      // Everybody waits: only an asynchronous operation can go on.
      const bool any = std::any_of(ctas.begin(), ctas.end(), [&](auto& cta) {
        return cta->finish_one(launch.policy != Policy::kRandom);
      });
      if (any) idle = 0;
      if (idle > kDeadRounds) stuck(ctas);
    }
  }
}

void Machine::stuck(const std::vector<std::unique_ptr<Cta>>& ctas) const {
  std::string text;
  bool divergent = false;
  for (const auto& cta : ctas) {
    text += cta->state();
    for (const Warp& w : cta->warps) {
      const auto gathers = [](const Group& g) { return g.gathered != 0; };
      divergent |= w.groups.size() > 1 && std::any_of(w.groups.begin(), w.groups.end(), gathers);
    }
  }
  if (divergent) throw Fault("divergence", "lanes of a warp wait at different places\n" + text);
  throw Fault("deadlock", "nobody can go on\n" + text);
}

std::string Machine::where(const Warp& warp, int32_t pc, Mask lanes) const {
  const uint32_t* id = warp.cta.id;
  std::string text = "block (" + std::to_string(id[0]) + ", " + std::to_string(id[1]) + ", " +
                     std::to_string(id[2]) + ") warp " + std::to_string(warp.index) + " lanes " +
                     hex(lanes);
  if (pc < 0 || pc >= static_cast<int32_t>(program.insts.size())) return text + " at the end";
  const Instruction& inst = *program.insts[pc].text;
  text += ", PTX line " + std::to_string(inst.line) + ": " + inst.text;
  const auto file = program.module->files.find(inst.source_file);
  if (file != program.module->files.end()) {
    const size_t slash = file->second.rfind('/');
    text += " [" + file->second.substr(slash == std::string::npos ? 0 : slash + 1) + ":" +
            std::to_string(inst.source_line) + "]";
  }
  return text;
}

}  // namespace ptxsim
