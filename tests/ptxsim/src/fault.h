// What a kernel did wrong. `kind` is one word that tests ask for; where it happened is added by the
// machine, which knows the block, the warp and the instruction.
#pragma once

#include <cstdio>
#include <stdexcept>
#include <string>

namespace ptxsim {

// Kinds: "bounds", "alignment", "uninitialised", "race", "async" (use of what a copy or a matrix
// product still works on), "proxy" (missing fence between generic and asynchronous accesses),
// "divergence", "deadlock", "barrier", "cross-block", "assert", "trap", "runaway", "unsupported",
// "launch".
struct Fault : std::runtime_error {
  Fault(std::string kind, const std::string& what)
      : std::runtime_error(what), kind(std::move(kind)) {}
  std::string kind;
};

inline std::string hex(uint64_t x) {
  char text[24];
  std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(x));
  return text;
}

}  // namespace ptxsim
