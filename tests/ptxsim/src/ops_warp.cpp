// shfl, vote, match, redux, activemask [PTX ISA 9.7.9.6, 9.7.13].

#include "lanes.h"

namespace ptxsim {
namespace {

enum Shuffle : uint32_t { kUp, kDown, kBfly, kIdx };

Flow shuffle(Warp& w, const Inst& inst, Mask active) {
  Lanes rooms[3], out;
  const uint64_t* a = w.read(inst.arg(1), rooms[0]);
  const uint64_t* b = w.read(inst.arg(2), rooms[1]);
  const uint64_t* c = w.read(inst.arg(3), rooms[2]);
  const Mask defined = w.defined_of(inst.arg(1));
  w.require(inst.arg(2), active, "the lane of a shuffle");
  Mask in_range = 0;
  Mask result_defined = 0;
  for (int l = 0; l < kLanes; ++l) {
    out.v[l] = a[l];
    if (!(active >> l & 1)) continue;
    const int by = static_cast<int>(b[l] & 31);
    const int clamp = static_cast<int>(c[l] & 31);
    const int segment = static_cast<int>(c[l] >> 8 & 31);
    const int max_lane = (l & segment) | (clamp & ~segment);
    const int min_lane = l & segment;
    int from = 0;
    bool ok = false;
    switch (inst.mode[0]) {
      case kUp:
        from = l - by;
        ok = from >= max_lane;
        break;
      case kDown:
        from = l + by;
        ok = from <= max_lane;
        break;
      case kBfly:
        from = l ^ by;
        ok = from <= max_lane;
        break;
      case kIdx:
        from = min_lane | (by & ~segment);
        ok = from <= max_lane;
        break;
    }
    if (!ok) from = l;
    if (!(active >> from & 1)) {
      throw Fault("divergence", "lane " + std::to_string(l) + " shuffles from lane " +
                                    std::to_string(from) + ", which does not take part");
    }
    out.v[l] = a[from];
    in_range |= static_cast<Mask>(ok) << l;
    result_defined |= (defined >> from & 1) << l;
  }
  w.write(inst.arg(0), active, out.v);
  w.set_defined(inst.arg(0), active, result_defined);
  if (inst.operands[0].pair >= 0) {
    w.write_predicate(inst.operands[0].pair, active, in_range);
    w.defined[inst.operands[0].pair] |= active;
  }
  return Flow::kNext;
}

void decode_shfl(Decoder& d) {
  Inst& inst = d.inst;
  if (!d.take("sync")) d.fail("only shfl.sync is supported");
  const int mode = d.choose({"up", "down", "bfly", "idx"});
  if (mode < 0) d.fail("no mode");
  inst.mode[0] = static_cast<uint32_t>(mode);
  inst.type = d.type();
  inst.cls = Class::kWarpOp;
  inst.gather = Gather::kMembers;
  inst.members = 4;
  inst.sets_defined = true;
  inst.execute = shuffle;
  d.finish({5});
}

enum Vote : uint32_t { kAll, kAny, kUni, kBallot };

Flow vote(Warp& w, const Inst& inst, Mask active) {
  Lanes room, out;
  w.require(inst.arg(1), active, "a vote");
  const uint64_t* p = w.read(inst.arg(1), room);
  Mask yes = 0;
  for (int l = 0; l < kLanes; ++l) yes |= static_cast<Mask>(p[l] & 1) << l;
  yes &= active;
  uint64_t value = 0;
  switch (inst.mode[0]) {
    case kAll:
      value = yes == active;
      break;
    case kAny:
      value = yes != 0;
      break;
    case kUni:
      value = yes == active || yes == 0;
      break;
    case kBallot:
      value = yes;
      break;
  }
  std::fill_n(out.v, kLanes, value);
  w.write(inst.arg(0), active, out.v);
  w.set_defined(inst.arg(0), active, active);
  return Flow::kNext;
}

void decode_vote(Decoder& d) {
  Inst& inst = d.inst;
  if (!d.take("sync")) d.fail("only vote.sync is supported");
  const int mode = d.choose({"all", "any", "uni", "ballot"});
  if (mode < 0) d.fail("no mode");
  inst.mode[0] = static_cast<uint32_t>(mode);
  inst.type = d.type();
  inst.cls = Class::kWarpOp;
  inst.gather = Gather::kMembers;
  inst.members = 2;
  inst.sets_defined = true;
  inst.execute = vote;
  d.finish({3});
}

Flow match_any(Warp& w, const Inst& inst, Mask active) {
  Lanes room, out{};
  w.require(inst.arg(1), active, "a match");
  const uint64_t* a = w.read(inst.arg(1), room);
  for (int l = 0; l < kLanes; ++l) {
    for (int m = 0; m < kLanes; ++m) {
      if ((active >> m & 1) && a[m] == a[l]) out.v[l] |= 1u << m;
    }
  }
  w.write(inst.arg(0), active, out.v);
  w.set_defined(inst.arg(0), active, active);
  return Flow::kNext;
}

void decode_match(Decoder& d) {
  if (!d.take("any") || !d.take("sync")) d.fail("only match.any.sync is supported");
  d.inst.type = d.type();
  d.inst.cls = Class::kWarpOp;
  d.inst.gather = Gather::kMembers;
  d.inst.members = 2;
  d.inst.sets_defined = true;
  d.inst.execute = match_any;
  d.finish({3});
}

enum Reduce : uint32_t { kAdd, kMin, kMax, kAnd, kOr, kXor };

Flow reduce(Warp& w, const Inst& inst, Mask active) {
  Lanes room, out;
  w.require(inst.arg(1), active, "a reduction");
  const uint64_t* a = w.read(inst.arg(1), room);
  const bool is_signed = inst.type.kind == 's';
  bool first = true;
  uint32_t total = 0;
  for (int l = 0; l < kLanes; ++l) {
    if (!(active >> l & 1)) continue;
    const auto x = static_cast<uint32_t>(a[l]);
    const bool less = is_signed ? static_cast<int32_t>(x) < static_cast<int32_t>(total) : x < total;
    if (first) {
      total = x;
      first = false;
      continue;
    }
    switch (inst.mode[0]) {
      case kAdd:
        total += x;
        break;
      case kMin:
        total = less ? x : total;
        break;
      case kMax:
        total = less ? total : x;
        break;
      case kAnd:
        total &= x;
        break;
      case kOr:
        total |= x;
        break;
      case kXor:
        total ^= x;
        break;
    }
  }
  std::fill_n(out.v, kLanes, total);
  w.write(inst.arg(0), active, out.v);
  w.set_defined(inst.arg(0), active, active);
  return Flow::kNext;
}

void decode_redux(Decoder& d) {
  Inst& inst = d.inst;
  if (!d.take("sync")) d.fail("no .sync");
  const int op = d.choose({"add", "min", "max", "and", "or", "xor"});
  if (op < 0) d.fail("unknown operation");
  inst.mode[0] = static_cast<uint32_t>(op);
  inst.type = d.type();
  if (inst.type.bits != 32 || inst.type.kind == 'f') d.fail("no reduction of this type");
  inst.cls = Class::kWarpOp;
  inst.gather = Gather::kMembers;
  inst.members = 2;
  inst.sets_defined = true;
  inst.execute = reduce;
  d.finish({3});
}

Flow active_mask(Warp& w, const Inst& inst, Mask active) {
  Lanes out;
  std::fill_n(out.v, kLanes, active);
  w.write(inst.arg(0), active, out.v);
  return Flow::kNext;
}

void decode_activemask(Decoder& d) {
  d.type();
  d.inst.cls = Class::kWarpOp;
  d.inst.execute = active_mask;
  d.finish({1});
}

}  // namespace

void add_warp_ops() {
  add_op("shfl", decode_shfl);
  add_op("vote", decode_vote);
  add_op("match", decode_match);
  add_op("redux", decode_redux);
  add_op("activemask", decode_activemask);
}

}  // namespace ptxsim
