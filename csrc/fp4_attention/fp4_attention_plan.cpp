#include "fp4_attention/fp4_attention_plan.h"

#include <cmath>
#include <cstring>

#include "common/error.h"

namespace vidk {

namespace {

constexpr int64_t kHeadDim = 128;
constexpr int64_t kVectorBytes = 16;
constexpr int64_t kMaxGridYZ = 65535;

std::string number(int64_t n) { return std::to_string(n); }

// Loads of 16 bytes; the stride of a dimension that is never stepped over may be anything.
void check_aligned(const char* op, const char* arg, const ByteView& x) {
  const int64_t strides[] = {x.batch > 1 ? x.batch_stride : 0, x.tokens > 1 ? x.token_stride : 0,
                             x.heads > 1 ? x.head_stride : 0};
  for (const int64_t stride : strides) {
    if (stride % kVectorBytes != 0 || stride < 0 || stride >= kVectorBytes << 31) {
      fail(op, arg, "a stride of " + number(stride) + " bytes",
           "multiples of 16 bytes below " + number(kVectorBytes << 31), "call .contiguous()");
    }
  }
  if (reinterpret_cast<uintptr_t>(x.data) % kVectorBytes != 0) {
    fail(op, arg, "data at address " + number(reinterpret_cast<intptr_t>(x.data)),
         "an address that is a multiple of 16", "call .clone()");
  }
}

void check_aligned(const char* op, const char* arg, const void* data) {
  ByteView view{};
  view.data = static_cast<char*>(const_cast<void*>(data));
  check_aligned(op, arg, view);
}

void check(const char* op, const Fp4AttentionArgs& args, const DeviceInfo& device) {
  if (device.capability < 80) {
    fail(op, "q_codes",
         "compute capability " + number(device.capability / 10) + "." +
             number(device.capability % 10),
         "8.0 or newer");
  }
  if (args.dim != kHeadDim) fail(op, "v_cache", "D = " + number(args.dim), "D = 128 on CUDA");
  // Index arithmetic of the kernels is in 32 bits.
  constexpr int64_t kMaxRows = INT32_MAX - 1024;
  if (args.tokens > kMaxRows) {
    fail(op, "q_codes", number(args.tokens) + " rows", "at most " + number(kMaxRows));
  }
  if (args.capacity < 1 || args.capacity > kMaxRows) {
    fail(op, "k_codes", number(args.capacity) + " rows", "1 to " + number(kMaxRows));
  }
  if (args.heads > kMaxGridYZ || args.batch > kMaxGridYZ) {
    fail(op, "q_codes", number(args.batch) + " batch rows of " + number(args.heads) + " heads",
         "at most 65535 of each");
  }
  check_aligned(op, "q_codes", args.q_codes);
  check_aligned(op, "q_scales", args.q_scales);
  check_aligned(op, "k_codes", args.k_codes);
  check_aligned(op, "k_scales", args.k_scales);
  check_aligned(op, "v_cache", args.v);
  if (args.k_mean != nullptr) {
    check_aligned(op, "q", args.q);
    check_aligned(op, "k_mean", args.k_mean);
  }
}

}  // namespace

Fp4AttentionChoice fp4_attention_choice(const char* op, const char* value) {
  if (value == nullptr || *value == '\0' || std::strcmp(value, "auto") == 0) {
    return Fp4AttentionChoice::kAuto;
  }
  if (std::strcmp(value, "portable") == 0) return Fp4AttentionChoice::kPortable;
  fail(op, "VIDK_FP4_ATTENTION", std::string("'") + value + "'", "'auto' or 'portable'");
}

LaunchPlan plan_fp4_attention(const char* op, const Fp4AttentionArgs& args,
                              Fp4AttentionChoice choice, const DeviceInfo& device) {
  if (args.batch * args.tokens * args.heads == 0) return {};
  check(op, args, device);
  if (choice == Fp4AttentionChoice::kAuto) {
    switch (device.capability) {
      case 100:
      case 103:
        return plan_fp4_attention_sm100(op, args, device);
      case 120:
      case 121:
        return plan_fp4_attention_sm120(op, args, device);
    }
  }
  return plan_fp4_attention_portable(op, args, device);
}

}  // namespace vidk
