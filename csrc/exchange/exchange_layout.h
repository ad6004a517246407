// Where the exchange finds heads and tokens. No torch header.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/tensor_view.h"

namespace vidk {

// The send buffer [P, n, B, S, H / P, D]: the chunk of each rank holds its heads of the n tensors
// that are given, in the order q, k, v.
struct PackedChunks {
  ByteView q;  // of rank 0: [B, S, H / P, D]; without data where the tensor is not given
  ByteView k;
  ByteView v;
  int64_t rank_stride;  // bytes
};

inline PackedChunks packed_chunks(const ByteView& q, const ByteView& k, const ByteView& v,
                                  int64_t ranks, char* out) {
  PackedChunks chunks{};
  int64_t bytes = 0;
  const auto place = [&](const ByteView& x, ByteView& to) {
    if (x.data == nullptr) return;
    const int64_t heads = x.heads / ranks;
    static_cast<TensorView<char>&>(to) = {out + bytes,   x.batch, x.tokens,
                                          heads,         x.dim,   x.tokens * heads * x.dim,
                                          heads * x.dim, x.dim};
    bytes += x.batch * x.tokens * heads * x.dim;
  };
  place(q, chunks.q);
  place(k, chunks.k);
  place(v, chunks.v);
  chunks.rank_stride = bytes;
  return chunks;
}

// Which token of the block token j of a rank's shard is: the numbering of rope_3d, with the rank's
// offset of rank * slice_tokens.
struct ShardLayout {
  int64_t batch;         // B of the received [P, B, S_r, H / P, D]
  int64_t shard_tokens;  // S_r
  int64_t slice_tokens;  // successive tokens of the block: of a frame's slice, or S_r
  int64_t slice_end;     // offsets from here on are padding: of a frame, or of the block
  int64_t frame_tokens;
  int64_t block_tokens;  // without padding

  // A run of tokens that are successive in the shard, in the block and in their frame.
  struct Run {
    int64_t token;  // in the block; negative: padding
    int64_t count;
  };
  Run run_at(int64_t rank, int64_t j) const {
    const int64_t slice = j / slice_tokens;
    const int64_t in_slice = j % slice_tokens;
    const int64_t at = rank * slice_tokens + in_slice;
    const int64_t token = slice * frame_tokens + at;
    const int64_t left = slice_tokens - in_slice;
    if (at >= slice_end || token >= block_tokens) return {-1, left};
    return {token, std::min({left, slice_end - at, block_tokens - token,
                             frame_tokens - token % frame_tokens})};
  }
};

}  // namespace vidk
