// The checks of python/vidk/ops/_check.py, in the same order and the same words: what a fake kernel
// says while tracing is what the real one says when it runs. Then the checks that only a kernel can
// make, of memory and of index data on the host.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

#include "common/element.h"
#include "common/error.h"
#include "common/tensor_view.h"

namespace vidk {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// How values are printed: as Python prints them.
std::string shape_of(const Tensor& x);
std::string dtype_of(const Tensor& x);
std::string device_of(const Tensor& x);
std::string float_of(double value);

// Checks of one tensor, named as in _check.py.
void check_floating(const char* op, const char* arg, const Tensor& x);
void check_activation(const char* op, const char* arg, const Tensor& x);
void check_unit_stride(const char* op, const char* arg, const Tensor& x);
void check_shaped(const char* op, const char* arg, const Tensor& x,
                  const std::vector<int64_t>& sizes, const char* what);
void check_dense(const char* op, const char* arg, const Tensor& x);
void check_like(const char* op, const char* arg, const Tensor& x, const char* ref_arg,
                const Tensor& ref);
void check_shaped_like(const char* op, const char* arg, const Tensor& x, const char* ref_arg,
                       const Tensor& ref);
void check_typed_like(const char* op, const char* arg, const Tensor& x, const char* ref_arg,
                      const Tensor& ref);
void check_on_device(const char* op, const char* arg, const Tensor& x, const char* ref_arg,
                     const Tensor& ref);
void check_cache(const char* op, const char* arg, const Tensor& c, const char* ref_arg,
                 const Tensor& ref);
void check_int_vector(const char* op, const char* arg, const Tensor& x, const char* ref_arg,
                      const Tensor& ref);
void check_rope_tables(const char* op, const char* x_arg, const Tensor& x, const Tensor& time_freqs,
                       const Tensor& space_freqs, int64_t height, int64_t width);
void check_block_fits(const char* op, const char* arg, const Tensor& x, const char* vec_arg,
                      const Tensor& vec, int64_t frame_tokens);

// No two elements of a tensor that is written to share memory.
void check_distinct_elements(const char* op, const char* arg, const Tensor& x);
// A tensor that is written to shares no memory with another.
void check_disjoint(const char* op, const char* arg, const Tensor& written, const char* other_arg,
                    const Tensor& other);

// A tensor by its name; null: one that is not given.
struct NamedTensor {
  const char* arg;
  const Tensor* x;
};
// The tensors that are written share no memory with each other nor with those that are read.
void check_memory(const char* op, std::initializer_list<NamedTensor> written,
                  std::initializer_list<NamedTensor> read);

// Host data. `frames` is how many leading entries the block uses; later ones are never read.
void check_slots(const char* op, const int32_t* frame_slot, int64_t tokens, int64_t frame_tokens,
                 int64_t cache_rows);
void check_positions(const char* op, const int32_t* frame_pos, int64_t frames, int64_t rows);
void check_length(const char* op, const char* arg, int64_t length, int64_t limit,
                  const char* limit_arg);

ByteView byte_view(const Tensor& x);
Element element_of(const Tensor& x);

template <class T>
TensorView<T> view_of(const Tensor& x, T* data) {
  return {data, x.size(0), x.size(1), x.size(2), x.size(3), x.stride(0), x.stride(1), x.stride(2)};
}

}  // namespace vidk
