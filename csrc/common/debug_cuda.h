// VIDK_DEBUG=1: a look at index data on the device before a launch.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "common/check.h"

namespace vidk {

// The values of an index vector on the device, for the checks that the CPU kernels make; nothing
// without VIDK_DEBUG, which reads them at the price of waiting for the stream. Nothing either while
// the stream is being captured, when no wait is allowed.
template <class T>
std::optional<std::vector<T>> values_to_check(const Tensor& index);

}  // namespace vidk
