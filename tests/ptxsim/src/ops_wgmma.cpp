// wgmma: D[64][n] += A[64][k] B[k][n], asynchronously, by the four warps of a warpgroup (PTX ISA
// 9.7.15). Warp i of the group computes rows 16 i ... 16 i + 15, so here each warp does its part
// alone; that all four execute the same instructions is checked on the way.
//
// From issue to the wait_group that covers it, an operation owns the registers of D and A and reads
// its operands in shared memory.

#include <cstring>

#include "async.h"
#include "descriptor.h"
#include "matrix.h"

namespace ptxsim {
namespace {

constexpr int kGroupWarps = 4;

// What the decoder found out.
struct Form : Product {
  bool a_in_registers = false;
  bool a_k_major = true, b_k_major = true;
  bool negate_a = false, negate_b = false;
};

// --- order
// -------------------------------------------------------------------------------------------

// The warps of a group execute the same wgmma instructions with the same operands in the same
// order.
void check_group(Warp& w, const Inst& inst, uint64_t a = 0, uint64_t b = 0) {
  const auto group = static_cast<size_t>(w.index / kGroupWarps);
  if ((group + 1) * kGroupWarps > w.cta.warps.size()) {
    throw Fault("divergence", "wgmma needs warpgroups of four warps");
  }
  std::vector<Cta::AsyncState::WarpGroup>& groups = async_of(w.cta).groups;
  groups.resize(w.cta.warps.size() / kGroupWarps);
  Cta::AsyncState::WarpGroup& g = groups[group];
  const uint64_t mine = g.count[w.index % kGroupWarps]++ - g.forgotten;
  const Cta::AsyncState::WarpGroup::Step step{&inst, a, b};
  if (mine == g.steps.size()) {
    g.steps.push_back(step);
  } else if (!(g.steps[mine] == step)) {
    throw Fault("divergence",
                "another warp of the warpgroup executed, or gave other operands to: " +
                    g.steps[mine].inst->text->text);
  }
  while (*std::min_element(g.count, g.count + kGroupWarps) > g.forgotten) {
    g.steps.pop_front();
    ++g.forgotten;
  }
}

void note_busy(Warp& w) {
  for (uint8_t& busy : w.busy) busy &= kUnfenced;
  for (const Cta::AsyncState::Product& p : async_of(w).products) {
    for (int32_t r : p.results) w.busy[static_cast<size_t>(r)] |= kResult;
    for (int32_t r : p.inputs) w.busy[static_cast<size_t>(r)] |= kInput;
  }
}

// Threads and products access the same registers only with a wgmma.fence in between, products among
// themselves only as accumulators of one shape (PTX ISA 9.7.15.7.1).
void check_registers(const Warp& w, const Cta::AsyncState::Product& p, bool accumulate) {
  const auto any = [&](const std::vector<int32_t>& registers, uint8_t what) {
    return std::any_of(registers.begin(), registers.end(),
                       [&](int32_t r) { return w.busy[static_cast<size_t>(r)] & what; });
  };
  if (any(p.inputs, kUnfenced) || (accumulate && any(p.results, kUnfenced))) {
    throw Fault("async", "a register of A or D was written after the last wgmma.fence");
  }
  if (any(p.inputs, kResult)) {
    throw Fault("async", "A is the result of a wgmma.mma_async that nobody waited for");
  }
  if (any(p.results, kInput)) {
    throw Fault("async", "D is an operand of a wgmma.mma_async that nobody waited for");
  }
  if (!any(p.results, kResult)) return;
  for (const Cta::AsyncState::Product& open : w.cta.async->warp[w.index].products) {
    const bool overlaps = std::any_of(open.results.begin(), open.results.end(), [&](int32_t r) {
      return std::find(p.results.begin(), p.results.end(), r) != p.results.end();
    });
    if (overlaps && (open.results != p.results || open.n != p.n || open.k != p.k)) {
      throw Fault("async", "D is that of an open wgmma.mma_async of another shape");
    }
  }
}

// Computes the warp's operations in order, up to number `last`.
void compute_until(Cta::AsyncState::PerWarp& state, uint64_t last) {
  for (Cta::AsyncState::Product& p : state.products) {
    if (p.sequence > last) break;
    if (p.compute) p.compute();
    p.compute = nullptr;
  }
}

// --- instructions
// -----------------------------------------------------------------------------------

void compute(Warp& w, const Inst& inst, const Form& form, uint64_t a_bits, uint64_t b_bits,
             bool accumulate) {
  static thread_local Tile tile;
  std::vector<Mask> c_defined;
  tile.undefined_rows = 0;
  if (form.a_in_registers) {
    gather_a(w, inst, 1, form, tile);
  } else {
    const int row = kTileRows * (w.index % kGroupWarps);
    for_each_element(w.cta, Descriptor::of_wgmma(a_bits), form.a_k_major, form.a, row, kTileRows,
                     form.k, [](int x, int k, float value) { tile.a[x][k] = value; });
  }
  for_each_element(w.cta, Descriptor::of_wgmma(b_bits), form.b_k_major, form.b, 0, form.n, form.k,
                   [](int x, int k, float value) { tile.b[k][x] = value; });
  if (form.negate_a != form.negate_b) {
    for (auto& row : tile.a) {
      for (int k = 0; k < form.k; ++k) row[k] = -row[k];
    }
  }
  if (accumulate) {
    gather_c(w, inst, 0, form, tile, c_defined);
  } else {
    for (auto& row : tile.c) std::fill_n(row, form.n, 0.0);
    c_defined.assign(static_cast<size_t>(form.n / 2), kAllLanes);
  }
  multiply(form, tile);
  scatter_d(w, inst, 0, form, tile, c_defined);
}

Flow mma_async(Warp& w, const Inst& inst, Mask active) {
  require_whole_warp(w, active, "wgmma.mma_async");
  Form form = *static_cast<const Form*>(inst.extra.get());
  form.numerics = numerics_of(w.cta.machine, form.a);
  const uint64_t a = form.a_in_registers ? 0 : uniform(w, inst.arg(1), "a wgmma descriptor");
  const uint64_t b = uniform(w, inst.arg(2), "a wgmma descriptor");
  const bool accumulate = uniform(w, inst.arg(3), "scale-d of wgmma") != 0;
  check_group(w, inst, a, b);
  Cta::AsyncState::PerWarp& state = async_of(w);
  if (!state.product_fence) {
    throw Fault("async", "wgmma.mma_async before any wgmma.fence of its warp");
  }
  Cta::AsyncState::Product p;
  p.group = state.product_groups;
  p.sequence = state.products_issued++;
  p.compute = [&w, &inst, form, a, b, accumulate] { compute(w, inst, form, a, b, accumulate); };
  for (int i = 0; i < inst.count(0); ++i) p.results.push_back(inst.arg(0, i).reg);
  if (form.a_in_registers) {
    for (int i = 0; i < inst.count(1); ++i) p.inputs.push_back(inst.arg(1, i).reg);
  }
  p.n = form.n;
  p.k = form.k;
  check_registers(w, p, accumulate);
  if (w.cta.machine.launch.checks) {
    const int row = kTileRows * (w.index % kGroupWarps);
    if (!form.a_in_registers) {
      note_ranges(Descriptor::of_wgmma(a), form.a_k_major, form.a, row, kTileRows, form.k, p.reads);
    }
    note_ranges(Descriptor::of_wgmma(b), form.b_k_major, form.b, 0, form.n, form.k, p.reads);
    for (const Cta::AsyncState::Range& r : p.reads) {
      w.cta.shared_at(r.at, r.bytes, kChunk);
      w.cta.shadow.proxy_read_begin(w.index, r.at, r.bytes);
    }
  }
  const uint64_t sequence = p.sequence;
  state.products.push_back(std::move(p));
  note_busy(w);
  state.products.back().ticket =
      w.cta.defer([&state, sequence] { compute_until(state, sequence); });
  w.cta.machine.counters.matrix_flops += static_cast<uint64_t>(2 * kTileRows * form.n * form.k);
  return Flow::kNext;
}

Flow fence(Warp& w, const Inst& inst, Mask active) {
  require_whole_warp(w, active, "wgmma.fence");
  check_group(w, inst);
  async_of(w).product_fence = true;
  w.busy.resize(w.reg.size());  // from here on every write is noted
  for (uint8_t& busy : w.busy) busy &= static_cast<uint8_t>(~kUnfenced);
  return Flow::kNext;
}

Flow commit(Warp& w, const Inst& inst, Mask active) {
  require_whole_warp(w, active, "wgmma.commit_group");
  check_group(w, inst);
  ++async_of(w).product_groups;
  return Flow::kNext;
}

Flow wait(Warp& w, const Inst& inst, Mask active) {
  require_whole_warp(w, active, "wgmma.wait_group");
  check_group(w, inst);
  const auto n = static_cast<uint32_t>(inst.arg(0).value);
  Cta::AsyncState::PerWarp& state = async_of(w);
  while (!state.products.empty() &&
         covered(state.products.front().group, state.product_groups, n)) {
    Cta::AsyncState::Product& p = state.products.front();
    w.cta.finish(p.ticket);
    for (const Cta::AsyncState::Range& r : p.reads) {
      w.cta.shadow.proxy_read_end(w.index, r.at, r.bytes);
    }
    state.products.pop_front();
  }
  note_busy(w);
  return Flow::kNext;
}

// --- decoding
// ---------------------------------------------------------------------------------------

// "m64n128k16" -> 128, 16
void take_shape(Decoder& d, Form& form) {
  for (const std::string& modifier : d.text.modifiers) {
    int end = 0;
    if (std::sscanf(modifier.c_str(), "m64n%dk%d%n", &form.n, &form.k, &end) != 2) continue;
    if (end == static_cast<int>(modifier.size()) && d.take(modifier)) break;
  }
  if (form.n < 8 || form.n > 256 || form.n % 8 != 0 || form.k * form.a.bits != 256) {
    d.fail("no such shape for these types");
  }
}

uint64_t constant(Decoder& d, int operand) {
  const Arg& arg = d.inst.arg(operand);
  if (arg.kind != Arg::Kind::kImmediate) d.fail("scales and transposes must be constants");
  return arg.value;
}

bool negates(Decoder& d, int operand) {
  const auto scale = static_cast<int32_t>(constant(d, operand));
  if (scale != 1 && scale != -1) d.fail("the scales of A and B are 1 or -1");
  return scale == -1;
}

void decode_mma_async(Decoder& d) {
  auto form = std::make_shared<Form>();
  const Type accumulators = d.type();
  if (!(accumulators == Type{'f', 32}) && !(accumulators == Type{'h', 16})) {
    d.fail("accumulators are f32 or f16");
  }
  form->half_d = form->half_c = accumulators.kind == 'h';
  form->a = d.type();
  form->b = d.type();
  const char a = form->a.kind, b = form->b.kind;
  const bool bytes = (a == 'E' || a == 'F') && (b == 'E' || b == 'F');
  if (!bytes && (a != b || std::strchr("hBT", a) == nullptr)) d.fail("no such operand types");
  if (form->half_d && a != 'h' && !bytes) d.fail("no f16 accumulators for these types");
  take_shape(d, *form);
  const bool transposes = form->a.bits == 16;
  d.inst.execute = mma_async;
  d.inst.sets_defined = true;
  if (d.text.operands.size() < 2) d.fail("operands are missing");
  form->a_in_registers = d.text.operands[1].kind == Operand::Kind::kVector;
  d.finish({6 + (transposes ? form->a_in_registers ? 1 : 2 : 0)});
  form->negate_a = negates(d, 4);
  form->negate_b = negates(d, 5);
  if (transposes && !form->a_in_registers) form->a_k_major = constant(d, 6) == 0;
  if (transposes) form->b_k_major = constant(d, form->a_in_registers ? 6 : 7) == 0;
  if (d.inst.count(0) != form->n / (form->half_d ? 4 : 2)) d.fail("wrong number of registers");
  if (form->a_in_registers && d.inst.count(1) != 4) d.fail("wrong number of registers of A");
  d.inst.extra = form;
}

void decode_wgmma(Decoder& d) {
  d.inst.cls = Class::kMatrix;
  d.inst.gather = Gather::kWarp;
  const int form = d.choose({"mma_async", "fence", "commit_group", "wait_group"});
  if (!d.take("sync") || !d.take("aligned")) d.fail("no .sync.aligned");
  if (form == 0) return decode_mma_async(d);
  d.results(0);
  d.inst.execute = form == 1 ? fence : form == 2 ? commit : form == 3 ? wait : nullptr;
  d.finish({form == 3 ? 1 : 0});
  if (form == 3 && d.inst.arg(0).kind != Arg::Kind::kImmediate) {
    d.fail("the group count must be a constant");
  }
}

}  // namespace

void check_busy(Warp& w, const Inst& inst) {
  if (inst.execute == mma_async) return;  // check_registers
  for (int32_t r : inst.written) w.busy[static_cast<size_t>(r)] |= kUnfenced;
  const auto touches = [&](const std::vector<int32_t>& registers, uint8_t what) {
    return std::any_of(registers.begin(), registers.end(),
                       [&](int32_t r) { return w.busy[static_cast<size_t>(r)] & what; });
  };
  // What a tcgen05.ld fills may be copied: that a copy waits for it is guaranteed.
  const bool is_mov = inst.text->opcode == "mov";
  if ((touches(inst.read, kLoading) && !is_mov) || touches(inst.written, kLoading)) {
    throw Fault("async", "a register of a tcgen05.ld is used before tcgen05.wait::ld");
  }
  if (!touches(inst.read, kResult) && !touches(inst.written, kResult | kInput)) return;
  if (!is_mov) {
    throw Fault("async", "a register of a wgmma.mma_async that nobody waited for is used");
  }
  // The compiler serialises such a program: right, but slow.
  w.warn("registers of a wgmma.mma_async are copied before its wait, PTX line " +
         std::to_string(inst.text->line));
  compute_until(async_of(w), UINT64_MAX);
}

void add_wgmma_ops() { add_op("wgmma", decode_wgmma); }

}  // namespace ptxsim
