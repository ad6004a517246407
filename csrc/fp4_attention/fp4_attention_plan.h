// The launch of fp4_attention as data.
#pragma once

#include <cstdint>
#include <string>

#include "common/fp4_layout.h"
#include "common/launch_plan.h"
#include "common/tensor_view.h"

namespace vidk {

struct Fp4AttentionArgs {
  bool mxfp8;          // E4M3 codes, E8M0 scales of 32; else E2M1 codes, E4M3 scales of 16
  int64_t row_bytes;   // of codes: 64, 96 or 128
  int64_t scale_cols;  // scales of a row: a multiple of 4
  int64_t batch, tokens, heads, dim;
  int64_t capacity;         // keys that there are, valid or not
  int64_t frame_tokens;     // keys of a slot; each slot begins a tile of scales
  const uint8_t* q_codes;   // [B, H, S, row_bytes]
  const uint8_t* q_scales;  // [B, H, ceil(S / 128), scale_cols / 4, 32, 4, 4]
  const uint8_t* k_codes;   // [B, H, capacity, row_bytes]
  const uint8_t* k_scales;  // [B, H, slots * ceil(frame_tokens / 128), scale_cols / 4, 32, 4, 4]
  ByteView q;               // bfloat16; null: keys have no means
  const void* k_mean;       // [B, H, slots * ceil(frame_tokens / 128), D] bfloat16; null with q
  bool v_is_fp8;            // E4M3; else bfloat16
  ByteView v;               // [B, capacity, H, D]
  void* out;                // [B, S, H, D] bfloat16, contiguous
  float* lse;               // [B, H, S], contiguous
  const int32_t* kv_len;    // on the device; kernels clamp it to [0, capacity]
  float scale;
};

// Which kernel to take. kAuto: the one for the device's tensor cores, where there is one.
enum class Fp4AttentionChoice { kAuto, kPortable };

// What the environment variable VIDK_FP4_ATTENTION says; null stands for an unset one.
Fp4AttentionChoice fp4_attention_choice(const char* op, const char* value);

// Fails where no kernel takes the arguments: another D than 128, rows that are not aligned.
LaunchPlan plan_fp4_attention(const char* op, const Fp4AttentionArgs& args,
                              Fp4AttentionChoice choice, const DeviceInfo& device);

// One for each kind of tensor core; the portable one serves every other device. They get what
// `plan_fp4_attention` has checked, and a grid that is not empty.
LaunchPlan plan_fp4_attention_portable(const char* op, const Fp4AttentionArgs& args,
                                       const DeviceInfo& device);
LaunchPlan plan_fp4_attention_sm100(const char* op, const Fp4AttentionArgs& args,
                                    const DeviceInfo& device);
LaunchPlan plan_fp4_attention_sm120(const char* op, const Fp4AttentionArgs& args,
                                    const DeviceInfo& device);

}  // namespace vidk
