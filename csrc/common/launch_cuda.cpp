#include "common/launch_cuda.h"

#include <cuda.h>
#include <cudaTypedefs.h>

#include <mutex>
#include <unordered_map>

#include "common/cuda.h"
#include "common/device_code.h"

namespace vidk {
namespace {

// Lets code be loaded while this thread captures a CUDA graph: it is no work of the stream.
class CaptureRelaxed {
 public:
  CaptureRelaxed() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~CaptureRelaxed() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  CaptureRelaxed(const CaptureRelaxed&) = delete;
  CaptureRelaxed& operator=(const CaptureRelaxed&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

// A kernel that has been looked up, and how much shared memory it has asked for on each device.
struct LoadedKernel {
  cudaKernel_t handle = nullptr;
  std::unordered_map<int32_t, uint32_t> shared_bytes;
};

// Device code is loaded when first needed and never unloaded: at exit the driver may be gone.
class Kernels {
 public:
  // The kernel of a plan, ready to be launched.
  cudaKernel_t get(const char* op, const LaunchPlan& plan, int32_t device) {
    const std::lock_guard<std::mutex> lock(mutex_);
    LoadedKernel& kernel = kernels_[plan.kernel];
    if (kernel.handle == nullptr) {
      kernel.handle = load(op, plan.kernel, device);
    }
    // Beyond 48 KiB, static shared memory included, a kernel has to ask; asking for less is
    // allowed.
    if (plan.shared_bytes > 0) {
      const CaptureRelaxed relaxed;
      uint32_t& granted = kernel.shared_bytes[device];
      if (plan.shared_bytes > granted) {
        check_launch(op, device,
                     cudaKernelSetAttributeForDevice(kernel.handle,
                                                     cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                     static_cast<int>(plan.shared_bytes), device));
        granted = plan.shared_bytes;
      }
    }
    return kernel.handle;
  }

 private:
  cudaKernel_t load(const char* op, const std::string& name, int32_t device) {
    for (size_t i = 0; i < kEmbeddedKernelCount; ++i) {
      const EmbeddedKernel& embedded = kEmbeddedKernels[i];
      if (name != embedded.name) continue;
      const CaptureRelaxed relaxed;
      cudaLibrary_t& library = libraries_[embedded.fatbin];
      if (library == nullptr) {
        check_launch(op, device,
                     cudaLibraryLoadData(&library, embedded.fatbin, nullptr, nullptr, 0, nullptr,
                                         nullptr, 0));
      }
      cudaKernel_t kernel = nullptr;
      check_launch(op, device, cudaLibraryGetKernel(&kernel, library, name.c_str()));
      return kernel;
    }
    // A plan asked for code of an architecture that was left out of VIDK_CUDA_ARCHS.
    check_launch(op, device, cudaErrorNoKernelImageForDevice);
    return nullptr;
  }

  std::mutex mutex_;
  std::unordered_map<std::string, LoadedKernel> kernels_;
  std::unordered_map<const unsigned char*, cudaLibrary_t> libraries_;
};

Kernels& kernels() {
  static Kernels* const all = new Kernels;
  return *all;
}

// The driver's encoder, found through the runtime: nothing links libcuda.
PFN_cuTensorMapEncodeTiled_v12000 tensor_map_encoder(const char* op, int32_t device) {
  static const auto encoder = [&] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found;
    check_launch(op, device,
                 cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                                  cudaEnableDefault, &found));
    if (found != cudaDriverEntryPointSuccess) check_launch(op, device, cudaErrorInsufficientDriver);
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
  }();
  return encoder;
}

CUtensorMapSwizzle swizzle_of(Swizzle swizzle) {
  switch (swizzle) {
    case Swizzle::kNone:
      return CU_TENSOR_MAP_SWIZZLE_NONE;
    case Swizzle::k32B:
      return CU_TENSOR_MAP_SWIZZLE_32B;
    case Swizzle::k64B:
      return CU_TENSOR_MAP_SWIZZLE_64B;
    case Swizzle::k128B:
      break;
  }
  return CU_TENSOR_MAP_SWIZZLE_128B;
}

CUtensorMap encode(const char* op, const TensorMap& map, int32_t device) {
  static_assert(sizeof(CUtensorMap) == kTensorMapBytes && alignof(CUtensorMap) <= kTensorMapAlign);
  const cuuint32_t element_stride[TensorMap::kMaxRank] = {1, 1, 1, 1, 1};
  CUtensorMap encoded;
  // Loads move bits: any 2-byte type will do, and zeros past the end are zeros in all of them.
  const CUresult result = tensor_map_encoder(op, device)(
      &encoded, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, map.rank, reinterpret_cast<void*>(map.base),
      map.dim, map.stride, map.box, element_stride, CU_TENSOR_MAP_INTERLEAVE_NONE,
      swizzle_of(map.swizzle), CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    fail(op, "device", "a tensor map that the driver refuses (" + std::to_string(result) + ")",
         "one that it takes");
  }
  return encoded;
}

}  // namespace

DeviceInfo device_info(const char* op, int32_t device) {
  static std::mutex mutex;
  static std::unordered_map<int32_t, DeviceInfo> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(device);
  if (found != known.end()) return found->second;
  // The first call of the runtime: an old driver shows here.
  const auto attribute = [&](cudaDeviceAttr which) {
    int value = 0;
    check_launch(op, device, cudaDeviceGetAttribute(&value, which, device));
    return value;
  };
  const int major = attribute(cudaDevAttrComputeCapabilityMajor);
  const int minor = attribute(cudaDevAttrComputeCapabilityMinor);
  const int sm_count = attribute(cudaDevAttrMultiProcessorCount);
  return known[device] = {10 * major + minor, sm_count};
}

void launch(const char* op, const LaunchPlan& plan, int32_t device) {
  if (plan.kernel.empty()) return;
  const cudaKernel_t kernel = kernels().get(op, plan, device);

  // The driver copies the parameters at launch, so that maps need no lasting place of their own.
  std::vector<std::byte> bytes;
  const std::byte* base = plan.args.bytes.data();
  if (!plan.args.maps.empty()) {
    // The driver encodes only where a context is current, which a new thread does not have yet.
    check_launch(op, device, cudaSetDevice(device));
    bytes = plan.args.bytes;
    for (size_t i = 0; i < plan.args.maps.size(); ++i) {
      const CUtensorMap encoded = encode(op, plan.args.maps[i], device);
      std::memcpy(bytes.data() + plan.args.map_at[i], &encoded, sizeof(encoded));
    }
    base = bytes.data();
  }
  std::vector<void*> args;
  args.reserve(plan.args.offset.size());
  for (size_t offset : plan.args.offset) args.push_back(const_cast<std::byte*>(base) + offset);

  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(plan.grid[0], plan.grid[1], plan.grid[2]);
  config.blockDim = dim3(plan.block[0], plan.block[1], plan.block[2]);
  config.dynamicSmemBytes = plan.shared_bytes;
  config.stream = current_stream(device);
  check_launch(op, device, cudaLaunchKernelExC(&config, kernel, args.data()));
}

}  // namespace vidk
