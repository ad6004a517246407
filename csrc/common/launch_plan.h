// What a kernel launch is made of, as plain data. A plan is computed without CUDA, torch or a
// device, so that the very same code decides the launch on a GPU (launch_cuda.cpp) and in the
// tests, which execute the kernel's PTX on the CPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

namespace vidk {

// What a plan may depend on of the device it is for.
struct DeviceInfo {
  int32_t capability;  // 10 * major + minor: 80, 90, 100, 120
  int32_t sm_count;
};

enum class Swizzle : uint32_t { kNone, k32B, k64B, k128B };

// A tensor map (TMA descriptor) before the driver encodes it. Dimension 0 is the innermost, and
// contiguous; `stride` holds the byte strides of dimensions 1 and up. Elements are 16 bits wide.
struct TensorMap {
  static constexpr int kMaxRank = 5;
  uint64_t base;
  uint32_t rank;
  uint32_t element_bytes;
  uint64_t dim[kMaxRank];
  uint64_t stride[kMaxRank - 1];
  uint32_t box[kMaxRank];
  Swizzle swizzle;
};
// Encoded, it is this large, and aligned so in code compiled with CUDA 13 (`.param .align 128`).
constexpr size_t kTensorMapBytes = 128;
constexpr size_t kTensorMapAlign = 128;
// Its place in a struct of parameters.
struct alignas(kTensorMapAlign) DeviceTensorMap {
  unsigned char bytes[kTensorMapBytes];
};

// The kernel's parameters as one block of bytes, each at the next offset that its alignment allows:
// the layout of PTX `.param` space. Tensor maps leave a gap that is filled at launch.
class KernelArgs {
 public:
  template <class T>
  void add(const T& value) {
    static_assert(std::is_trivially_copyable_v<T>);
    const size_t at = reserve(sizeof(T), alignof(T));
    std::memcpy(bytes.data() + at, &value, sizeof(T));
  }
  void add(const TensorMap& map) {
    map_at.push_back(reserve(kTensorMapBytes, kTensorMapAlign));
    maps.push_back(map);
  }
  // At `at` in the parameter that was added last.
  void fill(size_t at, const TensorMap& map) {
    map_at.push_back(offset.back() + at);
    maps.push_back(map);
  }

  std::vector<std::byte> bytes;
  std::vector<size_t> offset;  // of each parameter, in order
  std::vector<size_t> map_at;  // offset of each of `maps`
  std::vector<TensorMap> maps;

 private:
  size_t reserve(size_t size, size_t align) {
    const size_t at = (bytes.size() + align - 1) / align * align;
    bytes.resize(at + size);
    offset.push_back(at);
    return at;
  }
};

struct LaunchPlan {
  std::string kernel;  // name of the entry in the device code; empty: nothing to do
  uint32_t grid[3] = {1, 1, 1};
  uint32_t block[3] = {1, 1, 1};
  uint32_t shared_bytes = 0;  // dynamic
  KernelArgs args;
};

}  // namespace vidk
