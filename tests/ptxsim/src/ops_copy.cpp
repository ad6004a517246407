// cp.async: copies of 4 to 16 bytes per thread from global to shared memory, that the thread waits
// for in groups (PTX ISA 9.7.9.25.3). Bulk copies are in bulk_copy.cpp and tensor_copy.cpp; one
// opcode, `cp`, has them all.

#include <cstring>

#include "copy.h"

namespace ptxsim {

void move(const Pieces& pieces) {
  for (const Piece& p : pieces) {
    if (p.from == nullptr) {
      std::memset(p.to, 0, p.bytes);
    } else {
      std::memcpy(p.to, p.from, p.bytes);
    }
  }
}

const uint8_t* copy_source(Warp& w, uint64_t at, uint32_t bytes, uint32_t align) {
  Memory& memory = w.cta.machine.memory;
  const uint8_t* from = memory.read(at, bytes, align, w.cta.index);
  if (!memory.initialised(at, bytes)) {
    throw Fault("uninitialised",
                "an asynchronous copy of global memory that was never written, at " + hex(at));
  }
  return from;
}

namespace {

enum Mode { kBytes, kFourth };
enum Fourth { kNothing, kSourceBytes, kIgnoreSource };

// How many bytes lane `l` really reads; the rest of the destination becomes zero.
uint32_t source_bytes(const Warp& w, const Inst& inst, int l) {
  const uint32_t bytes = inst.mode[kBytes];
  if (inst.mode[kFourth] == kNothing) return bytes;
  const Arg& arg = inst.arg(3);
  w.require(arg, 1u << l, "the source size of cp.async");
  const uint64_t value = w.lane_value(arg, l);
  if (inst.mode[kFourth] == kIgnoreSource) return value ? 0 : bytes;
  if (value > bytes)
    throw Fault("bounds", "cp.async with a source size of " + std::to_string(value));
  return static_cast<uint32_t>(value);
}

Flow copy(Warp& w, const Inst& inst, Mask active) {
  Cta& cta = w.cta;
  const uint32_t bytes = inst.mode[kBytes];
  uint64_t from[kLanes];
  w.addresses(inst, 1, active, from);
  Cta::AsyncState::PerWarp& state = async_of(w);
  Cta::AsyncState::Copy record{};
  shared_addresses(w, inst, 0, active, record.at);
  Pieces pieces;
  pieces.reserve(kLanes);
  Mask reading = 0;
  for (int l = 0; l < kLanes; ++l) {
    if (!(active >> l & 1)) continue;
    const uint32_t read = source_bytes(w, inst, l);
    uint8_t* to = cta.shared_at(record.at[l], bytes, bytes);
    if (from[l] % bytes != 0 && read != 0) {
      throw Fault("alignment",
                  "cp.async of " + std::to_string(bytes) + " bytes from " + hex(from[l]));
    }
    if (read != 0) {
      pieces.push_back({copy_source(w, from[l], read, bytes), to, read});
      reading |= 1u << l;
    }
    if (read != bytes) pieces.push_back({nullptr, to + read, bytes - read});
    cta.shadow.copy_begin(w.index, l, record.at[l], bytes);
    record.group[l] = state.copy_groups[l];
  }
  Counters& counters = cta.machine.counters;
  if (reading != 0) count_global(counters.load, reading, from, bytes);
  count_shared(counters.shared_store, active, record.at, bytes);
  record.bytes = bytes;
  record.open = active;
  record.sequence = state.copies_issued++;
  record.ticket = cta.defer([pieces = std::move(pieces)] { move(pieces); });
  state.copies.push_back(record);
  return Flow::kNext;
}

// Ends the copies of `lanes` that `which(copy, lane)` names.
template <class Which>
void end(Cta& cta, int warp, Mask lanes, Which which) {
  std::vector<Cta::AsyncState::Copy>& copies = async_of(cta).warp[static_cast<size_t>(warp)].copies;
  size_t kept = 0;
  for (Cta::AsyncState::Copy& c : copies) {
    Mask ending = 0;
    for (int l = 0; l < kLanes; ++l) {
      ending |= static_cast<Mask>((c.open & lanes) >> l & 1 && which(c, l)) << l;
    }
    if (ending != 0) cta.finish(c.ticket);
    for (int l = 0; l < kLanes; ++l) {
      if (ending >> l & 1) cta.shadow.copy_end(warp, l, c.at[l], c.bytes);
    }
    c.open &= ~ending;
    if (c.open != 0) copies[kept++] = c;
  }
  copies.resize(kept);
}

Flow commit(Warp& w, const Inst&, Mask active) {
  Cta::AsyncState::PerWarp& state = async_of(w);
  for (int l = 0; l < kLanes; ++l) state.copy_groups[l] += active >> l & 1;
  return Flow::kNext;
}

Flow wait_group(Warp& w, const Inst& inst, Mask active) {
  const auto n = static_cast<uint32_t>(inst.arg(0).value);
  const uint32_t* committed = async_of(w).copy_groups;
  end(w.cta, w.index, active,
      [&](const Cta::AsyncState::Copy& c, int l) { return covered(c.group[l], committed[l], n); });
  return Flow::kNext;
}

Flow wait_all(Warp& w, const Inst& inst, Mask active) {
  commit(w, inst, active);
  end(w.cta, w.index, active, [](const Cta::AsyncState::Copy&, int) { return true; });
  return Flow::kNext;
}

// cp.async.mbarrier.arrive: each thread arrives when all its copies so far are complete. Without
// .noinc the arrival is one more than the barrier was initialised for.
Flow arrive_behind(Warp& w, const Inst& inst, Mask active) {
  Cta& cta = w.cta;
  uint32_t at[kLanes];
  shared_addresses(w, inst, 0, active, at);
  std::vector<uint32_t> bars;
  for (int l = 0; l < kLanes; ++l) {
    if (!(active >> l & 1)) continue;
    Mbarrier& bar = mbarrier_at(cta, w.index, at[l]);
    if (inst.mode[0]) ++bar.pending;
    bars.push_back(at[l]);
  }
  const uint64_t issued = async_of(w).copies_issued;
  cta.defer([&cta, warp = w.index, active, issued, bars = std::move(bars)] {
    end(cta, warp, active,
        [&](const Cta::AsyncState::Copy& c, int) { return c.sequence < issued; });
    const Mbarrier* released = nullptr;
    for (uint32_t at : bars) {
      Mbarrier& bar = mbarrier_at(cta, -1, at);
      if (&bar != released) cta.shadow.release(warp, bar.arriving);
      released = &bar;
      mbarrier_arrive(cta, bar, 1);
    }
  });
  return Flow::kNext;
}

void decode_arrive_behind(Decoder& d) {
  if (!d.take("arrive") || !d.take("b64")) d.fail("not .mbarrier.arrive.b64");
  d.inst.mode[0] = !d.take("noinc");
  d.inst.space = d.choose({"shared", "shared::cta"}) >= 0 ? Space::kShared : Space::kGeneric;
  d.inst.execute = arrive_behind;
  d.finish({1});
}

void decode_copy(Decoder& d) {
  const int level = d.choose({"ca", "cg"});
  if (level < 0) d.fail("no .ca or .cg");
  if (d.choose({"shared", "shared::cta"}) < 0 || !d.take("global")) d.fail("not .shared.global");
  d.choose({"L2::64B", "L2::128B", "L2::256B"});  // hints
  const int policy = d.take("L2::cache_hint") ? 1 : 0;
  d.inst.space = Space::kShared;
  d.inst.execute = copy;
  const bool fourth = d.text.operands.size() == static_cast<size_t>(4 + policy);
  d.finish({3 + policy, 4 + policy});
  const auto bytes = static_cast<uint32_t>(d.inst.arg(2).value);
  if (d.inst.arg(2).kind != Arg::Kind::kImmediate ||
      !(bytes == 16 || (level == 0 && (bytes == 4 || bytes == 8)))) {
    d.fail("the size must be 16, or with .ca 4 or 8");
  }
  d.inst.mode[kBytes] = bytes;
  const bool predicate = fourth && d.inst.arg(3).bits == 1;
  d.inst.mode[kFourth] = !fourth ? kNothing : predicate ? kIgnoreSource : kSourceBytes;
}

void decode_cp(Decoder& d) {
  if (!d.take("async")) d.fail("only cp.async is supported");
  d.inst.cls = Class::kAsyncCopy;
  d.results(0);
  if (d.take("bulk")) return d.take("tensor") ? decode_tensor_copy(d) : decode_bulk_copy(d);
  if (d.take("mbarrier")) return decode_arrive_behind(d);
  if (d.take("commit_group")) {
    d.inst.execute = commit;
    return d.finish({0});
  }
  if (d.take("wait_all")) {
    d.inst.execute = wait_all;
    return d.finish({0});
  }
  if (d.take("wait_group")) {
    d.inst.execute = wait_group;
    d.finish({1});
    if (d.inst.arg(0).kind != Arg::Kind::kImmediate) d.fail("the group count must be a constant");
    return;
  }
  decode_copy(d);
}

// prefetch, prefetchu: hints without effect; the address may even be invalid.
Flow nothing(Warp&, const Inst&, Mask) { return Flow::kNext; }

void decode_prefetch(Decoder& d) {
  d.inst.execute = nothing;
  d.inst.cls = Class::kOther;
  d.results(0);
  if (d.take("tensormap")) {
    d.choose({"param", "const"});
  } else {
    d.choose({"global", "local"});
    if (d.choose({"L1", "L2", "L2::evict_last", "L2::evict_normal"}) < 0) d.fail("no cache level");
  }
  d.finish({1});
}

}  // namespace

void add_copy_ops() {
  add_op("cp", decode_cp);
  add_op("prefetch", decode_prefetch);
  add_op("prefetchu", decode_prefetch);
}

}  // namespace ptxsim
