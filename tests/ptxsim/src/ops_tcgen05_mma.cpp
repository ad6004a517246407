// tcgen05.mma: D[128][n] += A[128][k] B[k][n] with D in tensor memory, B in shared memory and A in
// either, started by one thread (PTX ISA 9.7.16.10). An instruction descriptor tells types and
// sizes; factors of block-scaled products are in tensor memory, a copy of them for every 32 rows.

#include "descriptor.h"
#include "tcgen05.h"

namespace ptxsim {
namespace {

constexpr int kRows = static_cast<int>(TensorMemory::kRows);
constexpr uint32_t kOperandBytes = 32;  // of one row of A or B along k

// What the decoder found out.
struct Form {
  std::string kind;
  const ScaleRule* rule = nullptr;  // of block-scaled products
  bool a_in_tensor = false;
  int mask = -1;  // operand: rows of D that stay; -1: none
  int accumulate = 0;
};

// What the instruction descriptor says.
struct Shape : Product {
  bool a_k_major = true, b_k_major = true;
  bool negate = false;
  int id_a = 0, id_b = 0;  // first byte of the factors in their words
};

[[noreturn]] void refuse(uint32_t bits, const std::string& why) {
  throw Fault("unsupported", "instruction descriptor " + hex(bits) + ": " + why);
}

// Bits `first` ... of the descriptor.
uint32_t field(uint32_t bits, int first, int count) { return bits >> first & ((1u << count) - 1); }

Type element_type(const Form& form, uint32_t bits, int first) {
  const uint32_t code = field(bits, first, 3);
  if (form.kind == "kind::f16" && code <= 1) return code == 0 ? Type{'h', 16} : Type{'B', 16};
  if ((form.kind == "kind::f8f6f4" || form.kind == "kind::mxf8f6f4") && code <= 1) {
    return code == 0 ? Type{'E', 8} : Type{'F', 8};
  }
  if ((form.kind == "kind::mxf4" || form.kind == "kind::mxf4nvf4") && code == 1) {
    return Type{'M', 4};
  }
  refuse(bits, "element type " + std::to_string(code) + " is not supported with this kind");
}

void decode_scales(const Form& form, uint32_t bits, Shape& s) {
  s.scales = form.rule->scales;
  s.scale = field(bits, 23, 1) ? Type{'U', 8} : Type{'V', 8};
  if (std::strchr(form.rule->types, s.scale.kind) == nullptr) {
    refuse(bits, "bit 23: no such scale factors for this kind");
  }
  s.id_b = static_cast<int>(field(bits, 4, 2));
  s.id_a = static_cast<int>(field(bits, 29, 2));
  if (s.id_a % s.scales != 0 || s.id_b % s.scales != 0) {
    refuse(bits, "the ids of the scale factors are multiples of their number");
  }
  if (field(bits, 31, 1)) refuse(bits, "bit 31: k = 96 is not supported");
  if (field(bits, 0, 4) || field(bits, 6, 1)) refuse(bits, "sparse, or reserved bits are set");
}

Shape read_descriptor(const Form& form, uint32_t bits) {
  Shape s;
  s.a = element_type(form, bits, 7);
  s.b = element_type(form, bits, 10);
  s.k = static_cast<int>(kOperandBytes) * 8 / s.a.bits;
  s.n = static_cast<int>(field(bits, 17, 6)) * 8;
  s.a_k_major = field(bits, 15, 1) == 0;
  s.b_k_major = field(bits, 16, 1) == 0;
  s.negate = field(bits, 13, 1) != field(bits, 14, 1);
  if (field(bits, 24, 5) != kRows / 16) refuse(bits, "only 128 rows are supported");
  if (s.n == 0 || s.n > Tile::kMaxN) refuse(bits, "N must be 8 to 256");
  if (s.a.bits == 16 && !(s.a == s.b)) refuse(bits, "A and B must have the same type");
  if (s.a.bits == 4 && !(s.a_k_major && s.b_k_major)) refuse(bits, "FP4 operands are K-major");
  if (s.b.bits == 8 && !s.b_k_major && s.n % 16 != 0) refuse(bits, "N must be a multiple of 16");
  if (form.rule != nullptr) {
    decode_scales(form, bits, s);
    return s;
  }
  const uint32_t d = field(bits, 4, 2);
  if (d > 1 || (d == 0 && s.a.kind == 'B')) refuse(bits, "no such accumulators for these types");
  s.half_c = s.half_d = d == 0;
  if (field(bits, 0, 4) || field(bits, 6, 1) || field(bits, 23, 1) || field(bits, 29, 3)) {
    refuse(bits, "sparse, .ws or reserved bits are set");
  }
  return s;
}

// --- the product
// ------------------------------------------------------------------------------------

struct Work {
  Shape shape;
  Descriptor a, b;
  uint32_t d_column = 0, a_column = 0, scale_a_column = 0, scale_b_column = 0;
  bool a_in_tensor = false, accumulate = false;
  std::array<bool, kRows> keep{};  // rows of D that stay as they are
};

uint32_t words_of_a(const Shape& s) { return static_cast<uint32_t>(s.k * s.a.bits / 32); }

void require_cell(TensorMemory& tensor, uint32_t row, uint32_t column, const char* what) {
  if (tensor.defined(row, column)) return;
  throw Fault("uninitialised", std::string(what) + " of tcgen05.mma: row " + std::to_string(row) +
                                   ", column " + std::to_string(column) +
                                   " of tensor memory depends on something never written");
}

void read_matrix(TensorMemory& tensor, const OperationPtr& op, uint32_t first, uint32_t columns,
                 const char* what, bool checks) {
  tensor.read(op, TensorMemory::kAllPartitions, first, columns);
  for (uint32_t row = 0; row < TensorMemory::kRows && checks; ++row) {
    for (uint32_t c = 0; c < columns; ++c) require_cell(tensor, row, first + c, what);
  }
}

// The factors of `count` rows or columns: 32 to a column of every quarter.
void read_scales(TensorMemory& tensor, const OperationPtr& op, uint32_t first, int count,
                 const char* what, bool checks) {
  const auto n = static_cast<uint32_t>(count);
  tensor.read(op, TensorMemory::kAllPartitions, first, (n + 31) / 32);
  for (uint32_t x = 0; x < n && checks; ++x) {
    for (uint32_t row = x % 32; row < TensorMemory::kRows; row += 32) {
      require_cell(tensor, row, first + x / 32, what);
    }
  }
}

// Factor s of row or column x, which every 32 rows of tensor memory must agree on.
float scale_at(TensorMemory& tensor, const Shape& p, uint32_t first, int id, int x, int s) {
  const uint32_t row = static_cast<uint32_t>(x) % 32,
                 column = first + static_cast<uint32_t>(x) / 32;
  const auto code = [&](uint32_t partition) {
    const uint32_t word = tensor.cell(32 * partition + row, column);
    return static_cast<uint8_t>(word >> 8 * (id + s));
  };
  for (uint32_t partition = 1; partition < TensorMemory::kPartitions; ++partition) {
    if (code(partition) == code(0)) continue;
    throw Fault("unsupported",
                "scale factors of tcgen05.mma differ between the quarters of tensor "
                "memory, at row " +
                    std::to_string(row) + ", column " + std::to_string(column));
  }
  return scale_factor(p.scale, code(0));
}

void multiply(Cta& cta, TensorMemory& tensor, const Work& work) {
  static thread_local Tile tile;
  const Shape& p = work.shape;
  for_each_element(cta, work.b, p.b_k_major, p.b, 0, p.n, p.k,
                   [](int x, int k, float value) { tile.b[k][x] = value; });
  for (int s = 0; s < p.scales; ++s) {
    for (int n = 0; n < p.n; ++n) {
      tile.scale_b[s][n] = scale_at(tensor, p, work.scale_b_column, p.id_b, n, s);
    }
  }
  const float sign = p.negate ? -1.f : 1.f;
  for (int row0 = 0; row0 < kRows; row0 += kTileRows) {
    if (!work.a_in_tensor) {
      for_each_element(cta, work.a, p.a_k_major, p.a, row0, kTileRows, p.k,
                       [&](int x, int k, float value) { tile.a[x][k] = sign * value; });
    }
    for (int r = 0; r < kTileRows; ++r) {
      const int row = row0 + r;
      const uint32_t* words = &tensor.cell(static_cast<uint32_t>(row), work.a_column);
      for (int k = 0; k < p.k && work.a_in_tensor; ++k) {
        tile.a[r][k] = sign * element_at(p.a, words, k);
      }
      for (int s = 0; s < p.scales; ++s) {
        tile.scale_a[r][s] = scale_at(tensor, p, work.scale_a_column, p.id_a, row, s);
      }
      const uint32_t* d = &tensor.cell(static_cast<uint32_t>(row), work.d_column);
      for (int n = 0; n < p.n; ++n) {
        const double c = p.half_c ? element_value(Type{'h', 16}, d[n]) : float_of(d[n]);
        tile.c[r][n] = work.accumulate ? c : 0;
      }
    }
    ptxsim::multiply(p, tile);
    for (int r = 0; r < kTileRows; ++r) {
      if (work.keep[static_cast<size_t>(row0 + r)]) continue;
      uint32_t* d = &tensor.cell(static_cast<uint32_t>(row0 + r), work.d_column);
      for (int n = 0; n < p.n; ++n) d[n] = result_bits(tile.c[r][n], p.half_d);
    }
  }
}

// Notes what the product reads and writes, and that D is defined from now on.
void note_accesses(Warp& w, TensorMemory& tensor, const OperationPtr& op, const Work& work) {
  const Shape& p = work.shape;
  const auto n = static_cast<uint32_t>(p.n);
  if (!work.a_in_tensor) note_ranges(work.a, p.a_k_major, p.a, 0, kRows, p.k, op->reads);
  note_ranges(work.b, p.b_k_major, p.b, 0, p.n, p.k, op->reads);
  begin_reads(w, *op);
  const bool checks = w.cta.machine.launch.checks;
  if (work.a_in_tensor) read_matrix(tensor, op, work.a_column, words_of_a(p), "A", checks);
  if (p.scales) {
    read_scales(tensor, op, work.scale_a_column, kRows, "the scale factors of A", checks);
    read_scales(tensor, op, work.scale_b_column, p.n, "the scale factors of B", checks);
  }
  if (work.accumulate) read_matrix(tensor, op, work.d_column, n, "D", checks);
  tensor.write(op, TensorMemory::kAllPartitions, work.d_column, n);
  for (uint32_t row = 0; row < TensorMemory::kRows; ++row) {
    if (!work.keep[row]) std::fill_n(&tensor.defined(row, work.d_column), n, uint8_t{1});
  }
}

Flow mma(Warp& w, const Inst& inst, Mask active) {
  const Form& form = *static_cast<const Form*>(inst.extra.get());
  const int lane = single_lane(active, "tcgen05.mma");
  TensorMemory& tensor = tensor_of(w.cta);
  const auto bits =
      static_cast<uint32_t>(scalar(w, inst.arg(3), lane, "an instruction descriptor"));
  const auto matrix = [&](int operand) {
    return Descriptor::of_tcgen05(scalar(w, inst.arg(operand), lane, "a matrix descriptor"));
  };
  const Descriptor b = matrix(2);
  Work work{read_descriptor(form, bits), form.a_in_tensor ? b : matrix(1), b};
  work.shape.numerics = numerics_of(w.cta.machine, work.shape.a);
  work.d_column = first_column(w, inst, 0, lane, "D of tcgen05.mma");
  work.a_in_tensor = form.a_in_tensor;
  if (form.a_in_tensor) {
    if (!work.shape.a_k_major) refuse(bits, "A in tensor memory cannot be transposed");
    work.a_column = first_column(w, inst, 1, lane, "A of tcgen05.mma");
  }
  if (form.rule != nullptr) {
    work.scale_a_column = first_column(w, inst, 4, lane, "the scale factors of A");
    work.scale_b_column = first_column(w, inst, 5, lane, "the scale factors of B");
  }
  for (int row = 0; row < kRows && form.mask >= 0; ++row) {
    const uint64_t word = scalar(w, inst.arg(form.mask, row / 32), lane, "a mask of rows");
    work.keep[static_cast<size_t>(row)] = word >> row % 32 & 1;
  }
  work.accumulate = scalar(w, inst.arg(form.accumulate), lane, "enable-input-d") & 1;
  const OperationPtr op = tensor.issue(TensorOperation::Kind::kProduct, w, inst, lane);
  op->shape = uint64_t{work.d_column} << 32 | static_cast<uint64_t>(work.shape.n) << 16 |
              static_cast<uint64_t>(work.shape.k) << 1 | work.shape.half_d;
  note_accesses(w, tensor, op, work);
  Cta& cta = w.cta;
  tensor.enqueue(located(w, inst, lane, [&cta, &tensor, work] { multiply(cta, tensor, work); }));
  cta.machine.counters.matrix_flops +=
      static_cast<uint64_t>(2) * kRows * static_cast<uint64_t>(work.shape.n * work.shape.k);
  return Flow::kNext;
}

}  // namespace

void decode_tensor_product(Decoder& d) {
  auto form = std::make_shared<Form>();
  form->rule = take_scale_rule(d, true);
  if (form->rule != nullptr) {
    form->kind = form->rule->kind;
  } else {
    const int kind = d.choose({"kind::f16", "kind::f8f6f4"});
    if (kind < 0) d.fail("this kind is not supported");
    form->kind = kind == 0 ? "kind::f16" : "kind::f8f6f4";
  }
  d.take("collector::a::discard");  // what no collector modifier means
  d.inst.execute = mma;
  const bool scaled = form->rule != nullptr;
  if (scaled) {
    d.finish({7});
  } else {
    d.finish({5, 6});
  }
  const auto& operands = d.text.operands;
  const auto is_address = [&](size_t i) { return operands[i].kind == Operand::Kind::kAddress; };
  form->a_in_tensor = is_address(1);
  form->accumulate = static_cast<int>(operands.size()) - 1;
  if (!is_address(0) || is_address(2) || is_address(3))
    d.fail("operands of other kinds are needed");
  if (scaled && (!is_address(4) || !is_address(5))) {
    d.fail("the scale factors must be addresses of tensor memory");
  }
  if (!scaled && operands.size() == 6) {
    form->mask = 4;
    if (operands[4].kind != Operand::Kind::kVector || d.inst.count(4) != 4) {
      d.fail("scaled accumulators are not supported, and a mask of rows has four words");
    }
  }
  d.inst.extra = form;
}

}  // namespace ptxsim
