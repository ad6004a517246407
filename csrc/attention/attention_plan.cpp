#include "attention/attention_plan.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "attention/attention_kernel.h"
#include "attention/attention_tiles.h"
#include "common/ceil_div.h"
#include "common/error.h"

namespace vidk {
namespace {

constexpr int64_t kVectorBytes = 16;
constexpr int64_t kMaxGridYZ = 65535;

// A stride that is never stepped over may be anything; it becomes one that every kernel takes.
ByteView settled(ByteView x) {
  if (x.batch <= 1) x.batch_stride = kVectorBytes;
  if (x.tokens <= 1) x.token_stride = kVectorBytes;
  if (x.heads <= 1) x.head_stride = kVectorBytes;
  return x;
}

bool is_hopper(const DeviceInfo& device) { return device.capability == 90; }

TileObstacle stride_obstacle(const char* name, const ByteView& x, const DeviceInfo& device) {
  const std::string got = std::string(name) + " of strides " + std::to_string(x.batch_stride) +
                          ", " + std::to_string(x.token_stride) + ", " +
                          std::to_string(x.head_stride) + " bytes at address " +
                          std::to_string(reinterpret_cast<uintptr_t>(x.data));
  // A tensor map holds 40 bits of a stride, the other kernel's parameters 31 bits of 16 bytes.
  const int64_t limit = is_hopper(device) ? int64_t{1} << 40 : kVectorBytes << 31;
  for (const int64_t stride : {x.batch_stride, x.token_stride, x.head_stride}) {
    if (stride % kVectorBytes != 0 || stride >= limit || (is_hopper(device) && stride == 0)) {
      return {got, "positive multiples of 16 below " + std::to_string(limit)};
    }
  }
  if (reinterpret_cast<uintptr_t>(x.data) % kVectorBytes != 0) {
    return {got, "an address that is a multiple of 16"};
  }
  return {};
}

// Rows of D elements as TMA sees them: D, tokens, heads, batch. The token dimension has its own
// bounds, so that a tile never reaches into another head or batch row.
TensorMap tensor_map(const ByteView& x, uint32_t box_rows) {
  constexpr uint32_t kElementBytes = 2;
  constexpr uint32_t kSwizzleBytes = 128;
  TensorMap map{};
  map.base = reinterpret_cast<uintptr_t>(x.data);
  map.rank = 4;
  map.element_bytes = kElementBytes;
  const int64_t dims[] = {x.dim / kElementBytes, x.tokens, x.heads, x.batch};
  const int64_t strides[] = {x.token_stride, x.head_stride, x.batch_stride};
  const uint32_t box[] = {kSwizzleBytes / kElementBytes, box_rows, 1, 1};
  std::copy(std::begin(dims), std::end(dims), map.dim);
  std::copy(std::begin(strides), std::end(strides), map.stride);
  std::copy(std::begin(box), std::end(box), map.box);
  map.swizzle = Swizzle::k128B;
  return map;
}

ByteView out_view(const AttentionArgs& args) {
  ByteView out = args.q;
  out.data = static_cast<char*>(args.out);
  out.head_stride = out.dim;
  out.token_stride = out.dim * out.heads;
  out.batch_stride = out.token_stride * out.tokens;
  return settled(out);
}

int32_t vectors(int64_t bytes) { return static_cast<int32_t>(bytes / kVectorBytes); }

// The order of the parameters is TileLang's: that of kernels/ptx/launch.json.
void add_hopper_args(KernelArgs& out, const AttentionArgs& args) {
  const ByteView k = settled(args.k);
  out.add(tensor_map(k, kAttentionSm90.keys));
  out.add(tensor_map(out_view(args), kAttentionSm90.rows));
  out.add(tensor_map(settled(args.q), kAttentionSm90.rows));
  out.add(tensor_map(settled(args.v), kAttentionSm90.keys));
  out.add(args.lens);
  out.add(args.lse);
  out.add(static_cast<int32_t>(k.batch));
  out.add(static_cast<int32_t>(k.tokens));
  out.add(static_cast<int32_t>(k.heads));
  out.add(static_cast<int32_t>(args.q.tokens));
  out.add(int32_t{args.fold});
  out.add(int32_t{args.len_per_batch});
  out.add(args.scale);
  out.add(int32_t{args.lse != nullptr});
}

void add_ampere_args(KernelArgs& out, const AttentionArgs& args) {
  const ByteView q = settled(args.q);
  const ByteView k = settled(args.k);
  const ByteView v = settled(args.v);
  out.add(k.data);
  out.add(args.out);
  out.add(q.data);
  out.add(v.data);
  out.add(args.lens);
  out.add(args.lse);
  out.add(static_cast<int32_t>(k.batch));
  out.add(static_cast<int32_t>(k.tokens));
  out.add(static_cast<int32_t>(k.heads));
  out.add(static_cast<int32_t>(q.tokens));
  out.add(int32_t{args.fold});
  out.add(vectors(k.batch_stride));
  out.add(vectors(k.head_stride));
  out.add(vectors(k.token_stride));
  out.add(int32_t{args.len_per_batch});
  out.add(vectors(q.batch_stride));
  out.add(vectors(q.head_stride));
  out.add(vectors(q.token_stride));
  out.add(args.scale);
  out.add(vectors(v.batch_stride));
  out.add(vectors(v.head_stride));
  out.add(vectors(v.token_stride));
  out.add(int32_t{args.lse != nullptr});
}

LaunchPlan plan_tile(const AttentionArgs& args, const DeviceInfo& device) {
  const AttentionTile& tile = is_hopper(device) ? kAttentionSm90 : kAttentionSm80;
  LaunchPlan plan;
  plan.kernel = std::string(is_hopper(device) ? "vidk_attention_sm90_" : "vidk_attention_sm80_") +
                element_name(args.element) + "_d" + std::to_string(kAttentionHeadDim);
  plan.grid[0] = static_cast<uint32_t>(ceil_div(args.q.tokens, tile.rows));
  plan.grid[1] = static_cast<uint32_t>(args.q.heads);
  plan.grid[2] = static_cast<uint32_t>(args.q.batch);
  plan.block[0] = tile.threads;
  plan.shared_bytes = tile.shared_bytes;
  if (is_hopper(device)) {
    add_hopper_args(plan.args, args);
  } else {
    add_ampere_args(plan.args, args);
  }
  return plan;
}

LaunchPlan plan_simt(const AttentionArgs& args) {
  const ByteView& q = args.q;
  AttentionParams p{};
  p.q = rows_of(q);
  p.k = rows_of(args.k);
  p.v = rows_of(args.v);
  p.out = static_cast<char*>(args.out);
  p.lse = args.lse;
  p.lens = args.lens;
  p.len_stride = args.len_per_batch;
  p.fold = args.fold;
  p.batch = q.batch;
  p.tokens = q.tokens;
  p.heads = q.heads;
  p.dim = q.dim / (args.element == Element::kFloat32 ? 4 : 2);
  p.capacity = args.k.tokens;
  p.scale = args.scale;
  LaunchPlan plan;
  plan.kernel = std::string("vidk_attention_simt_") + element_name(args.element);
  plan.grid[0] = static_cast<uint32_t>(
      std::min<int64_t>(ceil_div(q.batch * q.heads * q.tokens, kAttentionWarps), INT32_MAX));
  plan.block[0] = 32 * kAttentionWarps;
  plan.args.add(p);
  return plan;
}

}  // namespace

AttentionChoice attention_choice(const char* op, const char* value) {
  if (value == nullptr || *value == '\0' || std::strcmp(value, "auto") == 0)
    return AttentionChoice::kAuto;
  if (std::strcmp(value, "tile") == 0) return AttentionChoice::kTile;
  if (std::strcmp(value, "simt") == 0) return AttentionChoice::kSimt;
  fail(op, "VIDK_ATTENTION", std::string("'") + value + "'", "'auto', 'tile' or 'simt'");
}

TileObstacle tile_obstacle(const AttentionArgs& args, const DeviceInfo& device) {
  if (device.capability < 80) {
    return {"compute capability " + std::to_string(device.capability / 10) + "." +
                std::to_string(device.capability % 10),
            "8.0 or newer"};
  }
  if (args.element == Element::kFloat32) return {"float32", "bfloat16 or float16"};
  const int64_t dim = args.q.dim / 2;
  if (dim != kAttentionHeadDim) {
    return {"D = " + std::to_string(dim), "D = " + std::to_string(kAttentionHeadDim)};
  }
  // They take the maximum before they multiply by the scale.
  if (!(args.scale > 0) || !std::isfinite(args.scale)) {
    return {"scale " + std::to_string(args.scale), "a positive one"};
  }
  const int64_t capacity = args.k.tokens;
  // The least that a tensor map can hold, and what index arithmetic in 32 bits can.
  constexpr int64_t kMaxRows = INT32_MAX - 1024;
  if (capacity < 1 || capacity > kMaxRows || args.q.tokens > kMaxRows) {
    return {std::to_string(args.q.tokens) + " queries and " + std::to_string(capacity) + " keys",
            "1 to " + std::to_string(kMaxRows) + " of each"};
  }
  // The folded key has a weight of up to its multiplicity, and weights have the element type.
  if (args.fold && args.element == Element::kFloat16 && capacity > 65504) {
    return {std::to_string(capacity) + " keys of float16", "at most 65504 to fold"};
  }
  if (args.q.heads > kMaxGridYZ || args.q.batch > kMaxGridYZ) {
    return {
        std::to_string(args.q.batch) + " batch rows of " + std::to_string(args.q.heads) + " heads",
        "at most 65535 of each"};
  }
  const std::pair<const char*, const ByteView&> views[] = {
      {"q", args.q}, {"k", args.k}, {"v", args.v}};
  for (const auto& [name, view] : views) {
    const TileObstacle obstacle = stride_obstacle(name, settled(view), device);
    if (!obstacle.got.empty()) return obstacle;
  }
  return {};
}

LaunchPlan plan_attention(const char* op, const AttentionArgs& args, AttentionChoice choice,
                          const DeviceInfo& device) {
  if (args.q.batch * args.q.tokens * args.q.heads == 0) return {};
  if (choice == AttentionChoice::kSimt) return plan_simt(args);
  const TileObstacle obstacle = tile_obstacle(args, device);
  if (obstacle.got.empty()) return plan_tile(args, device);
  if (choice == AttentionChoice::kTile) {
    fail(op, "VIDK_ATTENTION", "'tile' with " + obstacle.got, obstacle.expected,
         "use VIDK_ATTENTION=auto or simt");
  }
  return plan_simt(args);
}

}  // namespace vidk
