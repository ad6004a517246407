// Device code of fp4_attention for GPUs with tensor memory. Torch-free.
// VIDK_ARCHS 100a 103a
//
// A thread block has two tiles of 128 queries and all keys, in tiles of 128. Warps have roles:
//
//   loader     copies tiles to two rings of stages in shared memory: codes and scales; values
//   multiplier starts all matrix products: logits S = Q K^T in FP4 or FP8, output O += P V
//   softmax    four warps to a query tile: a thread has a row; S to weights P in tensor memory
//
// The two query tiles take turns: while one is in its softmax, products of the other run. What is
// computed in turn is called a round: a tile of keys, and, where keys have means, before every 32
// tiles the products of q and those tiles' means, which pass through the same rings: the means as
// codes, a tile of q as values.
//
// Tensor memory, all 512 columns, x being the query tile:
//
//   128 x       S of x; once it is in registers, P lies in its first columns, and in its last ones
//               the scale factors that S of the *other* query tile is made with
//   256 + 128 x O of x
//
// Nothing relies on products of different shapes being executed in order, which known hardware
// does but the ISA does not promise: who overwrites columns has waited for those that read them.
#include <cstdint>

#include "common/kernel.cuh"
#include "common/mbarrier.cuh"
#include "common/tcgen05.cuh"
#include "fp4_attention/fp4_attention_sm100_block.cuh"
#include "fp4_attention/fp4_attention_sm100_formats.cuh"
#include "fp4_attention/fp4_attention_sm100_kernel.h"
#include "fp4_attention/fp4_attention_sm100_load.cuh"
#include "fp4_attention/fp4_attention_sm100_multiply.cuh"
#include "fp4_attention/fp4_attention_sm100_softmax.cuh"

namespace vidk::fp4_sm100 {

constexpr int kMultiplierWarp = 8, kLoaderWarp = 9;
constexpr int kTensorColumns = 512;
// Of the 168 registers that each thread begins with, loader and multiplier give to softmax.
constexpr int kFewRegisters = 72, kManyRegisters = 216;
static_assert(2 * kManyRegisters + kFewRegisters == 3 * 168);

__device__ void initialise(Barriers& bar) {
  bar.queries.init(1);
  bar.cut_values.init(1);
  for (int i = 0; i < kStages; ++i) {
    bar.keys[i].init(1);
    bar.keys_free[i].init(1);
    bar.values[i].init(1);
    bar.values_free[i].init(1);
  }
  for (int x = 0; x < 2; ++x) {
    bar.logits[x].init(1);
    bar.logits_read[x].init(kSoftmaxWarps);
    bar.weights[x][0].init(kSoftmaxWarps);
    bar.weights[x][1].init(kSoftmaxWarps);
    bar.output[x].init(1);
  }
  fence_mbarrier_init();
}

template <class C, class Values>
__device__ void attend(const Fp4Sm100Params& p) {
  extern __shared__ __align__(Fp4Sm100Shared::kAlign) char shared[];
  Barriers& bar = *reinterpret_cast<Barriers*>(shared + C::kShared.barriers);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  if (threadIdx.x == 0) initialise(bar);
  if (warp == kMultiplierWarp) tcgen05::allocate(&bar.tensor, kTensorColumns);
  tcgen05::fence_before();
  __syncthreads();
  tcgen05::fence_after();

  const int row0 = static_cast<int>(blockIdx.x) * (kFp4Sm100QueryTiles * kRows);
  const int length = min(max(*p.kv_len, 0), p.capacity);
  const Block b{p,
                shared,
                bar,
                static_cast<int>(blockIdx.y),
                static_cast<int>(blockIdx.z),
                row0,
                p.tokens - row0 > kRows ? 2 : 1,
                length,
                tiles_of(length, p)};
  const int query_tile = warp / kSoftmaxWarps;
  if (query_tile == kFp4Sm100QueryTiles) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kFewRegisters));
    if (warp == kLoaderWarp) load_tiles<C, Values>(b);
    if (warp == kMultiplierWarp && threadIdx.x % 32 == 0) Multiplier<C, Values>{b}.run();
    __syncwarp();
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kManyRegisters));
    if (query_tile < b.query_tiles) Row<C, Values>(b, query_tile).run();
  }
  tcgen05::fence_before();
  __syncthreads();
  if (warp == kMultiplierWarp) {
    tcgen05::fence_after();
    tcgen05::deallocate(bar.tensor, kTensorColumns);
  }
}

using Nvfp4x128 = Codes<64, 8, false>;
using Nvfp4x192 = Codes<96, 12, false>;
using Nvfp4x256 = Codes<128, 16, false>;
using Mxfp8 = Codes<128, 4, true>;

}  // namespace vidk::fp4_sm100

using namespace vidk;
using namespace vidk::fp4_sm100;
// Copies find their tensor maps among the parameters: these must stay where the launch put them.
VIDK_KERNEL(vidk_fp4_attention_sm100_nvfp4_d128_bf16, __grid_constant__ Fp4Sm100Params,
            (kFp4Sm100Threads, 1), attend<Nvfp4x128, BFloat16Values>)
VIDK_KERNEL(vidk_fp4_attention_sm100_nvfp4_d128_e4m3, __grid_constant__ Fp4Sm100Params,
            (kFp4Sm100Threads, 1), attend<Nvfp4x128, Fp8Values>)
VIDK_KERNEL(vidk_fp4_attention_sm100_nvfp4_d192_bf16, __grid_constant__ Fp4Sm100Params,
            (kFp4Sm100Threads, 1), attend<Nvfp4x192, BFloat16Values>)
VIDK_KERNEL(vidk_fp4_attention_sm100_nvfp4_d192_e4m3, __grid_constant__ Fp4Sm100Params,
            (kFp4Sm100Threads, 1), attend<Nvfp4x192, Fp8Values>)
VIDK_KERNEL(vidk_fp4_attention_sm100_nvfp4_d256_bf16, __grid_constant__ Fp4Sm100Params,
            (kFp4Sm100Threads, 1), attend<Nvfp4x256, BFloat16Values>)
VIDK_KERNEL(vidk_fp4_attention_sm100_nvfp4_d256_e4m3, __grid_constant__ Fp4Sm100Params,
            (kFp4Sm100Threads, 1), attend<Nvfp4x256, Fp8Values>)
VIDK_KERNEL(vidk_fp4_attention_sm100_mxfp8_bf16, __grid_constant__ Fp4Sm100Params,
            (kFp4Sm100Threads, 1), attend<Mxfp8, BFloat16Values>)
VIDK_KERNEL(vidk_fp4_attention_sm100_mxfp8_e4m3, __grid_constant__ Fp4Sm100Params,
            (kFp4Sm100Threads, 1), attend<Mxfp8, Fp8Values>)
