// The launch of qk_norm_rope_kv_write as data, and what it shares with other ops whose kernels
// normalise and rotate.
#pragma once

#include <initializer_list>

#include "common/element.h"
#include "common/launch_plan.h"
#include "common/tensor_view.h"
#include "norm_rope/norm_rope_kernel.h"

namespace vidk {

// What is normalised and rotated. A view without data is a tensor that is not given.
struct TokenInputs {
  Element element;
  ByteView q;
  ByteView k;
  ByteView v;
  const void* q_weight;  // [H * D], the element type of q; all pointers on the device
  const void* k_weight;
  float eps;
  RopeGrid grid;
};

// A plan that lacks its arguments, and the part of them that is known.
struct TokenLaunch {
  LaunchPlan plan;
  NormRopeTokens tokens;
  int64_t pass_heads;

  PassRows pass_rows(const ByteView& x) const { return {rows_of(x), pass_heads * x.head_stride}; }
};

// `counts_fit`: whether the kernel that counts in 32 bits may serve; B * S is looked at here.
TokenLaunch plan_tokens(const char* prefix, const TokenInputs& in,
                        std::initializer_list<ByteView> outputs, bool counts_fit,
                        const DeviceInfo& device);

struct NormRopePlanArgs {
  TokenInputs in;
  ByteView q_out;
  ByteView k_cache;
  ByteView v_cache;
  const int32_t* frame_slot;
};

LaunchPlan plan_qk_norm_rope_kv_write(const NormRopePlanArgs& args, const DeviceInfo& device);

}  // namespace vidk
