// The product of one warp: 16 rows of A times a matrix B, from and to registers. mma.sync is one
// such product, wgmma four of them side by side.
//
// Fragments (PTX ISA 9.7.14.5): with g = lane / 4, t = lane % 4 and `per` elements in a 32-bit
// register, lower bits first,
//   A, register i, element e:  row g + 8 (i & 1),        k = per t + 4 per (i >> 1) + e
//   B, register i, element e:  column g,                 k = per t + 4 per i + e
//   C and D, value r:          row g + 8 ((r >> 1) & 1), column 8 (r >> 2) + 2 t + (r & 1)
// Block-scaled products multiply each run of k, of equal lengths, by a factor per row of A and one
// per column of B. The factors of a row come from one of the lanes with its g, those of row g + 8
// from the next lane, those of column g from one lane; a selector says which, and at which byte of
// their register they begin.
#pragma once

#include "element.h"
#include "machine.h"

namespace ptxsim {

constexpr int kTileRows = 16;  // of one warp

inline int a_row(int lane, int reg) { return lane / 4 + 8 * (reg & 1); }
inline int a_k(int lane, int reg, int e, int per) {
  return per * (lane % 4) + 4 * per * (reg >> 1) + e;
}
inline int b_column(int lane) { return lane / 4; }
inline int b_k(int lane, int reg, int e, int per) { return per * (lane % 4) + 4 * per * reg + e; }
inline int c_row(int lane, int value) { return lane / 4 + 8 * (value >> 1 & 1); }
inline int c_column(int lane, int value) { return 8 * (value >> 2) + 2 * (lane % 4) + (value & 1); }

// How the tensor core rounds (the ISA leaves it open). "Exact": products and sums in double, one
// rounding per instruction. "Truncated", after published measurements: per block of k, all products
// and the accumulator are cut to `fraction` bits below the largest of them, towards zero.
struct Numerics {
  bool truncated = false;
  int block = 16;
  int fraction = 25;
};
Numerics numerics_of(const Machine& machine, Type operand);

// One instruction's shapes and types.
struct Product {
  int n = 8, k = 16;
  Type a, b;
  bool half_c = false, half_d = false;  // f16 accumulators, two in a register; else f32
  int scales = 0;                       // factors per row and column; 0: no block scaling
  Type scale;
  Numerics numerics;
};

// What block-scaled instructions may be. `.block16` and `.block32` of tcgen05 are other names of
// the scale vectors.
struct ScaleRule {
  const char* kind;
  const char* vector;
  const char* block;
  bool implied;  // the instruction need not name the vector
  int scales;
  const char* types;  // of the factors
};
// Takes .block_scale, .kind and the scale vector; null if the instruction scales nothing.
const ScaleRule* take_scale_rule(Decoder& d, bool blocks_too);

// The value of a scalar operand, which must be the same in all lanes.
uint64_t uniform(const Warp& w, const Arg& arg, const char* what);

// Operands gathered from the lanes. What depends on an undefined value is undefined.
struct Tile {
  static constexpr int kMaxN = 256, kMaxK = 64, kMaxScales = 4;
  float a[kTileRows][kMaxK];
  float b[kMaxK][kMaxN];
  double c[kTileRows][kMaxN];
  float scale_a[kTileRows][kMaxScales];
  float scale_b[kMaxScales][kMaxN];
  uint32_t undefined_rows = 0;     // of A
  uint32_t undefined_columns = 0;  // of B; only mma.sync, whose n is 8, has B in registers
};

// Faults unless the whole warp is there.
void require_whole_warp(const Warp& w, Mask active, const char* what);

void gather_a(const Warp& w, const Inst& inst, int operand, const Product& p, Tile& tile);
void gather_b(const Warp& w, const Inst& inst, int operand, const Product& p, Tile& tile);
// C into tile.c; the defined lanes of every register into `defined`.
void gather_c(const Warp& w, const Inst& inst, int operand, const Product& p, Tile& tile,
              std::vector<Mask>& defined);
// Where in the registers of a warp the factors of A or B are.
struct Selector {
  int byte = 0, thread = 0;
};
void gather_scales_a(const Warp& w, const Arg& data, Selector from, const Product& p, Tile& tile);
void gather_scales_b(const Warp& w, const Arg& data, Selector from, const Product& p, Tile& tile);
// The factor that a byte holds.
float scale_factor(Type type, uint8_t code);
void multiply(const Product& p, Tile& tile);  // c += a b
uint32_t result_bits(double sum, bool half);  // of an accumulator, rounded
void scatter_d(Warp& w, const Inst& inst, int operand, const Product& p, const Tile& tile,
               const std::vector<Mask>& c_defined);

}  // namespace ptxsim
