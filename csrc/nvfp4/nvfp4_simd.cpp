// nvfp4_quantize for a range of tokens; compiled once per instruction set.
#include "nvfp4/nvfp4_simd.h"

#include "nvfp4/nvfp4_blocks.h"

namespace vidk {
namespace VIDK_ISA {
namespace {

// How N blocks of each element format are loaded.
template <class Format>
struct Load;

template <>
struct Load<Float32> {
  template <int N>
  static VIDK_INLINE Blocks<N> blocks(const float* p) {
    return load_blocks<N>(p);
  }
};

template <>
struct Load<BFloat16> {
  template <int N>
  static VIDK_INLINE Blocks<N> blocks(const uint16_t* p) {
    return load_bf16_blocks<N>(p);
  }
};

template <>
struct Load<Float16> {
  template <int N>
  static VIDK_INLINE Blocks<N> blocks(const uint16_t* p) {
    float wide[16 * N];
    for (int i = 0; i < 8; ++i) {
      Float32::store<N>(wide + 2 * i * N, Float16::load<N>(p + 2 * i * N));
    }
    return load_blocks<N>(wide);
  }
};

template <class Format, Nvfp4Recipe kRecipe>
void quantize_range(const Nvfp4Args& args, int64_t begin, int64_t end) {
  using T = typename Format::T;
  const ByteView x = args.x;
  // Heads that lie side by side are one long row.
  const int64_t dim = x.dim / static_cast<int64_t>(sizeof(T));
  const int64_t row_heads = x.heads_are_dense() ? x.heads : 1;
  const int64_t row_blocks = row_heads * dim / kNvfp4Block;
  const int64_t token_blocks = x.heads * dim / kNvfp4Block;
  int64_t at = begin * token_blocks;
  for (int64_t i = begin; i < end; ++i) {
    const char* from = x.data + i / x.tokens * x.batch_stride + i % x.tokens * x.token_stride;
    for (int64_t h = 0; h < x.heads; h += row_heads, from += row_heads * x.head_stride) {
      const T* row = (const T*)from;
      for_pairs<kLanes>(0, row_blocks, [&](auto lanes, int64_t block) {
        constexpr int N = lanes();
        const T* p = row + block * kNvfp4Block;
        // The next token, which the hardware does not foresee in a view of fused q, k and v.
        prefetch((const char*)p + x.token_stride, N * kNvfp4Block * sizeof(T));
        const auto q = quantize<N, kRecipe>(Load<Format>::template blocks<N>(p));
        store_blocks<N>(q, args.packed + (at + block) * (kNvfp4Block / 2),
                        args.scales + at + block);
      });
      at += row_blocks;
    }
  }
}

template <class Format>
void quantize_range(const Nvfp4Args& args, int64_t begin, int64_t end) {
  switch (args.recipe) {
    case Nvfp4Recipe::kPlain:
      return quantize_range<Format, Nvfp4Recipe::kPlain>(args, begin, end);
    case Nvfp4Recipe::kFourOverSix:
      return quantize_range<Format, Nvfp4Recipe::kFourOverSix>(args, begin, end);
    case Nvfp4Recipe::kSearch:
      return quantize_range<Format, Nvfp4Recipe::kSearch>(args, begin, end);
  }
}

}  // namespace

void nvfp4_tokens(const Nvfp4Args& args, int64_t begin, int64_t end) {
  switch (args.element) {
    case Element::kFloat32:
      return quantize_range<Float32>(args, begin, end);
    case Element::kBFloat16:
      return quantize_range<BFloat16>(args, begin, end);
    case Element::kFloat16:
      return quantize_range<Float16>(args, begin, end);
  }
}

}  // namespace VIDK_ISA
}  // namespace vidk
