// The matrix unit of sm_100 and its tensor memory, 128 rows of 512 columns of 32 bits (PTX ISA
// 9.7.16). An address in tensor memory is row << 16 | column. Device code, torch-free.
#pragma once

#include <cstdint>

#include "common/mbarrier.cuh"

namespace vidk::tcgen05 {

// --- allocation, by one whole warp

__device__ inline void allocate(uint32_t* address, uint32_t columns) {
  asm volatile("tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%0], %1;" ::"r"(
                   shared_address(address)),
               "r"(columns)
               : "memory");
  asm volatile("tcgen05.relinquish_alloc_permit.cta_group::1.sync.aligned;");
}

__device__ inline void deallocate(uint32_t address, uint32_t columns) {
  asm volatile("tcgen05.dealloc.cta_group::1.sync.aligned.b32 %0, %1;" ::"r"(address),
               "r"(columns));
}

// --- order: on both sides of what makes one thread's operations known to another

__device__ inline void fence_before() {
  asm volatile("tcgen05.fence::before_thread_sync;" ::: "memory");
}
__device__ inline void fence_after() {
  asm volatile("tcgen05.fence::after_thread_sync;" ::: "memory");
}

// Lets the barrier be arrived at when all that this thread has started is complete.
__device__ inline void commit(Mbarrier& done) {
  asm volatile("tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [%0];" ::"r"(
                   done.address())
               : "memory");
}

// --- operands in shared memory

// Of a matrix in atoms of eight rows as wide as the swizzle. Bytes from one atom to the next:
// `stride` along M or N, or along k if rows run along N; `leading` from one row's width to the
// next.
__device__ inline uint64_t matrix(uint32_t at, int swizzle, uint32_t stride, uint32_t leading) {
  const uint64_t layout = swizzle == 128 ? 2 : swizzle == 64 ? 4 : 6;
  return (at & 0x3ffff) >> 4 | uint64_t{leading >> 4} << 16 | uint64_t{stride >> 4} << 32 |
         uint64_t{1} << 46 | layout << 61;
}

// 512 bytes, the scale factors of 128 rows, to four columns of all four quarters of tensor memory.
__device__ inline void copy_scales(uint32_t to, uint32_t at) {
  const uint64_t from = at >> 4 | uint64_t{128 >> 4} << 32 | uint64_t{1} << 46;
  asm volatile("tcgen05.cp.cta_group::1.32x128b.warpx4 [%0], %1;" ::"r"(to), "l"(from) : "memory");
}

// --- products of 128 rows: d (+)= a b

// Fields of instruction descriptors (PTX ISA 9.7.16.4.2).
constexpr uint32_t kRows = 128 / 16 << 24;
constexpr uint32_t kFloatSums = 1 << 4;
constexpr uint32_t kNegateA = 1 << 13;
constexpr uint32_t kRowsAlongN = 1 << 16;  // of B
constexpr uint32_t kBFloat16 = 1 << 7 | 1 << 10;
constexpr uint32_t kE4M3 = 0;
constexpr uint32_t kE2M1 = 1 << 7 | 1 << 10;
constexpr uint32_t kE8M0Scales = 1 << 23;
__device__ constexpr uint32_t columns(uint32_t n) { return n / 8 << 17; }
// Which of the four scale factors in a word of tensor memory.
__device__ constexpr uint32_t scale_byte(uint32_t i) { return i << 4 | i << 29; }

#define VIDK_TCGEN05_MMA(name, kind, a_type, a_constraint, a)                          \
  __device__ inline void name(uint32_t d, a_type at, uint64_t b, uint32_t instruction, \
                              bool accumulate) {                                       \
    asm volatile(                                                                      \
        "{ .reg .pred p;\nsetp.ne.u32 p, %4, 0;\n"                                     \
        "tcgen05.mma.cta_group::1.kind::" kind " [%0], " a ", %2, %3, p; }" ::"r"(d),  \
        a_constraint(at), "l"(b), "r"(instruction), "r"(uint32_t{accumulate})          \
        : "memory");                                                                   \
  }
VIDK_TCGEN05_MMA(multiply_f16, "f16", uint64_t, "l", "%1")
// With A in tensor memory, two or four elements of a row to a column.
VIDK_TCGEN05_MMA(multiply_f16_from_tensor, "f16", uint32_t, "r", "[%1]")
VIDK_TCGEN05_MMA(multiply_fp8_from_tensor, "f8f6f4", uint32_t, "r", "[%1]")
#undef VIDK_TCGEN05_MMA

#define VIDK_TCGEN05_SCALED(name, kind)                                                           \
  __device__ inline void name(uint32_t d, uint64_t a, uint64_t b, uint32_t instruction,           \
                              uint32_t a_scales, uint32_t b_scales, bool accumulate) {            \
    asm volatile(                                                                                 \
        "{ .reg .pred p;\nsetp.ne.u32 p, %6, 0;\n"                                                \
        "tcgen05.mma.cta_group::1.kind::" kind " [%0], %1, %2, %3, [%4], [%5], p; }" ::"r"(d),    \
        "l"(a), "l"(b), "r"(instruction), "r"(a_scales), "r"(b_scales), "r"(uint32_t{accumulate}) \
        : "memory");                                                                              \
  }
VIDK_TCGEN05_SCALED(multiply_nvfp4, "mxf4nvf4.block_scale.block16")
VIDK_TCGEN05_SCALED(multiply_mxfp8, "mxf8f6f4.block_scale.block32")
#undef VIDK_TCGEN05_SCALED

// --- registers: a thread has a row, a warp the quarter of its number modulo four

__device__ inline void wait_for_loads() {
  asm volatile("tcgen05.wait::ld.sync.aligned;" ::: "memory");
}
__device__ inline void wait_for_stores() {
  asm volatile("tcgen05.wait::st.sync.aligned;" ::: "memory");
}

#define VIDK_8(op, r, i)                                                              \
  op((r)[i]), op((r)[(i) + 1]), op((r)[(i) + 2]), op((r)[(i) + 3]), op((r)[(i) + 4]), \
      op((r)[(i) + 5]), op((r)[(i) + 6]), op((r)[(i) + 7])

// 32 columns; nothing is in `r` before wait_for_loads().
__device__ inline void load(uint32_t at, float* r) {
  asm volatile(
      "tcgen05.ld.sync.aligned.32x32b.x32.b32 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, "
      "%12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, "
      "%30, %31}, [%32];"
      : VIDK_8("=f", r, 0), VIDK_8("=f", r, 8), VIDK_8("=f", r, 16), VIDK_8("=f", r, 24)
      : "r"(at)
      : "memory");
}

__device__ inline void store(uint32_t at, const float (&r)[32]) {
  asm volatile(
      "tcgen05.st.sync.aligned.32x32b.x32.b32 [%32], {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, "
      "%11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, "
      "%29, %30, %31};" ::VIDK_8("f", r, 0),
      VIDK_8("f", r, 8), VIDK_8("f", r, 16), VIDK_8("f", r, 24), "r"(at)
      : "memory");
}
__device__ inline void store(uint32_t at, const uint32_t (&r)[16]) {
  asm volatile(
      "tcgen05.st.sync.aligned.32x32b.x16.b32 [%16], {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, "
      "%11, %12, %13, %14, %15};" ::VIDK_8("r", r, 0),
      VIDK_8("r", r, 8), "r"(at)
      : "memory");
}
__device__ inline void store(uint32_t at, const uint32_t (&r)[8]) {
  asm volatile(
      "tcgen05.st.sync.aligned.32x32b.x8.b32 [%8], {%0, %1, %2, %3, %4, %5, %6, %7};" ::VIDK_8(
          "r", r, 0),
      "r"(at)
      : "memory");
}
#undef VIDK_8

}  // namespace vidk::tcgen05
