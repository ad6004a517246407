// The launches of qk_norm_rope_nvfp4_kv_write as data.
#pragma once

#include "common/launch_plan.h"
#include "fp4_kv/fp4_kv_args.h"

namespace vidk {

// One after the other; recipes without a mean have nothing to do in the first.
struct Fp4KvPlans {
  LaunchPlan means;
  LaunchPlan write;
};

// Fails where no kernel takes the arguments: another type than bfloat16, another D than 128, rows
// that are not aligned.
Fp4KvPlans plan_qk_norm_rope_nvfp4_kv_write(const Fp4KvArgs& args);

}  // namespace vidk
