#include "matrix.h"

#include <algorithm>

namespace ptxsim {
namespace {

// Eight columns of a row: most of the time of a simulated attention goes into their sums.
using Floats = float __attribute__((vector_size(32)));
using Doubles = double __attribute__((vector_size(64)));

// `value` cut towards zero to a multiple of `unit`, a power of two.
double cut(double value, double unit) { return std::trunc(value / unit) * unit; }

double unit_of(double largest, int fraction) {
  int exponent = 0;
  std::frexp(largest, &exponent);
  return std::ldexp(1.0, exponent - 1 - fraction);
}

// One element of the product, block after block of k.
double truncated_dot(const Product& p, const Tile& tile, int row, int column) {
  double sum = tile.c[row][column];
  for (int k0 = 0; k0 < p.k; k0 += p.numerics.block) {
    const int end = std::min(p.k, k0 + p.numerics.block);
    double largest = std::fabs(sum);
    double total = sum;  // for infinities and NaN
    for (int k = k0; k < end; ++k) {
      const double x = static_cast<double>(tile.a[row][k]) * tile.b[k][column];
      largest = std::max(largest, std::fabs(x));
      total += x;
    }
    if (!std::isfinite(total)) return total;
    if (largest == 0) continue;
    const double unit = unit_of(largest, p.numerics.fraction);
    total = cut(sum, unit);
    for (int k = k0; k < end; ++k) {
      total += cut(static_cast<double>(tile.a[row][k]) * tile.b[k][column], unit);
    }
    // The sum goes on as f32, cut and not rounded.
    sum = total == 0 ? 0 : cut(total, std::max(unit_of(std::fabs(total), 23), 0x1p-149));
  }
  return sum;
}

// Register bits of a sum.
uint32_t result_bits(double sum, bool half) {
  if (half) return encode(kF16, sum, Rounding::kNearest);
  const float rounded = canonical(static_cast<float>(sum));
  uint32_t bits;
  std::memcpy(&bits, &rounded, sizeof bits);
  return bits;
}

Mask lanes_where(uint32_t bad, int (*index)(int, int), int value) {
  Mask lanes = 0;
  for (int l = 0; l < kLanes; ++l) lanes |= (bad >> index(l, value) & 1) << l;
  return lanes;
}

}  // namespace

Numerics numerics_of(const Machine& machine, Type operand) {
  Numerics n;
  n.truncated = machine.launch.truncate_products;
  const std::string& target = machine.program.module->target;
  const int arch = std::atoi(target.c_str() + std::min<size_t>(3, target.size()));
  if (operand.bits == 16 && arch < 90) n.block = 8;
  if (operand.bits == 8) n.block = 32;
  // FP8 sums keep 13 bits on these.
  if (operand.bits == 8 && (arch == 89 || arch == 90)) n.fraction = 13;
  return n;
}

void require_whole_warp(const Warp& w, Mask active, const char* what) {
  if (active == kAllLanes && w.live == kAllLanes) return;
  throw Fault("divergence", std::string(what) + " by lanes " + hex(active) +
                                " only: all 32 lanes of the warp must execute it");
}

void gather_a(const Warp& w, const Inst& inst, int operand, const Product& p, Tile& tile) {
  Lanes room;
  const int per = 32 / p.a.bits;
  for (int i = 0; i < inst.count(operand); ++i) {
    const Arg& arg = inst.arg(operand, i);
    const uint64_t* values = w.read(arg, room);
    Mask undefined = ~w.defined_of(arg);
    for (int l = 0; l < kLanes; ++l) {
      for (int e = 0; e < per; ++e) {
        tile.a[a_row(l, i)][a_k(l, i, e, per)] = element_at(p.a, &values[l], e);
      }
    }
    for (; undefined != 0; undefined &= undefined - 1) {
      tile.undefined_rows |= 1u << a_row(__builtin_ctz(undefined), i);
    }
  }
}

void gather_b(const Warp& w, const Inst& inst, int operand, const Product& p, Tile& tile) {
  Lanes room;
  const int per = 32 / p.b.bits;
  for (int i = 0; i < inst.count(operand); ++i) {
    const Arg& arg = inst.arg(operand, i);
    const uint64_t* values = w.read(arg, room);
    Mask undefined = ~w.defined_of(arg);
    for (int l = 0; l < kLanes; ++l) {
      for (int e = 0; e < per; ++e) {
        tile.b[b_k(l, i, e, per)][b_column(l)] = element_at(p.b, &values[l], e);
      }
    }
    for (; undefined != 0; undefined &= undefined - 1) {
      tile.undefined_columns |= 1u << b_column(__builtin_ctz(undefined));
    }
  }
}

void gather_c(const Warp& w, const Inst& inst, int operand, const Product& p, Tile& tile,
              std::vector<Mask>& defined) {
  Lanes room;
  const int per = p.half_c ? 2 : 1;
  defined.clear();
  for (int i = 0; i < inst.count(operand); ++i) {
    const Arg& arg = inst.arg(operand, i);
    const uint64_t* values = w.read(arg, room);
    for (int e = 0; e < per; ++e) {
      const int value = per * i + e;
      defined.push_back(w.defined_of(arg));
      for (int l = 0; l < kLanes; ++l) {
        const auto bits = static_cast<uint32_t>(values[l]);
        tile.c[c_row(l, value)][c_column(l, value)] =
            p.half_c ? element_at(Type{'h', 16}, &bits, e) : float_of(bits);
      }
    }
  }
}

void multiply(const Product& p, Tile& tile) {
  if (p.numerics.truncated) {
    for (int row = 0; row < kTileRows; ++row) {
      for (int n = 0; n < p.n; ++n) tile.c[row][n] = truncated_dot(p, tile, row, n);
    }
    return;
  }
  for (int row = 0; row < kTileRows; ++row) {
    for (int n0 = 0; n0 < p.n; n0 += 8) {
      Doubles sum;
      std::memcpy(&sum, &tile.c[row][n0], sizeof sum);
      for (int k = 0; k < p.k; ++k) {
        Floats b;
        std::memcpy(&b, &tile.b[k][n0], sizeof b);
        sum += static_cast<double>(tile.a[row][k]) * __builtin_convertvector(b, Doubles);
      }
      std::memcpy(&tile.c[row][n0], &sum, sizeof sum);
    }
  }
}

void scatter_d(Warp& w, const Inst& inst, int operand, const Product& p, const Tile& tile,
               const std::vector<Mask>& c_defined) {
  const int per = p.half_d ? 2 : 1;
  for (int i = 0; i < inst.count(operand); ++i) {
    Lanes out;
    std::fill_n(out.v, kLanes, uint64_t{0});
    Mask defined = kAllLanes;
    for (int e = 0; e < per; ++e) {
      const int value = per * i + e;
      for (int l = 0; l < kLanes; ++l) {
        const double sum = tile.c[c_row(l, value)][c_column(l, value)];
        out.v[l] |= static_cast<uint64_t>(result_bits(sum, p.half_d)) << 16 * e;
      }
      defined &= c_defined[static_cast<size_t>(value)];
      if (tile.undefined_rows) defined &= ~lanes_where(tile.undefined_rows, c_row, value);
      if (tile.undefined_columns) defined &= ~lanes_where(tile.undefined_columns, c_column, value);
    }
    const Arg& arg = inst.arg(operand, i);
    w.write(arg, kAllLanes, out.v);
    w.set_defined(arg, kAllLanes, defined);
  }
}

}  // namespace ptxsim
