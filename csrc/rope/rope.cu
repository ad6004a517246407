// Device code of rope_3d. Torch-free.
#include "common/kernel.cuh"
#include "rope/rope_block.cuh"

namespace vidk::rope {

template <class Format, int kAccess>
__device__ void rope_3d(const RopeParams& p) {
  rotate<Format, kAccess>(
      p, blockIdx.x, [] {}, [](const auto& vector, char* at) { vector.store(at); });
}

}  // namespace vidk::rope

using namespace vidk;
VIDK_KERNEL(vidk_rope_3d_bf16_16B, RopeParams, (kRopeThreads, 3), rope::rope_3d<BFloat16, 16>)
VIDK_KERNEL(vidk_rope_3d_bf16_8B, RopeParams, (kRopeThreads, 3), rope::rope_3d<BFloat16, 8>)
VIDK_KERNEL(vidk_rope_3d_bf16_4B, RopeParams, (kRopeThreads, 3), rope::rope_3d<BFloat16, 4>)
VIDK_KERNEL(vidk_rope_3d_bf16_2B, RopeParams, (kRopeThreads, 3), rope::rope_3d<BFloat16, 2>)
VIDK_KERNEL(vidk_rope_3d_f16_16B, RopeParams, (kRopeThreads, 3), rope::rope_3d<Float16, 16>)
VIDK_KERNEL(vidk_rope_3d_f16_8B, RopeParams, (kRopeThreads, 3), rope::rope_3d<Float16, 8>)
VIDK_KERNEL(vidk_rope_3d_f16_4B, RopeParams, (kRopeThreads, 3), rope::rope_3d<Float16, 4>)
VIDK_KERNEL(vidk_rope_3d_f16_2B, RopeParams, (kRopeThreads, 3), rope::rope_3d<Float16, 2>)
VIDK_KERNEL(vidk_rope_3d_f32_16B, RopeParams, (kRopeThreads, 3), rope::rope_3d<Float32, 16>)
VIDK_KERNEL(vidk_rope_3d_f32_8B, RopeParams, (kRopeThreads, 3), rope::rope_3d<Float32, 8>)
VIDK_KERNEL(vidk_rope_3d_f32_4B, RopeParams, (kRopeThreads, 3), rope::rope_3d<Float32, 4>)
