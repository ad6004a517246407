// The launch of attention and cross_attention as data.
#pragma once

#include <string>

#include "common/element.h"
#include "common/launch_plan.h"
#include "common/tensor_view.h"

namespace vidk {

struct AttentionArgs {
  Element element;
  ByteView q;
  ByteView k, v;        // all rows that there are, valid or not
  void* out;            // [B, S, H, D], contiguous
  float* lse;           // [B, H, S], contiguous; null: not wanted
  const int32_t* lens;  // on the device; the kernels clamp them to [0, k.tokens]
  bool len_per_batch;   // else one for all
  bool fold;            // key number `len` stands for all keys from there on
  float scale;
};

// Which kernel to take. kAuto: the tile kernel wherever it can be taken.
enum class AttentionChoice { kAuto, kTile, kSimt };

// What the environment variable VIDK_ATTENTION says; null stands for an unset one.
AttentionChoice attention_choice(const char* op, const char* value);

// Why the tile kernels cannot take these arguments, as "got X, expected Y"; empty if they can.
struct TileObstacle {
  std::string got;
  std::string expected;
};
TileObstacle tile_obstacle(const AttentionArgs& args, const DeviceInfo& device);

LaunchPlan plan_attention(const char* op, const AttentionArgs& args, AttentionChoice choice,
                          const DeviceInfo& device);

}  // namespace vidk
