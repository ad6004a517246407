// The launch plans of the wheel's ops as Python functions: the same code that launches on a GPU.
//
// A tensor is (address, sizes, strides in bytes, bytes per element) of [B, S, H, D].

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "all_gather/all_gather_plan.h"
#include "attention/attention_plan.h"
#include "exchange/exchange_plan.h"
#include "fp4_attention/fp4_attention_plan.h"
#include "fp4_kv/fp4_kv_plan.h"
#include "kv_cache/kv_cache_plan.h"
#include "norm_rope/norm_rope_plan.h"
#include "nvfp4/nvfp4_plan.h"
#include "rope/rope_plan.h"

namespace py = pybind11;

namespace vidk {
namespace {

using View = std::tuple<uint64_t, std::array<int64_t, 4>, std::array<int64_t, 4>, int64_t>;

ByteView byte_view(const View& view) {
  const auto& [address, size, stride, element] = view;
  ByteView x;
  x.data = reinterpret_cast<char*>(address);
  x.batch = size[0];
  x.tokens = size[1];
  x.heads = size[2];
  x.dim = size[3] * element;
  x.batch_stride = stride[0];
  x.token_stride = stride[1];
  x.head_stride = stride[2];
  return x;
}

template <class T>
const T* pointer(uint64_t address) {
  return reinterpret_cast<const T*>(address);
}

py::dict to_python(const LaunchPlan& plan) {
  py::list maps;
  for (const TensorMap& m : plan.args.maps) {
    py::dict map;
    map["base"] = m.base;
    map["size"] = m.element_bytes;
    map["dims"] = std::vector<uint64_t>(m.dim, m.dim + m.rank);
    map["strides"] = std::vector<uint64_t>(m.stride, m.stride + m.rank - 1);
    map["box"] = std::vector<uint32_t>(m.box, m.box + m.rank);
    map["mode"] = static_cast<uint32_t>(m.swizzle);
    maps.append(map);
  }
  py::dict d;
  d["kernel"] = plan.kernel;
  d["grid"] = std::vector<uint32_t>(plan.grid, plan.grid + 3);
  d["block"] = std::vector<uint32_t>(plan.block, plan.block + 3);
  d["shared_bytes"] = plan.shared_bytes;
  d["args"] =
      py::bytes(reinterpret_cast<const char*>(plan.args.bytes.data()), plan.args.bytes.size());
  d["offset"] = plan.args.offset;
  d["map_at"] = plan.args.map_at;
  d["maps"] = maps;
  return d;
}

Element element_of(const std::string& name) {
  return name == "bf16"  ? Element::kBFloat16
         : name == "f16" ? Element::kFloat16
                         : Element::kFloat32;
}

// (frame_pos, frames, time_freqs, space_freqs, time_rows, time_pairs, space_pairs, height, width,
// token_offset, slice_tokens)
using Grid = std::tuple<uint64_t, int64_t, uint64_t, uint64_t, int64_t, int64_t, int64_t, int64_t,
                        int64_t, int64_t, int64_t>;

RopeGrid rope_grid(const Grid& grid) {
  const auto& [frame_pos, frames, time, space, rows, time_pairs, space_pairs, height, width, offset,
               slice] = grid;
  return {pointer<int32_t>(frame_pos),
          frames,
          pointer<float>(time),
          pointer<float>(space),
          rows,
          time_pairs,
          space_pairs,
          height,
          width,
          offset,
          slice};
}

py::dict rope_3d(const std::string& element, const View& x, const View& out, const Grid& grid,
                 const DeviceInfo& device) {
  return to_python(
      plan_rope_3d({element_of(element), byte_view(x), byte_view(out), rope_grid(grid)}, device));
}

py::dict kv_cache_write(const View& k, const View& v, const View& k_cache, const View& v_cache,
                        uint64_t frame_slot, int64_t frame_tokens, const DeviceInfo& device) {
  return to_python(
      plan_kv_cache_write({byte_view(k), byte_view(v), byte_view(k_cache), byte_view(v_cache),
                           pointer<int32_t>(frame_slot), frame_tokens},
                          device));
}

// The element, views of q, k and v, their weights and eps, and the grid; empty views are tensors
// that are not given.
using Tokens = std::tuple<std::string, std::array<View, 3>, uint64_t, uint64_t, float, Grid>;

TokenInputs token_inputs(const Tokens& tokens) {
  const auto& [element, views, q_weight, k_weight, eps, grid] = tokens;
  return {element_of(element),
          byte_view(views[0]),
          byte_view(views[1]),
          byte_view(views[2]),
          pointer<void>(q_weight),
          pointer<void>(k_weight),
          eps,
          rope_grid(grid)};
}

py::dict qk_norm_rope_kv_write(const Tokens& tokens, const std::array<View, 3>& outputs,
                               uint64_t frame_slot, const DeviceInfo& device) {
  return to_python(plan_qk_norm_rope_kv_write(
      {token_inputs(tokens), byte_view(outputs[0]), byte_view(outputs[1]), byte_view(outputs[2]),
       pointer<int32_t>(frame_slot)},
      device));
}

// q_codes, q_scales, k_codes, k_scales, k_mean, frame_slot, perm
using Fp4KvAddresses = std::array<uint64_t, 7>;

// The launches in their order; views are those of q's output, if there is one, and of v's cache.
py::list qk_norm_rope_nvfp4_kv_write(const Tokens& tokens, const std::string& recipe,
                                     const std::array<View, 2>& outputs, const Fp4KvAddresses& at) {
  const TokenInputs in = token_inputs(tokens);
  const auto rows = [&](int first, int64_t slots, int64_t rows) {
    return Fp4Rows{reinterpret_cast<uint8_t*>(at[first]), reinterpret_cast<uint8_t*>(at[first + 1]),
                   slots, rows};
  };
  const int64_t frame_tokens = in.grid.height * in.grid.width;
  const ByteView v_cache = byte_view(outputs[1]);
  const Fp4KvPlans plans = plan_qk_norm_rope_nvfp4_kv_write({
      in.element,
      fp4_recipe(recipe).value(),
      in.q,
      in.k,
      in.v,
      byte_view(outputs[0]),
      rows(0, 1, in.q.tokens),
      rows(2, v_cache.tokens / frame_tokens, frame_tokens),
      reinterpret_cast<uint16_t*>(at[4]),
      v_cache,
      std::get<3>(outputs[1]) == 1,
      in.q_weight,
      in.k_weight,
      in.eps,
      pointer<int32_t>(at[5]),
      pointer<int32_t>(at[6]),
      in.grid,
  });
  py::list launches;
  launches.append(to_python(plans.means));
  launches.append(to_python(plans.write));
  return launches;
}

py::dict qk_norm_rope_pack(const Tokens& tokens, int64_t ranks, uint64_t out,
                           const DeviceInfo& device) {
  const TokenInputs in = token_inputs(tokens);
  const PackedChunks chunks = packed_chunks(in.q, in.k, in.v, ranks, reinterpret_cast<char*>(out));
  return to_python(plan_qk_norm_rope_pack({in, chunks}, device));
}

// (batch, shard_tokens, slice_tokens, slice_end, frame_tokens, block_tokens)
using Layout = std::array<int64_t, 6>;

py::dict unpack_kv_write(const std::array<View, 4>& views, uint64_t frame_slot,
                         const Layout& layout, const DeviceInfo& device) {
  return to_python(
      plan_unpack_kv_write({byte_view(views[0]),
                            byte_view(views[1]),
                            byte_view(views[2]),
                            byte_view(views[3]),
                            pointer<int32_t>(frame_slot),
                            {layout[0], layout[1], layout[2], layout[3], layout[4], layout[5]}},
                           device));
}

py::dict all_gather_rope(const std::string& element, const std::vector<View>& x, const View& chunk,
                         const Grid& grid, int64_t offset_step, int64_t ranks, int64_t first_rank,
                         uint64_t peers, const DeviceInfo& device) {
  GatherPlanArgs args{element_of(element), {},    byte_view(chunk), rope_grid(grid),
                      offset_step,         ranks, first_rank,       pointer<int64_t>(peers)};
  for (const View& view : x) args.x.push_back(byte_view(view));
  return to_python(plan_all_gather_rope(args, device));
}

py::dict attention(const std::string& element, const View& q, const View& k, const View& v,
                   uint64_t out, uint64_t lse, uint64_t lens, bool len_per_batch, bool fold,
                   float scale, const char* choice, const DeviceInfo& device) {
  const AttentionArgs args{element_of(element),
                           byte_view(q),
                           byte_view(k),
                           byte_view(v),
                           reinterpret_cast<void*>(out),
                           reinterpret_cast<float*>(lse),
                           pointer<int32_t>(lens),
                           len_per_batch,
                           fold,
                           scale};
  return to_python(
      plan_attention("attention", args, attention_choice("attention", choice), device));
}

// q_scales, k_scales, k_mean, out, lse, kv_len
using Fp4Addresses = std::array<uint64_t, 6>;

// Codes as [B, S, H, bytes]; `q` is empty where keys have no means.
py::dict fp4_attention(const View& q_codes, const View& k_codes, int64_t scale_cols, bool mxfp8,
                       const View& q, const View& v, const Fp4Addresses& at, int64_t frame_tokens,
                       float scale, const char* choice, const DeviceInfo& device) {
  const ByteView queries = byte_view(q_codes);
  const ByteView keys = byte_view(k_codes);
  const int64_t v_bytes = std::get<3>(v);
  Fp4AttentionArgs args{};
  args.mxfp8 = mxfp8;
  args.row_bytes = queries.dim;
  args.scale_cols = scale_cols;
  args.batch = queries.batch;
  args.tokens = queries.tokens;
  args.heads = queries.heads;
  args.dim = byte_view(v).dim / v_bytes;
  args.capacity = keys.tokens;
  args.frame_tokens = frame_tokens;
  args.q_codes = pointer<uint8_t>(std::get<0>(q_codes));
  args.q_scales = pointer<uint8_t>(at[0]);
  args.k_codes = pointer<uint8_t>(std::get<0>(k_codes));
  args.k_scales = pointer<uint8_t>(at[1]);
  args.q = byte_view(q);
  args.k_mean = pointer<void>(at[2]);
  args.v_is_fp8 = v_bytes == 1;
  args.v = byte_view(v);
  args.out = reinterpret_cast<void*>(at[3]);
  args.lse = reinterpret_cast<float*>(at[4]);
  args.kv_len = pointer<int32_t>(at[5]);
  args.scale = scale;
  const char* op = "fp4_attention";
  return to_python(plan_fp4_attention(op, args, fp4_attention_choice(op, choice), device));
}

py::dict nvfp4_quantize(const std::string& element, const std::string& recipe, const View& x,
                        uint64_t packed, uint64_t scales, const DeviceInfo& device) {
  return to_python(
      plan_nvfp4_quantize({element_of(element), nvfp4_recipe(recipe).value(), byte_view(x),
                           reinterpret_cast<uint8_t*>(packed), reinterpret_cast<uint8_t*>(scales)},
                          device));
}

}  // namespace
}  // namespace vidk

PYBIND11_MODULE(_plans, m) {
  using vidk::DeviceInfo;
  py::class_<DeviceInfo>(m, "DeviceInfo")
      .def(py::init([](int32_t capability, int32_t sm_count) {
             return DeviceInfo{capability, sm_count};
           }),
           py::arg("capability"), py::arg("sm_count"));
  m.def("rope_3d", &vidk::rope_3d);
  m.def("qk_norm_rope_kv_write", &vidk::qk_norm_rope_kv_write);
  m.def("qk_norm_rope_nvfp4_kv_write", &vidk::qk_norm_rope_nvfp4_kv_write);
  m.def("qk_norm_rope_pack", &vidk::qk_norm_rope_pack);
  m.def("unpack_kv_write", &vidk::unpack_kv_write);
  m.def("all_gather_rope", &vidk::all_gather_rope);
  m.def("attention", &vidk::attention);
  m.def("fp4_attention", &vidk::fp4_attention);
  m.def("kv_cache_write", &vidk::kv_cache_write);
  m.def("nvfp4_quantize", &vidk::nvfp4_quantize);
}
