// The one way in which vidk's C++ fails. No torch header: device launchers and tests include it
// too.
#pragma once

#include <stdexcept>
#include <string>

namespace vidk {

// Throws the sentence `vidk::op: arg: got X, expected Y (hint)`, the words of ops/_check.py.
//
// std::runtime_error and not STD_TORCH_CHECK, which puts file and line before the sentence: the
// text must be the fake kernel's text.
[[noreturn]] inline void fail(const char* op, const char* arg, const std::string& got,
                              const std::string& expected, const std::string& hint = "") {
  throw std::runtime_error(std::string("vidk::") + op + ": " + arg + ": got " + got +
                           ", expected " + expected + (hint.empty() ? "" : " (" + hint + ")"));
}

}  // namespace vidk
