// The table of device code that the build embeds in _cuda.so: see cmake/device_code.cmake.
#pragma once

#include <cstddef>

namespace vidk {

struct EmbeddedKernel {
  const char* name;  // of the entry
  const unsigned char* fatbin;
};

extern const EmbeddedKernel kEmbeddedKernels[];
extern const size_t kEmbeddedKernelCount;

}  // namespace vidk
