// Device code of nvfp4_quantize. Torch-free.
#include <cstdint>

#include "common/kernel.cuh"
#include "common/vector.cuh"
#include "nvfp4/nvfp4.cuh"
#include "nvfp4/nvfp4_kernel.h"

namespace vidk::nvfp4 {

__device__ Nvfp4Place locate(const Nvfp4Place& size, int64_t block) {
  const uint64_t row = static_cast<uint64_t>(block) / static_cast<uint64_t>(size.block);
  const uint64_t token = row / static_cast<uint64_t>(size.head);
  const uint64_t batch = token / static_cast<uint64_t>(size.token);
  return {static_cast<int64_t>(batch), static_cast<int64_t>(token - batch * size.token),
          static_cast<int64_t>(row - token * size.head),
          static_cast<int64_t>(block - row * size.block)};
}

__device__ void advance(Nvfp4Place& at, const Nvfp4Place& step, const Nvfp4Place& size) {
  at.block += step.block;
  at.head += step.head;
  at.token += step.token;
  at.batch += step.batch;
  if (at.block >= size.block) {
    at.block -= size.block;
    ++at.head;
  }
  if (at.head >= size.head) {
    at.head -= size.head;
    ++at.token;
  }
  if (at.token >= size.token) {
    at.token -= size.token;
    ++at.batch;
  }
}

// Sixteen bytes of x, by accesses as narrow as they need be.
template <class Format, int kAccess>
struct Chunk {
  using Vec = Vector<Format, kAccess>;
  static constexpr int kVectors = 16 / Vec::kBytes;
  static constexpr int kValues = 8 / Format::kWords;

  Vec vector[kVectors];

  __device__ void clear() {
#pragma unroll
    for (Vec& v : vector) v.clear();
  }
  __device__ void load_once(const char* p) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) vector[i].load_once(p + i * Vec::kBytes);
  }
  __device__ void unpack(float (&x)[kValues]) const {
#pragma unroll
    for (int i = 0; i < kValues / 2; ++i) {
      const float2 t = vector[i / Vec::kPairs].pair(i % Vec::kPairs);
      x[2 * i] = t.x;
      x[2 * i + 1] = t.y;
    }
  }
};

// A warp takes a run of blocks in the order of the outputs, which are dense: the codes of a chunk
// are one run of bytes, and so are the scales of 32 blocks, which one access of the warp writes.
template <Nvfp4Recipe kRecipe, class Format, int kAccess>
__device__ void quantize_tensor(const Nvfp4Params& p) {
  using Source = Chunk<Format, kAccess>;
  constexpr int kValues = Source::kValues;
  constexpr int kLanes = 16 / kValues;  // of one block
  constexpr int kChunkBlocks = 32 / kLanes;
  constexpr int kWarpBlocks = kNvfp4WarpBytes / (32 * Format::kWords);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t warp = int64_t{blockIdx.x} * (kNvfp4Threads / 32) + threadIdx.x / 32;
  const int64_t first = warp * kWarpBlocks;
  const int64_t mine = first + lane / kLanes;
  const int part = lane % kLanes;

  Source chunk[kNvfp4Chunks];
  Nvfp4Place at = locate(p.size, mine);
#pragma unroll
  for (int i = 0; i < kNvfp4Chunks; ++i) {
    chunk[i].clear();
    if (mine + i * kChunkBlocks < p.blocks) {
      chunk[i].load_once(p.x.data + at.batch * p.x.batch_stride + at.token * p.x.token_stride +
                         at.head * p.x.head_stride + (at.block * kLanes + part) * 16);
    }
    advance(at, p.step, p.size);
  }

  uint32_t scales = 0;  // one byte a chunk
#pragma unroll
  for (int i = 0; i < kNvfp4Chunks; ++i) {
    float x[kValues];
    chunk[i].unpack(x);
    const Quantized q = quantize<kRecipe>(x);
    scales |= q.scale << 8 * i;
    const int64_t block = mine + i * kChunkBlocks;
    if (block < p.blocks) {
      uint8_t* const to = p.packed + block * 8 + part * (kValues / 2);
      if constexpr (kValues == 8) {
        *reinterpret_cast<uint32_t*>(to) = q.codes;
      } else {
        *reinterpret_cast<uint16_t*>(to) = static_cast<uint16_t>(q.codes);
      }
    }
  }
  // Lane l has the scales of a block of each chunk; it writes those of block l, and of l + 32.
  const uint32_t gathered = __shfl_sync(0xffffffffu, scales, lane % kChunkBlocks * kLanes);
#pragma unroll
  for (int i = 0; i < kWarpBlocks; i += 32) {
    const int64_t block = first + i + lane;
    const uint32_t scale = gathered >> 8 * ((i + lane) / kChunkBlocks);
    if (block < p.blocks) p.scales[block] = static_cast<uint8_t>(scale);
  }
}

}  // namespace vidk::nvfp4

using namespace vidk;
constexpr auto kPlain = Nvfp4Recipe::kPlain;
constexpr auto k46 = Nvfp4Recipe::kFourOverSix;
constexpr auto kSearch = Nvfp4Recipe::kSearch;
VIDK_KERNEL(vidk_nvfp4_quantize_plain_bf16_16B, Nvfp4Params, (kNvfp4Threads, 4),
            nvfp4::quantize_tensor<kPlain, BFloat16, 16>)
VIDK_KERNEL(vidk_nvfp4_quantize_plain_bf16_2B, Nvfp4Params, (kNvfp4Threads, 4),
            nvfp4::quantize_tensor<kPlain, BFloat16, 2>)
VIDK_KERNEL(vidk_nvfp4_quantize_plain_f16_16B, Nvfp4Params, (kNvfp4Threads, 4),
            nvfp4::quantize_tensor<kPlain, Float16, 16>)
VIDK_KERNEL(vidk_nvfp4_quantize_plain_f16_2B, Nvfp4Params, (kNvfp4Threads, 4),
            nvfp4::quantize_tensor<kPlain, Float16, 2>)
VIDK_KERNEL(vidk_nvfp4_quantize_plain_f32_16B, Nvfp4Params, (kNvfp4Threads, 4),
            nvfp4::quantize_tensor<kPlain, Float32, 16>)
VIDK_KERNEL(vidk_nvfp4_quantize_plain_f32_4B, Nvfp4Params, (kNvfp4Threads, 4),
            nvfp4::quantize_tensor<kPlain, Float32, 4>)
VIDK_KERNEL(vidk_nvfp4_quantize_46_bf16_16B, Nvfp4Params, (kNvfp4Threads, 4),
            nvfp4::quantize_tensor<k46, BFloat16, 16>)
VIDK_KERNEL(vidk_nvfp4_quantize_46_bf16_2B, Nvfp4Params, (kNvfp4Threads, 4),
            nvfp4::quantize_tensor<k46, BFloat16, 2>)
VIDK_KERNEL(vidk_nvfp4_quantize_46_f16_16B, Nvfp4Params, (kNvfp4Threads, 4),
            nvfp4::quantize_tensor<k46, Float16, 16>)
VIDK_KERNEL(vidk_nvfp4_quantize_46_f16_2B, Nvfp4Params, (kNvfp4Threads, 4),
            nvfp4::quantize_tensor<k46, Float16, 2>)
VIDK_KERNEL(vidk_nvfp4_quantize_46_f32_16B, Nvfp4Params, (kNvfp4Threads, 4),
            nvfp4::quantize_tensor<k46, Float32, 16>)
VIDK_KERNEL(vidk_nvfp4_quantize_46_f32_4B, Nvfp4Params, (kNvfp4Threads, 4),
            nvfp4::quantize_tensor<k46, Float32, 4>)
VIDK_KERNEL(vidk_nvfp4_quantize_search_bf16_16B, Nvfp4Params, (kNvfp4Threads, 4),
            nvfp4::quantize_tensor<kSearch, BFloat16, 16>)
VIDK_KERNEL(vidk_nvfp4_quantize_search_bf16_2B, Nvfp4Params, (kNvfp4Threads, 4),
            nvfp4::quantize_tensor<kSearch, BFloat16, 2>)
VIDK_KERNEL(vidk_nvfp4_quantize_search_f16_16B, Nvfp4Params, (kNvfp4Threads, 4),
            nvfp4::quantize_tensor<kSearch, Float16, 16>)
VIDK_KERNEL(vidk_nvfp4_quantize_search_f16_2B, Nvfp4Params, (kNvfp4Threads, 4),
            nvfp4::quantize_tensor<kSearch, Float16, 2>)
VIDK_KERNEL(vidk_nvfp4_quantize_search_f32_16B, Nvfp4Params, (kNvfp4Threads, 4),
            nvfp4::quantize_tensor<kSearch, Float32, 16>)
VIDK_KERNEL(vidk_nvfp4_quantize_search_f32_4B, Nvfp4Params, (kNvfp4Threads, 4),
            nvfp4::quantize_tensor<kSearch, Float32, 4>)
