// How an entry of device code is written, at the start of a line:
//
//   VIDK_KERNEL(vidk_rope_3d_bf16_16B, RopeParams, (256, 4), rope::rotate<BFloat16, 16>)
//
// The name is spelled out and unmangled: plans and tests ask for it, and the build reads it here to
// know which source holds it. Bounds are most threads of a block and fewest blocks of a
// multiprocessor.
#pragma once

#define VIDK_KERNEL(name, Params, bounds, ...) \
  extern "C" __global__ void __launch_bounds__ bounds name(const Params p) { __VA_ARGS__(p); }
