// Instructions of the sm_120 family that fp4_attention takes, one function each. Device code,
// torch-free.
#pragma once

#include <cstdint>

namespace vidk::sm120 {

// 16 bytes to shared memory; zeros instead, and nothing is read, unless `valid`.
__device__ inline void copy_async(uint32_t to, const void* from, bool valid = true) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(valid ? 16 : 0)
               : "memory");
}

__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int kPending>
__device__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Four matrices of 8 rows of 16 bytes, row r of matrix j at the address of lane 8 j + r.
__device__ inline void load_matrices(uint32_t at, uint32_t (&out)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(at)
               : "memory");
}

__device__ inline void load_transposed(uint32_t at, uint32_t (&out)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(at)
               : "memory");
}

__device__ inline uint4 load_shared(uint32_t at) {
  uint4 x;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "r"(at)
               : "memory");
  return x;
}

// d += a b, 16 x 8 x 64, E2M1 with a factor per 16: the word of lane 4 g of `scale_a` is that of
// row g, of lane 4 g + 1 that of row g + 8; of lane 4 g + `lane_b` of `scale_b` that of column g.
__device__ inline void multiply_fp4(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                    uint32_t scale_a, uint32_t scale_b, uint16_t lane_b) {
  asm("mma.sync.aligned.m16n8k64.row.col.kind::mxf4nvf4.block_scale.scale_vec::4X"
      ".f32.e2m1.e2m1.f32.ue4m3 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3}, "
      "{%10}, {0, 0}, {%11}, {0, %12};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(scale_a), "r"(scale_b),
        "h"(lane_b));
}

// d += a b, 16 x 8 x 32, E4M3 with a factor per 32: byte `byte` of the words above.
__device__ inline void multiply_fp8(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                    uint32_t scale_a, uint32_t scale_b, uint16_t byte,
                                    uint16_t lane_b) {
  asm("mma.sync.aligned.m16n8k32.row.col.kind::mxf8f6f4.block_scale.scale_vec::1X"
      ".f32.e4m3.e4m3.f32.ue8m0 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3}, "
      "{%10}, {%12, 0}, {%11}, {%12, %13};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(scale_a), "r"(scale_b),
        "h"(byte), "h"(lane_b));
}

// Four numbers, the first in the lowest bits.
__device__ inline uint32_t pack_e4m3(float x0, float x1, float x2, float x3) {
  uint32_t x;
  asm("{ .reg .b16 low, high; cvt.rn.satfinite.e4m3x2.f32 low, %2, %1; "
      "cvt.rn.satfinite.e4m3x2.f32 high, %4, %3; mov.b32 %0, {low, high}; }"
      : "=r"(x)
      : "f"(x0), "f"(x1), "f"(x2), "f"(x3));
  return x;
}

}  // namespace vidk::sm120
