// Attention for what the tile kernels (kernels/) do not take: float32, any D, any strides.
// Simple and right comes before fast here. Torch-free.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "attention/attention_kernel.h"
#include "common/kernel.cuh"

namespace vidk::attention {

constexpr int kLaneElements = 8;  // of the output row that a lane holds
constexpr int64_t kChunk = 32 * kLaneElements;

__device__ float to_float(float x) { return x; }
__device__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ float to_float(__half x) { return __half2float(x); }
__device__ void round_to(float x, float* out) { *out = x; }
__device__ void round_to(float x, __nv_bfloat16* out) { *out = __float2bfloat16_rn(x); }
__device__ void round_to(float x, __half* out) { *out = __float2half_rn(x); }

template <class T>
__device__ const T* row_of(const Rows& x, int64_t b, int64_t token, int64_t head) {
  return reinterpret_cast<const T*>(x.data + b * x.batch_stride + token * x.token_stride +
                                    head * x.head_stride);
}

// The lanes' partial products add up in the same order for every lane.
template <class T>
__device__ float dot(const T* a, const T* b, int64_t dim, int lane) {
  float sum = 0;
  for (int64_t d = lane; d < dim; d += 32) sum += to_float(a[d]) * to_float(b[d]);
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  return sum;
}

// One row of q, for output elements [begin, begin + kChunk); rows longer than that compute the
// logits again for each chunk, and the first writes the log-sum-exp.
template <class T>
__device__ void attend(const AttentionParams& p, int64_t b, int64_t head, int64_t token,
                       int64_t begin, int lane) {
  const int64_t length =
      max(int64_t{0}, min(static_cast<int64_t>(p.lens[b * p.len_stride]), p.capacity));
  const int64_t pads = p.fold ? p.capacity - length : 0;
  const int64_t keys = length + (pads > 0);
  const T* q = row_of<T>(p.q, b, token, head);
  float acc[kLaneElements] = {};
  float row_max = -INFINITY;
  float row_sum = 0;
  for (int64_t key = 0; key < keys; ++key) {
    float logit = p.scale * dot(q, row_of<T>(p.k, b, key, head), p.dim, lane);
    // n equal keys weigh as much as one whose logit is greater by log n.
    if (key == length) logit += logf(static_cast<float>(pads));
    const float new_max = fmaxf(row_max, logit);
    // Without a finite logit so far there is nothing to correct, and inf - inf would be NaN.
    const float base = new_max == -INFINITY ? 0 : new_max;
    const float correction = expf(row_max - base);
    const float weight = expf(logit - base);
    row_max = new_max;
    row_sum = row_sum * correction + weight;
    const T* v = row_of<T>(p.v, b, key, head);
#pragma unroll
    for (int i = 0; i < kLaneElements; ++i) {
      const int64_t d = begin + lane + 32 * i;
      if (d < p.dim) acc[i] = acc[i] * correction + weight * to_float(v[d]);
    }
  }
  T* out = reinterpret_cast<T*>(p.out) + ((b * p.tokens + token) * p.heads + head) * p.dim;
#pragma unroll
  for (int i = 0; i < kLaneElements; ++i) {
    const int64_t d = begin + lane + 32 * i;
    if (d < p.dim) round_to(keys == 0 ? 0 : acc[i] / row_sum, out + d);
  }
  if (p.lse != nullptr && begin == 0 && lane == 0) {
    p.lse[(b * p.heads + head) * p.tokens + token] =
        keys == 0 ? -INFINITY : row_max + logf(row_sum);
  }
}

// One warp for a row; neighbouring warps have neighbouring rows of one head and read the same keys.
template <class T>
__device__ void rows(const AttentionParams& p) {
  const int lane = threadIdx.x % 32;
  const int64_t count = p.batch * p.heads * p.tokens;
  int64_t row = static_cast<int64_t>(blockIdx.x) * kAttentionWarps + threadIdx.x / 32;
  for (; row < count; row += static_cast<int64_t>(gridDim.x) * kAttentionWarps) {
    const int64_t token = row % p.tokens;
    const int64_t head = row / p.tokens % p.heads;
    const int64_t b = row / p.tokens / p.heads;
    int64_t begin = 0;
    do {  // at least once: a row without elements has a log-sum-exp
      attend<T>(p, b, head, token, begin, lane);
      begin += kChunk;
    } while (begin < p.dim);
  }
}

}  // namespace vidk::attention

using namespace vidk;
VIDK_KERNEL(vidk_attention_simt_f32, AttentionParams, (32 * kAttentionWarps, 1),
            attention::rows<float>)
VIDK_KERNEL(vidk_attention_simt_bf16, AttentionParams, (32 * kAttentionWarps, 1),
            attention::rows<__nv_bfloat16>)
VIDK_KERNEL(vidk_attention_simt_f16, AttentionParams, (32 * kAttentionWarps, 1),
            attention::rows<__half>)
