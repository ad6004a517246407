#include "common/check.h"

#include <torch/headeronly/core/DeviceType.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <unordered_map>

namespace vidk {
namespace {

bool same_shape(const Tensor& a, const Tensor& b) {
  return a.dim() == b.dim() && std::equal(a.sizes().begin(), a.sizes().end(), b.sizes().begin());
}

bool same_device(const Tensor& a, const Tensor& b) {
  return a.device().type() == b.device().type() && a.device().index() == b.device().index();
}

bool is_float(const Tensor& x) {
  const ScalarType t = x.scalar_type();
  return t == ScalarType::Float || t == ScalarType::BFloat16 || t == ScalarType::Half;
}

std::string number(int64_t n) { return std::to_string(n); }

template <class Sizes>
std::string list_of(const Sizes& sizes) {
  std::string text = "[";
  for (const int64_t n : sizes) text += (text.size() > 1 ? ", " : "") + number(n);
  return text + "]";
}

void check_freq_table(const char* op, const char* arg, const Tensor& x, const char* ref_arg,
                      const Tensor& ref) {
  if (!(x.dim() == 3 && x.size(2) == 2)) {
    fail(op, arg, "shape " + shape_of(x), "shape [positions, pairs, 2]",
         "see vidk.rope.freq_table");
  }
  if (x.scalar_type() != ScalarType::Float) fail(op, arg, "dtype " + dtype_of(x), "dtype float32");
  if (!x.is_contiguous()) {
    fail(op, arg, "a strided table", "a contiguous one", "call .contiguous()");
  }
  check_on_device(op, arg, x, ref_arg, ref);
}

}  // namespace

std::string shape_of(const Tensor& x) { return list_of(x.sizes()); }

std::string dtype_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Short:
      return "int16";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    case ScalarType::UInt16:
      return "uint16";
    case ScalarType::UInt32:
      return "uint32";
    case ScalarType::UInt64:
      return "uint64";
    case ScalarType::Half:
      return "float16";
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::ComplexHalf:
      return "complex32";
    case ScalarType::ComplexFloat:
      return "complex64";
    case ScalarType::ComplexDouble:
      return "complex128";
    case ScalarType::Bool:
      return "bool";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Float8_e5m2:
      return "float8_e5m2";
    case ScalarType::Float8_e4m3fn:
      return "float8_e4m3fn";
    case ScalarType::Float8_e5m2fnuz:
      return "float8_e5m2fnuz";
    case ScalarType::Float8_e4m3fnuz:
      return "float8_e4m3fnuz";
    case ScalarType::Float8_e8m0fnu:
      return "float8_e8m0fnu";
    case ScalarType::Float4_e2m1fn_x2:
      return "float4_e2m1fn_x2";
    default:
      return torch::headeronly::toString(x.scalar_type());
  }
}

std::string device_of(const Tensor& x) {
  using torch::headeronly::DeviceType;
  const auto device = x.device();
  std::string text;
  switch (device.type()) {
    case DeviceType::CPU:
      text = "cpu";
      break;
    case DeviceType::CUDA:
      text = "cuda";
      break;
    case DeviceType::Meta:
      text = "meta";
      break;
    default:
      text = "device type " + number(static_cast<int64_t>(device.type()));
  }
  return device.index() < 0 ? text : text + ":" + number(device.index());
}

std::string float_of(double value) {
  if (value != value) return "nan";
  char text[64];
  // Python's repr: the fewest digits that read back as the same number, with an exponent only
  // outside 1e-4 to 1e16.
  int digits = 0;
  do {
    std::snprintf(text, sizeof text, "%.*e", digits++, value);
  } while (std::strtod(text, nullptr) != value && digits < 17);
  const char* mark = std::find(text, text + sizeof text - 1, 'e');
  if (*mark != 'e') return text;  // inf
  const int exponent = std::atoi(mark + 1);
  if (exponent >= -4 && exponent < 16) {
    std::snprintf(text, sizeof text, "%.*f", std::max(1, digits - 1 - exponent), value);
  }
  return text;
}

void check_floating(const char* op, const char* arg, const Tensor& x) {
  if (!is_float(x)) {
    fail(op, arg, "dtype " + dtype_of(x), "dtype float32, bfloat16 or float16");
  }
}

void check_activation(const char* op, const char* arg, const Tensor& x) {
  if (x.dim() != 4) fail(op, arg, "shape " + shape_of(x), "4 dimensions [B, S, H, D]");
  check_floating(op, arg, x);
  check_unit_stride(op, arg, x);
}

void check_unit_stride(const char* op, const char* arg, const Tensor& x) {
  if (!(x.size(3) <= 1 || x.stride(3) == 1)) {
    fail(op, arg, "stride " + number(x.stride(3)) + " in the last dimension", "stride 1",
         "call .contiguous()");
  }
}

void check_shaped(const char* op, const char* arg, const Tensor& x,
                  const std::vector<int64_t>& sizes, const char* what) {
  if (x.dim() == static_cast<int64_t>(sizes.size()) &&
      std::equal(sizes.begin(), sizes.end(), x.sizes().begin())) {
    return;
  }
  fail(op, arg, "shape " + shape_of(x), std::string(what) + " = " + list_of(sizes));
}

void check_dense(const char* op, const char* arg, const Tensor& x) {
  if (!x.is_contiguous()) {
    fail(op, arg, "a strided tensor", "a contiguous one", "call .contiguous()");
  }
}

void check_like(const char* op, const char* arg, const Tensor& x, const char* ref_arg,
                const Tensor& ref) {
  check_activation(op, arg, x);
  check_shaped_like(op, arg, x, ref_arg, ref);
  check_typed_like(op, arg, x, ref_arg, ref);
}

void check_shaped_like(const char* op, const char* arg, const Tensor& x, const char* ref_arg,
                       const Tensor& ref) {
  if (!same_shape(x, ref)) {
    fail(op, arg, "shape " + shape_of(x), "the shape " + shape_of(ref) + " of " + ref_arg);
  }
}

void check_typed_like(const char* op, const char* arg, const Tensor& x, const char* ref_arg,
                      const Tensor& ref) {
  if (x.scalar_type() != ref.scalar_type()) {
    fail(op, arg, "dtype " + dtype_of(x), "the dtype " + dtype_of(ref) + " of " + ref_arg);
  }
  check_on_device(op, arg, x, ref_arg, ref);
}

void check_on_device(const char* op, const char* arg, const Tensor& x, const char* ref_arg,
                     const Tensor& ref) {
  if (!same_device(x, ref)) {
    fail(op, arg, "a tensor on " + device_of(x), "the device " + device_of(ref) + " of " + ref_arg);
  }
}

void check_cache(const char* op, const char* arg, const Tensor& c, const char* ref_arg,
                 const Tensor& ref) {
  check_activation(op, arg, c);
  if (!(c.size(0) == ref.size(0) && c.size(2) == ref.size(2) && c.size(3) == ref.size(3))) {
    fail(op, arg, "shape " + shape_of(c),
         std::string("[B, S_cap, H, D] with the B, H and D of ") + ref_arg + " " + shape_of(ref));
  }
  check_typed_like(op, arg, c, ref_arg, ref);
}

void check_int_vector(const char* op, const char* arg, const Tensor& x, const char* ref_arg,
                      const Tensor& ref) {
  if (x.dim() != 1) fail(op, arg, "shape " + shape_of(x), "1 dimension");
  if (x.scalar_type() != ScalarType::Int) fail(op, arg, "dtype " + dtype_of(x), "dtype int32");
  if (!(x.size(0) <= 1 || x.stride(0) == 1)) {
    fail(op, arg, "stride " + number(x.stride(0)), "stride 1", "call .contiguous()");
  }
  check_on_device(op, arg, x, ref_arg, ref);
}

void check_rope_tables(const char* op, const char* x_arg, const Tensor& x, const Tensor& time_freqs,
                       const Tensor& space_freqs, int64_t height, int64_t width) {
  check_freq_table(op, "time_freqs", time_freqs, x_arg, x);
  check_freq_table(op, "space_freqs", space_freqs, x_arg, x);
  const int64_t time_pairs = time_freqs.size(1);
  const int64_t space_pairs = space_freqs.size(1);
  if (2 * (time_pairs + 2 * space_pairs) != x.size(3)) {
    fail(op, "time_freqs",
         number(time_pairs) + " time pairs and 2 x " + number(space_pairs) + " space pairs",
         "D / 2 pairs in all for D = " + number(x.size(3)));
  }
  if (height < 1) fail(op, "height", number(height), "a height of at least 1 token");
  if (width < 1) fail(op, "width", number(width), "a width of at least 1 token");
  if (!(space_freqs.size(0) >= height && space_freqs.size(0) >= width)) {
    fail(op, "space_freqs", number(space_freqs.size(0)) + " rows",
         "at least max(height, width) rows for height " + number(height) + " and width " +
             number(width));
  }
}

void check_block_fits(const char* op, const char* arg, const Tensor& x, const char* vec_arg,
                      const Tensor& vec, int64_t frame_tokens) {
  // ceil(S / n) <= F, which unlike S <= F * n cannot overflow.
  if (x.size(1) / frame_tokens + (x.size(1) % frame_tokens != 0) > vec.size(0)) {
    fail(op, vec_arg, number(vec.size(0)) + " frames of " + number(frame_tokens) + " tokens",
         "enough frames for the " + number(x.size(1)) + " tokens of " + arg);
  }
}

Element element_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::BFloat16:
      return Element::kBFloat16;
    case ScalarType::Half:
      return Element::kFloat16;
    default:
      return Element::kFloat32;
  }
}

ByteView byte_view(const Tensor& x) {
  const int64_t bytes = static_cast<int64_t>(x.element_size());
  ByteView view;
  static_cast<TensorView<char>&>(view) =
      view_of(x, static_cast<char*>(const_cast<void*>(x.const_data_ptr())));
  view.dim *= bytes;
  view.batch_stride *= bytes;
  view.token_stride *= bytes;
  view.head_stride *= bytes;
  return view;
}

void check_distinct_elements(const char* op, const char* arg, const Tensor& x) {
  if (!elements_are_distinct(byte_view(x))) {
    fail(op, arg, "a view whose elements share memory", "memory of its own for each element",
         "call .contiguous()");
  }
}

// A [B, S, H, D] tensor's view, or the one run of bytes of a contiguous index, weight or table.
static ByteView memory_of(const Tensor& x) {
  if (x.dim() == 4) return byte_view(x);
  char* data = static_cast<char*>(const_cast<void*>(x.const_data_ptr()));
  ByteView view;
  static_cast<TensorView<char>&>(view) = {
      data, 1, 1, 1, x.numel() * static_cast<int64_t>(x.element_size()), 0, 0, 0};
  return view;
}

void check_disjoint(const char* op, const char* arg, const Tensor& written, const char* other_arg,
                    const Tensor& other) {
  if (!disjoint(memory_of(written), memory_of(other))) {
    fail(op, arg, std::string("memory that overlaps ") + other_arg, "separate memory",
         std::string("call .clone() on ") + other_arg);
  }
}

void check_memory(const char* op, std::initializer_list<NamedTensor> written,
                  std::initializer_list<NamedTensor> read) {
  for (const NamedTensor* w = written.begin(); w != written.end(); ++w) {
    if (w->x == nullptr) continue;
    for (const NamedTensor* other = written.begin(); other != w; ++other) {
      if (other->x != nullptr) check_disjoint(op, w->arg, *w->x, other->arg, *other->x);
    }
    for (const NamedTensor& other : read) {
      if (other.x != nullptr) check_disjoint(op, w->arg, *w->x, other.arg, *other.x);
    }
  }
}

void check_slots(const char* op, const int32_t* frame_slot, int64_t tokens, int64_t frame_tokens,
                 int64_t cache_rows) {
  std::unordered_map<int32_t, int64_t> first_use;
  for (int64_t begin = 0, frame = 0; begin < tokens; begin += frame_tokens, ++frame) {
    const int32_t slot = frame_slot[frame];
    // The last frame may be partly filled, and the slot needs room for no more than that.
    const int64_t count = std::min(frame_tokens, tokens - begin);
    if (slot < 0 || count > cache_rows || slot > (cache_rows - count) / frame_tokens) {
      fail(op, "frame_slot", "slot " + number(slot) + " for frame " + number(frame),
           "a slot whose " + number(count) + " rows lie in the cache",
           "the cache has " + number(cache_rows) + " rows, " + number(frame_tokens) + " a frame");
    }
    const auto [entry, is_new] = first_use.emplace(slot, frame);
    if (!is_new) {
      fail(
          op, "frame_slot",
          "slot " + number(slot) + " for frames " + number(entry->second) + " and " + number(frame),
          "distinct slots");
    }
    if (tokens - begin <= frame_tokens) break;
  }
}

void check_positions(const char* op, const int32_t* frame_pos, int64_t frames, int64_t rows) {
  for (int64_t frame = 0; frame < frames; ++frame) {
    if (frame_pos[frame] < 0 || frame_pos[frame] >= rows) {
      fail(op, "frame_pos", "position " + number(frame_pos[frame]) + " for frame " + number(frame),
           "a row of time_freqs, which has " + number(rows) + " rows");
    }
  }
}

void check_length(const char* op, const char* arg, int64_t length, int64_t limit,
                  const char* limit_arg) {
  if (length < 0 || length > limit) {
    fail(op, arg, number(length),
         "a length from 0 to the " + number(limit) + " rows of " + limit_arg);
  }
}

}  // namespace vidk
