// mma.sync, and the moves of 8x8 matrices between shared memory and fragments: ldmatrix, stmatrix,
// movmatrix (PTX ISA 9.7.14.5).

#include <cstring>

#include "matrix.h"

namespace ptxsim {
namespace {

// --- mma
// ------------------------------------------------------------------------------------------

struct MmaShape {
  const char* name;
  int k;
  int bits;  // of an element of A and B
};
constexpr MmaShape kMmaShapes[] = {
    {"m16n8k4", 4, 32},  {"m16n8k8", 8, 32},  {"m16n8k8", 8, 16},  {"m16n8k16", 16, 16},
    {"m16n8k16", 16, 8}, {"m16n8k32", 32, 8}, {"m16n8k64", 64, 4},
};

// What A and B may be, and whether the accumulators may be f16.
struct MmaTypes {
  const char* kind;     // of instructions that name one
  const char* a_kinds;  // A and B are any two of these
  int bits;
  bool half_accumulators;
};
constexpr MmaTypes kMmaTypes[] = {
    {"", "h", 16, true},
    {"", "B", 16, false},
    {"", "T", 32, false},
    {"", "EF", 8, true},
    {"kind::f8f6f4", "EFm", 8, true},
    {"kind::mxf8f6f4", "EFm", 8, false},
    {"kind::mxf4", "M", 4, false},
    {"kind::mxf4nvf4", "M", 4, false},
};

bool known(const std::string& kind, const std::string& shape, const Product& p) {
  for (const MmaShape& s : kMmaShapes) {
    if (shape != s.name || s.bits != p.a.bits || s.bits != p.b.bits) continue;
    // Only the instruction without a kind has 8-bit elements in this shape.
    if (s.bits == 8 && s.k == 16 && !kind.empty()) continue;
    for (const MmaTypes& t : kMmaTypes) {
      if (kind == t.kind && t.bits == s.bits && std::strchr(t.a_kinds, p.a.kind) &&
          std::strchr(t.a_kinds, p.b.kind)) {
        return t.half_accumulators || !(p.half_c || p.half_d);
      }
    }
  }
  return false;
}

// --- scale factors of mma

// Operands 4 ... 7: data and selector of the factors of A, then of B.
enum ScaleOperand { kDataA = 4, kSelectorA, kDataB, kSelectorB };

// Faults, or fails to decode, unless the selector is one of those that the ISA defines.
template <class Fail>
Selector checked(uint64_t byte, uint64_t thread, int scales, uint64_t threads, Fail fail) {
  const uint64_t last_byte = 4 - static_cast<uint64_t>(scales);
  if (byte > last_byte || byte % static_cast<uint64_t>(scales) != 0 || thread >= threads) {
    fail("no such scale selector: {" + std::to_string(byte) + ", " + std::to_string(thread) + "}");
  }
  return {static_cast<int>(byte), static_cast<int>(thread)};
}

// The threads of a quad that a selector can name: pairs of them for A.
uint64_t selectable(int operand) { return operand == kSelectorA ? 2 : 4; }

Selector selector(const Warp& w, const Inst& inst, int operand, int scales) {
  const uint64_t byte = uniform(w, inst.arg(operand, 0), "a byte selector of scale factors");
  const uint64_t thread = uniform(w, inst.arg(operand, 1), "a thread selector of scale factors");
  return checked(byte, thread, scales, selectable(operand),
                 [](const std::string& what) { throw Fault("unsupported", what); });
}

// D[16][8] = A[16][k] B[k][8] + C[16][8]
Flow mma(Warp& w, const Inst& inst, Mask active) {
  require_whole_warp(w, active, "mma.sync");
  Product p = *static_cast<const Product*>(inst.extra.get());
  p.numerics = numerics_of(w.cta.machine, p.a);
  Tile tile;
  std::vector<Mask> c_defined;
  gather_a(w, inst, 1, p, tile);
  gather_b(w, inst, 2, p, tile);
  gather_c(w, inst, 3, p, tile, c_defined);
  if (p.scales) {
    gather_scales_a(w, inst.arg(kDataA), selector(w, inst, kSelectorA, p.scales), p, tile);
    gather_scales_b(w, inst.arg(kDataB), selector(w, inst, kSelectorB, p.scales), p, tile);
  }
  multiply(p, tile);
  scatter_d(w, inst, 0, p, tile, c_defined);
  w.cta.machine.counters.matrix_flops += static_cast<uint64_t>(2 * kTileRows * p.n * p.k);
  return Flow::kNext;
}

// f32 is one value in a register, f16 two.
bool accumulator(Decoder& d) {
  const Type type = d.type();
  if (!(type == Type{'f', 32}) && !(type == Type{'h', 16})) d.fail("accumulators are f32 or f16");
  return type.kind == 'h';
}

// What is left of the modifiers behind the types of A, B, C and D; returns the kind.
std::string take_kind(Decoder& d, Product& p) {
  const ScaleRule* rule = take_scale_rule(d, false);
  if (rule == nullptr) return d.take("kind::f8f6f4") ? "kind::f8f6f4" : "";
  p.scales = rule->scales;
  p.scale = d.type();
  if (std::strchr(rule->types, p.scale.kind) == nullptr || p.scale.bits != 8) {
    d.fail("no such scale factors for this kind");
  }
  return rule->kind;
}

// One register of 32 bits, and the two values of a selector.
void check_scale_operands(Decoder& d, const Product& p) {
  for (int operand : {kDataA, kDataB}) {
    if (d.inst.count(operand) != 1 || d.inst.arg(operand).bits != 32) {
      d.fail("scale factors are one 32-bit register");
    }
  }
  for (int operand : {kSelectorA, kSelectorB}) {
    if (d.inst.count(operand) != 2) d.fail("a scale selector is {byte, thread}");
    const Arg &byte = d.inst.arg(operand, 0), &thread = d.inst.arg(operand, 1);
    if (byte.kind != Arg::Kind::kImmediate || thread.kind != Arg::Kind::kImmediate) continue;
    checked(byte.value, thread.value, p.scales, selectable(operand),
            [&](const std::string& what) { d.fail(what); });
  }
}

void decode_mma(Decoder& d) {
  auto p = std::make_shared<Product>();
  std::string shape;
  for (const MmaShape& s : kMmaShapes) {
    if (d.take(s.name)) shape = s.name;
  }
  if (!d.take("sync") || !d.take("aligned") || !d.take("row") || !d.take("col")) {
    d.fail("mma is supported as mma.sync.aligned.<shape>.row.col");
  }
  p->half_d = accumulator(d);
  p->a = d.type();
  p->b = d.type();
  p->half_c = accumulator(d);
  const std::string kind = take_kind(d, *p);
  if (kind == "kind::f8f6f4" || kind == "kind::mxf8f6f4") {
    for (Type* type : {&p->a, &p->b}) {
      if (type->kind == 'M') *type = kPaddedE2m1;
    }
    if (p->half_c != p->half_d) d.fail("C and D must have the same type");
  }
  if (!known(kind, shape, *p)) d.fail("shape, kind and types do not go together");
  p->k = std::atoi(shape.c_str() + std::strlen("m16n8k"));
  d.inst.execute = mma;
  d.inst.gather = Gather::kWarp;
  d.inst.cls = Class::kMatrix;
  d.inst.sets_defined = true;
  d.finish({p->scales ? 8 : 4});
  const int a = kTileRows * p->k * p->a.bits / 32 / kLanes;
  const int b = p->n * p->k * p->b.bits / 32 / kLanes;
  if (d.inst.count(0) != (p->half_d ? 2 : 4) || d.inst.count(1) != a || d.inst.count(2) != b ||
      d.inst.count(3) != (p->half_c ? 2 : 4)) {
    d.fail("wrong number of registers");
  }
  if (p->scales) check_scale_operands(d, *p);
  d.inst.extra = p;
}

// --- 8x8 matrices of b16
// -------------------------------------------------------------------------- Register j of lane l
// holds elements 2t and 2t + 1 of row g of matrix j; with .trans of column g.

enum Mode { kMatrices, kTransposed };

using Matrix = uint16_t[8][8];

// (row, column) of element e of a lane.
int row_of(bool transposed, int lane, int e) { return transposed ? 2 * (lane % 4) + e : lane / 4; }
int column_of(bool transposed, int lane, int e) {
  return transposed ? lane / 4 : 2 * (lane % 4) + e;
}

// The addresses of the rows of all matrices: row r of matrix j is what lane 8 j + r points at;
// other lanes' addresses are not looked at.
void row_addresses(Warp& w, const Inst& inst, int operand, int matrices, uint32_t* at) {
  const Mask used = matrices == 4 ? kAllLanes : (1u << 8 * matrices) - 1;
  w.require(inst.arg(operand), used, "the address of a matrix row");
  uint64_t address[kLanes];
  w.addresses(inst, operand, used, address);
  for (int l = 0; l < 8 * matrices; ++l) at[l] = static_cast<uint32_t>(address[l]);
}

Flow ldmatrix(Warp& w, const Inst& inst, Mask active) {
  require_whole_warp(w, active, "ldmatrix");
  const int matrices = static_cast<int>(inst.mode[kMatrices]);
  const bool transposed = inst.mode[kTransposed] != 0;
  uint32_t at[kLanes];
  row_addresses(w, inst, 1, matrices, at);
  for (int j = 0; j < matrices; ++j) {
    Matrix value;
    uint8_t undefined[8];  // per row, one bit per column
    for (int r = 0; r < 8; ++r) {
      const uint32_t row = at[8 * j + r];
      std::memcpy(value[r], w.cta.shared_at(row, 16, 16), 16);
      w.cta.shadow.read(w.index, 8 * j + r, row, 16);
      undefined[r] = 0;
      if (w.cta.shadow.initialised(row, 16)) continue;
      for (uint32_t c = 0; c < 8; ++c) {
        undefined[r] |= static_cast<uint8_t>(!w.cta.shadow.initialised(row + 2 * c, 2) << c);
      }
    }
    Lanes out;
    Mask defined = 0;
    for (int l = 0; l < kLanes; ++l) {
      const int r0 = row_of(transposed, l, 0), c0 = column_of(transposed, l, 0);
      const int r1 = row_of(transposed, l, 1), c1 = column_of(transposed, l, 1);
      out.v[l] = value[r0][c0] | static_cast<uint32_t>(value[r1][c1]) << 16;
      const bool ok = !(undefined[r0] >> c0 & 1) && !(undefined[r1] >> c1 & 1);
      defined |= static_cast<Mask>(ok) << l;
    }
    w.write(inst.arg(0, j), kAllLanes, out.v);
    w.set_defined(inst.arg(0, j), kAllLanes, defined);
  }
  count_matrix(w.cta.machine.counters.matrix_load, matrices, at);
  return Flow::kNext;
}

Flow stmatrix(Warp& w, const Inst& inst, Mask active) {
  require_whole_warp(w, active, "stmatrix");
  const int matrices = static_cast<int>(inst.mode[kMatrices]);
  const bool transposed = inst.mode[kTransposed] != 0;
  uint32_t at[kLanes];
  row_addresses(w, inst, 0, matrices, at);
  for (int j = 0; j < matrices; ++j) {
    Lanes room;
    const uint64_t* in = w.read(inst.arg(1, j), room);
    w.require(inst.arg(1, j), kAllLanes, "a value stored by stmatrix");
    Matrix value;
    for (int l = 0; l < kLanes; ++l) {
      for (int e = 0; e < 2; ++e) {
        value[row_of(transposed, l, e)][column_of(transposed, l, e)] =
            static_cast<uint16_t>(in[l] >> 16 * e);
      }
    }
    for (int r = 0; r < 8; ++r) {
      const uint32_t row = at[8 * j + r];
      std::memcpy(w.cta.shared_at(row, 16, 16), value[r], 16);
      w.cta.shadow.write(w.index, 8 * j + r, row, 16);
    }
  }
  count_matrix(w.cta.machine.counters.matrix_store, matrices, at);
  return Flow::kNext;
}

// The transpose of one fragment.
Flow movmatrix(Warp& w, const Inst& inst, Mask active) {
  require_whole_warp(w, active, "movmatrix");
  Lanes room, out;
  const uint64_t* in = w.read(inst.arg(1), room);
  const Mask known = w.defined_of(inst.arg(1));
  Mask defined = 0;
  for (int l = 0; l < kLanes; ++l) {
    out.v[l] = 0;
    bool ok = true;
    for (int e = 0; e < 2; ++e) {
      const int row = column_of(false, l, e), column = row_of(false, l, e);
      const int from = 4 * row + column / 2;  // the lane that holds [row][column]
      out.v[l] |= (in[from] >> 16 * (column % 2) & 0xffff) << 16 * e;
      ok = ok && (known >> from & 1);
    }
    defined |= static_cast<Mask>(ok) << l;
  }
  w.write(inst.arg(0), kAllLanes, out.v);
  w.set_defined(inst.arg(0), kAllLanes, defined);
  return Flow::kNext;
}

// What ldmatrix and stmatrix have in common; `registers` is the operand with the fragments.
void decode_rows(Decoder& d, int registers) {
  if (!d.take("sync") || !d.take("aligned") || !d.take("m8n8") || !d.take("b16")) {
    d.fail("supported as .sync.aligned.m8n8.{x1,x2,x4}{.trans}.b16");
  }
  const int count = d.choose({"x1", "x2", "x4"});
  if (count < 0) d.fail("no .x1, .x2 or .x4");
  d.inst.mode[kMatrices] = 1u << count;
  d.inst.mode[kTransposed] = d.take("trans");
  d.inst.space = d.choose({"shared", "shared::cta"}) >= 0 ? Space::kShared : Space::kGeneric;
  d.inst.gather = Gather::kWarp;
  d.inst.cls = Class::kMatrixLoad;
  d.finish({2});
  if (d.inst.count(registers) != 1 << count) d.fail("wrong number of registers");
}

void decode_ldmatrix(Decoder& d) {
  d.inst.execute = ldmatrix;
  d.inst.sets_defined = true;
  decode_rows(d, 0);
}

void decode_stmatrix(Decoder& d) {
  d.inst.execute = stmatrix;
  d.results(0);
  decode_rows(d, 1);
}

void decode_movmatrix(Decoder& d) {
  if (!d.take("sync") || !d.take("aligned") || !d.take("m8n8") || !d.take("trans") ||
      !d.take("b16")) {
    d.fail("movmatrix is .sync.aligned.m8n8.trans.b16");
  }
  d.inst.execute = movmatrix;
  d.inst.gather = Gather::kWarp;
  d.inst.cls = Class::kWarpOp;
  d.inst.sets_defined = true;
  d.finish({2});
}

}  // namespace

void add_matrix_ops() {
  add_op("mma", decode_mma);
  add_op("ldmatrix", decode_ldmatrix);
  add_op("stmatrix", decode_stmatrix);
  add_op("movmatrix", decode_movmatrix);
}

}  // namespace ptxsim
