// The conversions of the CUDA headers in their host form, for ctypes.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp4.h>
#include <cuda_fp8.h>

#include <cstdint>
#include <cstring>

namespace {

template <class To, class From>
To bits(From x) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To y;
  std::memcpy(&y, &x, sizeof y);
  return y;
}

__half_raw raw_half(uint32_t x) { return __half_raw(bits<__half>(static_cast<uint16_t>(x))); }
__nv_bfloat16_raw raw_brain(uint32_t x) {
  return __nv_bfloat16_raw(bits<__nv_bfloat16>(static_cast<uint16_t>(x)));
}

}  // namespace

#define CONVERSION(name, expression)                                   \
  extern "C" void name(int64_t n, const uint32_t* in, uint32_t* out) { \
    for (int64_t i = 0; i < n; ++i) {                                  \
      const uint32_t x = in[i];                                        \
      out[i] = expression;                                             \
    }                                                                  \
  }

CONVERSION(e4m3_from_f32, __nv_cvt_float_to_fp8(bits<float>(x), __NV_SATFINITE, __NV_E4M3))
CONVERSION(e5m2_from_f32, __nv_cvt_float_to_fp8(bits<float>(x), __NV_SATFINITE, __NV_E5M2))
CONVERSION(e4m3_from_f16, __nv_cvt_halfraw_to_fp8(raw_half(x), __NV_SATFINITE, __NV_E4M3))
CONVERSION(e5m2_from_f16, __nv_cvt_halfraw_to_fp8(raw_half(x), __NV_SATFINITE, __NV_E5M2))
CONVERSION(e2m1_from_f32, __nv_cvt_float_to_fp4(bits<float>(x), __NV_E2M1, cudaRoundNearest))
CONVERSION(f16_from_e4m3, __half_raw(__nv_cvt_fp8_to_halfraw(x, __NV_E4M3)).x)
CONVERSION(f16_from_e5m2, __half_raw(__nv_cvt_fp8_to_halfraw(x, __NV_E5M2)).x)
CONVERSION(f16_from_e2m1, __half_raw(__nv_cvt_fp4_to_halfraw(x, __NV_E2M1)).x)
CONVERSION(ue8m0_from_f32_rz, __nv_cvt_float_to_e8m0(bits<float>(x), __NV_NOSAT, cudaRoundZero))
CONVERSION(ue8m0_from_f32_rp, __nv_cvt_float_to_e8m0(bits<float>(x), __NV_NOSAT, cudaRoundPosInf))
CONVERSION(ue8m0_from_f32_rz_satfinite,
           __nv_cvt_float_to_e8m0(bits<float>(x), __NV_SATFINITE, cudaRoundZero))
CONVERSION(ue8m0_from_f32_rp_satfinite,
           __nv_cvt_float_to_e8m0(bits<float>(x), __NV_SATFINITE, cudaRoundPosInf))
CONVERSION(ue8m0_from_bf16_rp_satfinite,
           __nv_cvt_bfloat16raw_to_e8m0(raw_brain(x), __NV_SATFINITE, cudaRoundPosInf))
CONVERSION(bf16_from_ue8m0, __nv_cvt_e8m0_to_bf16raw(static_cast<uint8_t>(x)).x)
CONVERSION(f16_from_f32_rn, __half_raw(__float2half_rn(bits<float>(x))).x)
CONVERSION(f16_from_f32_rz, __half_raw(__float2half_rz(bits<float>(x))).x)
CONVERSION(f16_from_f32_rm, __half_raw(__float2half_rd(bits<float>(x))).x)
CONVERSION(f16_from_f32_rp, __half_raw(__float2half_ru(bits<float>(x))).x)
CONVERSION(bf16_from_f32_rn, __nv_bfloat16_raw(__float2bfloat16_rn(bits<float>(x))).x)
CONVERSION(bf16_from_f32_rz, __nv_bfloat16_raw(__float2bfloat16_rz(bits<float>(x))).x)
CONVERSION(bf16_from_f32_rm, __nv_bfloat16_raw(__float2bfloat16_rd(bits<float>(x))).x)
CONVERSION(bf16_from_f32_rp, __nv_bfloat16_raw(__float2bfloat16_ru(bits<float>(x))).x)
CONVERSION(f32_from_f16, bits<uint32_t>(__half2float(__half(raw_half(x)))))
CONVERSION(f32_from_bf16, bits<uint32_t>(__bfloat162float(__nv_bfloat16(raw_brain(x)))))
CONVERSION(s32_from_f16_rzi, static_cast<uint32_t>(__half2int_rz(__half(raw_half(x)))))
CONVERSION(s32_from_bf16_rzi, static_cast<uint32_t>(__bfloat162int_rz(__nv_bfloat16(raw_brain(x)))))
CONVERSION(f16_from_s32_rn, __half_raw(__int2half_rn(static_cast<int32_t>(x))).x)
CONVERSION(bf16_from_s32_rn, __nv_bfloat16_raw(__int2bfloat16_rn(static_cast<int32_t>(x))).x)
