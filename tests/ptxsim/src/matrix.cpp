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

// One term of an element's sum; factors are multiplied in exactly.
double term(const Product& p, const Tile& tile, int row, int column, int k) {
  const double x = static_cast<double>(tile.a[row][k]) * tile.b[k][column];
  if (p.scales == 0) return x;
  const int s = k / (p.k / p.scales);
  return x * tile.scale_a[row][s] * tile.scale_b[s][column];
}

// One element of the product, block after block of k.
double truncated_dot(const Product& p, const Tile& tile, int row, int column) {
  double sum = tile.c[row][column];
  for (int k0 = 0; k0 < p.k; k0 += p.numerics.block) {
    const int end = std::min(p.k, k0 + p.numerics.block);
    double largest = std::fabs(sum);
    double total = sum;  // for infinities and NaN
    for (int k = k0; k < end; ++k) {
      const double x = term(p, tile, row, column, k);
      largest = std::max(largest, std::fabs(x));
      total += x;
    }
    if (!std::isfinite(total)) return total;
    if (largest == 0) continue;
    const double unit = unit_of(largest, p.numerics.fraction);
    total = cut(sum, unit);
    for (int k = k0; k < end; ++k) {
      total += cut(term(p, tile, row, column, k), unit);
    }
    // The sum goes on as f32, cut and not rounded.
    sum = total == 0 ? 0 : cut(total, std::max(unit_of(std::fabs(total), 23), 0x1p-149));
  }
  return sum;
}

// Adds to columns n0 ... n0 + 7 of the sums of a row the products of `count` k from k0 on.
void add_products(const Tile& tile, int row, int n0, int k0, int count, double* sums) {
  Doubles sum;
  std::memcpy(&sum, &sums[n0], sizeof sum);
  for (int k = k0; k < k0 + count; ++k) {
    Floats b;
    std::memcpy(&b, &tile.b[k][n0], sizeof b);
    sum += static_cast<double>(tile.a[row][k]) * __builtin_convertvector(b, Doubles);
  }
  std::memcpy(&sums[n0], &sum, sizeof sum);
}

void add_scaled(const Product& p, Tile& tile, int row, int n0) {
  const int length = p.k / p.scales;
  for (int s = 0; s < p.scales; ++s) {
    double part[Tile::kMaxN];
    std::fill_n(&part[n0], 8, 0.0);
    add_products(tile, row, n0, s * length, length, part);
    for (int n = n0; n < n0 + 8; ++n) {
      tile.c[row][n] += part[n] * tile.scale_a[row][s] * tile.scale_b[s][n];
    }
  }
}

// The factors that one lane holds; false, and zeros, if nobody defined them.
bool lane_scales(const Warp& w, const Arg& data, int lane, int byte, const Product& p,
                 float* factors) {
  std::fill_n(factors, p.scales, 0.f);
  if (!(w.defined_of(data) >> lane & 1)) return false;
  const uint64_t value = w.lane_value(data, lane);
  for (int s = 0; s < p.scales; ++s) {
    factors[s] = scale_factor(p.scale, static_cast<uint8_t>(value >> 8 * (byte + s)));
  }
  return true;
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
  if (operand.bits == 4) n.block = 64;
  // FP8 sums keep 13 bits on these.
  if (operand.bits == 8 && (arch == 89 || arch == 90)) n.fraction = 13;
  return n;
}

void require_whole_warp(const Warp& w, Mask active, const char* what) {
  if (active == kAllLanes && w.live == kAllLanes) return;
  throw Fault("divergence", std::string(what) + " by lanes " + hex(active) +
                                " only: all 32 lanes of the warp must execute it");
}

uint64_t uniform(const Warp& w, const Arg& arg, const char* what) {
  w.require(arg, kAllLanes, what);
  const uint64_t value = w.lane_value(arg, 0);
  for (int l = 1; l < kLanes; ++l) {
    if (w.lane_value(arg, l) != value) {
      throw Fault("divergence", std::string(what) + " differs between the lanes of a warp");
    }
  }
  return value;
}

const ScaleRule* take_scale_rule(Decoder& d, bool blocks_too) {
  static constexpr ScaleRule kRules[] = {
      {"kind::mxf8f6f4", "scale_vec::1X", "block32", true, 1, "U"},
      {"kind::mxf4", "scale_vec::2X", "block32", true, 2, "U"},
      {"kind::mxf4nvf4", "scale_vec::2X", "block32", false, 2, "U"},
      {"kind::mxf4nvf4", "scale_vec::4X", "block16", false, 4, "UV"},
  };
  if (!d.take("block_scale")) return nullptr;
  for (const ScaleRule& rule : kRules) {
    if (!d.has(rule.kind)) continue;
    const bool named = d.take(rule.vector) || (blocks_too && d.take(rule.block));
    if (!named && !rule.implied) continue;
    d.take(rule.kind);
    return &rule;
  }
  d.fail("no such kind, or no .scale_vec that goes with it");
}

uint32_t result_bits(double sum, bool half) {
  if (half) return encode(kF16, sum, Rounding::kNearest);
  const float rounded = canonical(static_cast<float>(sum));
  uint32_t bits;
  std::memcpy(&bits, &rounded, sizeof bits);
  return bits;
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

float scale_factor(Type type, uint8_t code) {
  if (type.kind == 'V' && code & 0x80) {
    throw Fault("unsupported", "a ue4m3 scale factor with its top bit set: " + hex(code));
  }
  return element_value(type, code);
}

void gather_scales_a(const Warp& w, const Arg& data, Selector from, const Product& p, Tile& tile) {
  for (int row = 0; row < kTileRows; ++row) {
    const int lane = 4 * (row % 8) + 2 * from.thread + row / 8;
    if (!lane_scales(w, data, lane, from.byte, p, tile.scale_a[row])) {
      tile.undefined_rows |= 1u << row;
    }
  }
}

void gather_scales_b(const Warp& w, const Arg& data, Selector from, const Product& p, Tile& tile) {
  for (int column = 0; column < p.n; ++column) {
    float factors[Tile::kMaxScales];
    if (!lane_scales(w, data, 4 * column + from.thread, from.byte, p, factors)) {
      tile.undefined_columns |= 1u << column;
    }
    for (int s = 0; s < p.scales; ++s) tile.scale_b[s][column] = factors[s];
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
      if (p.scales) {
        add_scaled(p, tile, row, n0);
      } else {
        add_products(tile, row, n0, 0, p.k, tile.c[row]);
      }
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
