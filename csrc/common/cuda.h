// What every CUDA op needs of torch and the runtime: the stream, and a clear word on failure.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

#include <string>

#include "common/error.h"

namespace vidk {

// torch's current stream of a device. Not accelerator::getCurrentStream().id(): that is an id, not
// a cudaStream_t.
inline cudaStream_t current_stream(int32_t device) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

// Throws one sentence if loading or launching device code was refused.
inline void check_launch(const char* op, int32_t device, cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // reported here, so not to the next who asks
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorUnsupportedPtxVersion) {
    int major = 0;
    int minor = 0;
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    fail(op, "device", "compute capability " + std::to_string(major) + "." + std::to_string(minor),
         std::string("one that this build holds code for: ") + VIDK_ARCH_TEXT,
         // From 9.0 on, kernels may use what only the architecture itself has.
         "build vidk with VIDK_CUDA_ARCHS=" + std::to_string(10 * major + minor) +
             (major >= 9 ? "a" : ""));
  }
  if (error == cudaErrorInsufficientDriver) {
    int driver = 0;
    cudaDriverGetVersion(&driver);
    fail(op, "device", "a driver for CUDA " + std::to_string(driver / 1000),
         "a driver for CUDA " + std::to_string(CUDART_VERSION / 1000) + " or newer",
         "update the NVIDIA driver, or build vidk with an older toolkit");
  }
  fail(op, "device", cudaGetErrorString(error), "a kernel launch without an error");
}

}  // namespace vidk
