// One launch being executed: blocks, warps, groups of lanes, and what they wait for.
//
// Lanes are independent, as on the hardware since sm_70: a warp is a set of groups of lanes that
// share a program counter. A branch splits a group; groups that meet at the same instruction merge;
// the group with the smallest program counter goes first, which makes them meet soon. Instructions
// that need several lanes (shuffles, matrix products, barriers) wait until these have arrived, so
// nothing but speed depends on how groups merge.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "counters.h"
#include "fault.h"
#include "memory.h"
#include "program.h"
#include "shadow.h"

namespace ptxsim {

class Machine;
class Cta;
class TensorMemory;

// When asynchronous operations move their data.
enum class Policy : uint8_t {
  kEager,   // at once
  kLate,    // when somebody waits for them, or nothing else can run
  kRandom,  // at any time in between
};

struct Launch {
  uint32_t grid[3] = {1, 1, 1};
  uint32_t block[3] = {1, 1, 1};
  uint32_t shared_bytes = 0;  // dynamic
  std::vector<uint8_t> params;
  Policy policy = Policy::kEager;
  uint64_t seed = 0;               // 0: warps in order; else in random order
  bool checks = true;              // shadow memory: races, uninitialised reads
  bool coresident = false;         // all blocks run at once
  bool truncate_products = false;  // matrix products round as tensor cores are believed to
  uint64_t max_instructions = 4'000'000'000;  // per launch, warp-level
};

struct alignas(64) Lanes {
  uint64_t v[kLanes];
};

struct Group {
  int32_t pc = 0;
  Mask mask = 0;
  bool blocked = false;  // at a barrier, which moves it on
  Mask gathered = 0;     // lanes that were not enough for the instruction at pc; 0: not tried
  int32_t loops = 0;     // backward branches since others could run
};

class Warp {
 public:
  Warp(Cta& cta, int index, Mask live, const Program& program);

  Cta& cta;
  const int index;  // in the block
  Mask live;        // lanes that have not exited
  const Program& program;
  std::vector<Group> groups;
  std::vector<Lanes> reg;
  std::vector<Mask> defined;  // per register
  Group* current = nullptr;   // whose instruction is executing
  // Per register, what an open matrix product or load still does with it (async.h); empty: nothing.
  std::vector<uint8_t> busy;
  Mask multicast = 0;  // lanes with multicast stores and no fence.proxy.alias since
  std::vector<uint8_t> local, local_written;  // local_bytes per lane, lane after lane

  // --- operands
  // ------------------------------------------------------------------------------------ The 32
  // values of an operand: of the register itself, or written to `room`.
  const uint64_t* read(const Arg& arg, Lanes& room) const;
  uint64_t lane_value(const Arg& arg, int lane) const;
  Mask defined_of(const Arg& arg) const;  // lanes whose value is defined
  // Sets register `arg.reg` (kNone: discards) for the lanes of `active`.
  void write(const Arg& arg, Mask active, const uint64_t* values);
  void write_predicate(int32_t reg, Mask active, Mask value);
  Mask predicate(int32_t reg) const;  // as a mask
  // Faults unless the operand is defined in all lanes of `active`: for addresses, branches, masks.
  void require(const Arg& arg, Mask active, const char* what) const;
  void set_defined(const Arg& arg, Mask active, Mask defined_lanes);

  // --- memory
  // -------------------------------------------------------------------------------------- Byte
  // addresses of address operand `operand` (base + offset), per lane. For `.shared` 32-bit offsets,
  // for `.local` and `.param` offsets, for `.generic` with the window of the space.
  void addresses(const Inst& inst, int operand, Mask active, uint64_t* at) const;
  // One lane's access to any space. A load also tells whether all bytes are defined.
  const uint8_t* load(Space space, int lane, uint64_t at, uint32_t bytes, bool constant,
                      bool* is_defined);
  uint8_t* store(Space space, int lane, uint64_t at, uint32_t bytes);
  uint8_t* atomic(Space space, int lane, uint64_t at, uint32_t bytes);

  // --- control
  // ------------------------------------------------------------------------------------- Both are
  // for the current group; the handler returns Flow::kMoved.
  void branch(Mask taken, int32_t target);
  void exit(Mask lanes);
  void warn(const std::string& what);
  // Faults if lanes that tell others of their stores, or end, have multicast ones without a fence.
  void require_no_multicast(Mask lanes) const;
};

// A bar.sync barrier.
struct Barrier {
  std::vector<int> waiting;       // warps that arrived and wait
  std::vector<int> arrived_only;  // bar.arrive
  std::vector<SharedShadow::Clock> arrived_clocks;
  uint32_t expected = 0;   // in warps; 0: nobody has come yet
  bool all = false;        // without a thread count: every warp that has not exited
  uint32_t red_count = 0;  // bar.red
};

// An mbarrier object, by its shared address.
struct Mbarrier {
  int entity = 0;  // of the vector clocks
  uint32_t expected = 0;
  int64_t pending = 0;
  int64_t tx = 0;
  uint32_t phase = 0;              // phases completed
  SharedShadow::Clock arriving{};  // what those who arrived in this phase have released
  SharedShadow::Clock done{};      // what the completed phases released: a wait acquires it
};

class Cta {
 public:
  Cta(Machine& machine, uint32_t index);

  Machine& machine;
  const uint32_t index;  // linear in the grid
  uint32_t id[3];
  std::vector<uint8_t> shared;  // from kSharedBase on
  SharedShadow shadow;
  std::vector<Warp> warps;
  Barrier barriers[16];
  std::map<uint32_t, Mbarrier> mbarriers;
  int mbarriers_made = 0;
  // Anything that somebody else may be waiting for: with none of it, spinning is a deadlock.
  uint64_t progress = 0;

  // Host pointer into shared memory after a bounds and an alignment check; no shadow.
  uint8_t* shared_at(uint32_t at, uint32_t bytes, uint32_t align);

  // --- asynchronous operations
  // -------------------------------------------------------------------- Queues the data movement
  // `work` (or does it at once, by policy) and returns its ticket.
  uint64_t defer(std::function<void()> work);
  void finish(uint64_t ticket);  // does it now, if it was not done yet
  bool finish_one(bool oldest);  // does any; false if there is none

  // Runs up to `quantum` instructions per warp, once around. False if nothing but waiting happened.
  bool round(uint32_t quantum);
  bool done() const;
  // A warp arrives at a bar.sync barrier or exits: completes the barriers that wait for no more.
  void settle_barriers();
  // Why nothing can go on: the state of every warp and barrier.
  std::string state() const;

  // Per thread: open cp.async copies, see ops_copy.cpp; per warp: wgmma, bulk groups.
  struct AsyncState;
  std::shared_ptr<AsyncState> async;
  std::shared_ptr<TensorMemory> tensor;  // none before the first tcgen05 instruction

 private:
  enum class Ran : uint8_t { kNothing, kSpun, kMuch };
  Ran run_warp(Warp& warp, uint32_t quantum);
  std::deque<std::pair<uint64_t, std::function<void()>>> pending_;
  uint64_t tickets_ = 0;
};

class Machine {
 public:
  Machine(const Program& program, Launch launch, std::vector<Allocation> allocations);

  void run();  // throws Fault, decorated with where it happened

  const Program& program;
  Launch launch;
  Memory memory;
  Counters counters;
  std::map<std::string, uint64_t> warnings;  // text -> how often
  std::string printed;                       // by vprintf
  std::mt19937_64 random;

  uint32_t shared_bytes() const { return program.layout.static_shared + launch.shared_bytes; }

  // Where the warp is, for reports: block, warp, PTX line and text, source line.
  std::string where(const Warp& warp, int32_t pc, Mask lanes) const;

 private:
  void check_launch() const;
  [[noreturn]] void stuck(const std::vector<std::unique_ptr<Cta>>& ctas) const;
};

}  // namespace ptxsim
