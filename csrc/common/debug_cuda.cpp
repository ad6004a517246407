#include "common/debug_cuda.h"

#include <cstdlib>
#include <string>

#include "common/cuda.h"

namespace vidk {
namespace {

// The same reading of the variable as the command line's.
bool debug_is_on() {
  static const bool on = [] {
    const char* value = std::getenv("VIDK_DEBUG");
    return value != nullptr && std::string(value) != "" && std::string(value) != "0";
  }();
  return on;
}

}  // namespace

template <class T>
std::optional<std::vector<T>> values_to_check(const Tensor& index) {
  if (!debug_is_on()) return std::nullopt;
  const cudaStream_t stream = current_stream(index.get_device_index());
  cudaStreamCaptureStatus status;
  if (cudaStreamIsCapturing(stream, &status) != cudaSuccess) {
    cudaGetLastError();  // the legacy stream, while another one is captured
    return std::nullopt;
  }
  if (status != cudaStreamCaptureStatusNone) return std::nullopt;
  std::vector<T> values(index.numel());
  cudaError_t error = cudaMemcpyAsync(values.data(), index.const_data_ptr<T>(),
                                      values.size() * sizeof(T), cudaMemcpyDeviceToHost, stream);
  if (error == cudaSuccess) error = cudaStreamSynchronize(stream);
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string("vidk: VIDK_DEBUG: reading indices from the device: ") +
                             cudaGetErrorString(error));
  }
  return values;
}

template std::optional<std::vector<int32_t>> values_to_check(const Tensor&);
template std::optional<std::vector<int64_t>> values_to_check(const Tensor&);

}  // namespace vidk
