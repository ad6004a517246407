// The kernels that normalise and rotate a token's q and k, for every op that does: what a Task says
// is only where tokens lie and where results go. Device code, torch-free.
//
// A Task has Params (a NormRopeTokens with q_out, k_out and v_out), a Walk over tokens, and the
// addresses of a token's heads in an output: one by one, and those of one thread.
#pragma once

#include <cstdint>

#include "common/vector.cuh"
#include "norm_rope/norm_rope.cuh"

namespace vidk::norm_rope {

extern __shared__ float4 shared_data[];

// The angles of one token into shared memory, cos then sin, by its `threads` threads. Bands that
// the token before had too are copied from its buffer, so that the tables are read only where
// something changed: each thread reads back what it has itself written.
template <class Walk>
__device__ void stage_angles(const NormRopeTokens& p, const Walk& token, int pairs,
                             const float* before, float* to, int thread, int threads) {
  if (!token.is_rotated()) return;
  for (int pair = thread; pair < pairs; pair += threads) {
    const PairAngles angles(p.grid, pair);
    float2 angle;
    if (token.is_new(angles.band)) {
      angle = angles.at(token.table_row(angles.band));
    } else {
      angle = make_float2(before[pair], before[pairs + pair]);
    }
    to[pair] = angle.x;
    to[pairs + pair] = angle.y;
  }
}

// A thread block takes one token after another and holds its q, k and v in registers, kVecs vectors
// of each a thread. A thread stays on one vector of D, and neighbouring threads touch neighbouring
// vectors. One barrier a token: what is shared has two buffers. The next token's loads are issued
// as soon as registers are free, before this one's last stores, so that memory is never idle. The
// weights are read once for all of the block's tokens; each thread reads back from shared memory
// what it has itself put there.
//
// Token counts and rows have 32 bits here; the plan sees to it.
template <class Task, class Format, int kVecs>
__device__ void in_registers(const typename Task::Params& p) {
  using Vec = Vector<Format, 16>;
  using Walk = typename Task::template Walk<int32_t>;
  constexpr int kPairs = Vec::kPairs;
  __shared__ float2 warp_sums[2][kMaxWarps];
  const int head_vecs = static_cast<int>(p.head_vecs);
  const int heads = static_cast<int>(p.heads);
  const int pairs = head_vecs * kPairs;
  // Shared: weights of q and k by vector and thread, then two buffers of cos and sin.
  char* const weights = reinterpret_cast<char*>(shared_data) + threadIdx.x * Vec::kBytes;
  const int weight_step = static_cast<int>(blockDim.x) * Vec::kBytes;
  float* const angles = reinterpret_cast<float*>(shared_data) + 2 * kVecs * (weight_step / 4);
  const int first_head = static_cast<int>(threadIdx.x) / head_vecs;
  const int vec = static_cast<int>(threadIdx.x) - first_head * head_vecs;
  const int at = vec * Vec::kBytes;
  // The thread's heads are `pass_heads` apart; the last may be one too many.
  const auto has = [&](int i) {
    return first_head < p.pass_heads && first_head + i * p.pass_heads < heads;
  };
  const auto load = [&](Vec(&t)[kVecs], const PassRows& x, const Walk& token) {
    const char* from =
        x.data + row_offset(x, token.batch, token.token) + first_head * x.head_stride + at;
#pragma unroll
    for (int i = 0; i < kVecs; ++i) {
      t[i].clear();
      if (has(i)) t[i].load_once(from);
      from += x.pass_stride;
    }
  };
  const typename Task::template ThreadHeads<kVecs> to_heads(p, first_head, at);
  const auto store = [&](const Vec(&t)[kVecs], const typename Task::OutRows& x, int32_t batch,
                         int32_t row) {
    to_heads.visit(x, x.data + row_offset(x, batch, row), [&](int i, char* to) {
      if (has(i)) t[i].store(to);
    });
  };

  const int64_t first = blockIdx.x * p.block_tokens;
  int32_t left = static_cast<int32_t>(min(p.block_tokens, p.batch * p.tokens - first));
  Walk token(p, static_cast<uint32_t>(first));
  // A tensor that is absent is never touched; what its registers hold is not stored.
  const bool has_q = Task::has(p.q), has_k = Task::has(p.k), has_v = Task::has(p.v);
  Vec q[kVecs], k[kVecs], v[kVecs];
  const auto load_if = [&](bool is_there, Vec(&t)[kVecs], const PassRows& x) {
    if (is_there) load(t, x, token);
  };
  if constexpr (Task::kMayLack) {
#pragma unroll
    for (int i = 0; i < kVecs; ++i) {
      q[i].clear();
      k[i].clear();
    }
  }
  load_if(has_q, q, p.q);
  load_if(has_k, k, p.k);
  load_if(has_v, v, p.v);
#pragma unroll
  for (int i = 0; i < kVecs; ++i) {
    if (has(i)) {
      const int weight_at = ((first_head + i * p.pass_heads) * head_vecs + vec) * Vec::kBytes;
      Vec weight;
      if (has_q) {
        weight.load(p.q_weight + weight_at);
        weight.store_shared(weights + 2 * i * weight_step);
      }
      if (has_k) {
        weight.load(p.k_weight + weight_at);
        weight.store_shared(weights + (2 * i + 1) * weight_step);
      }
    }
  }

  for (int buffer = 0;; buffer ^= 1) {
    float* const cos = angles + buffer * 2 * pairs;
    stage_angles(p, token, pairs, angles + (buffer ^ 1) * 2 * pairs, cos, threadIdx.x, blockDim.x);
    float2 sum = make_float2(0.0f, 0.0f);
#pragma unroll
    for (int i = 0; i < kVecs; ++i) {
      sum.x = add_squares(sum.x, q[i]);
      sum.y = add_squares(sum.y, k[i]);
    }
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) warp_sums[buffer][threadIdx.x / 32] = sum;
    const int32_t batch = token.batch;
    const int32_t row = token.token;
    const int32_t kv_row = token.kv_row(p);
    const bool is_rotated = token.is_rotated();
    if (has_v && kv_row >= 0) store(v, p.v_out, batch, kv_row);
    __syncthreads();

    const bool is_last = --left == 0;
    if (!is_last) {
      token.next(p);
      // Nothing was staged for a token that is not rotated.
      if (!is_rotated) token.new_bands = token.kAllBands;
      load_if(has_v, v, p.v);
    }
    const float2 scale = scales(p, warp_sums[buffer], blockDim.x / 32);
    float c[kPairs], s[kPairs];
    set_identity(c, s);
    if (is_rotated && has(0)) {
      load_shared(cos + vec * kPairs, c);
      load_shared(cos + pairs + vec * kPairs, s);
    }
    const auto norm_rotate_all = [&](Vec(&t)[kVecs], float t_scale, int which) {
#pragma unroll
      for (int i = 0; i < kVecs; ++i) {
        if (has(i)) {
          Vec weight;
          weight.load_shared(weights + (2 * i + which) * weight_step);
          norm_rotate(t[i], weight, t_scale, c, s);
        }
      }
    };
    if (has_q) {
      norm_rotate_all(q, scale.x, 0);
      store(q, p.q_out, batch, row);
    }
    if (!is_last) load_if(has_q, q, p.q);
    if (has_k && kv_row >= 0) {
      norm_rotate_all(k, scale.y, 1);
      store(k, p.k_out, batch, kv_row);
    }
    if (is_last) return;
    load_if(has_k, k, p.k);
  }
}

// For rows that registers cannot hold, and for narrow accesses: q and k are read a second time
// after the sum, most likely from a cache.
template <class Task, class Format, int kAccess>
__device__ void in_two_passes(const typename Task::Params& p) {
  using Vec = Vector<Format, kAccess>;
  constexpr int kPairs = Vec::kPairs;
  __shared__ float2 warp_sums[kMaxWarps];
  const int64_t head_step = blockDim.x / p.head_vecs;
  const int64_t vec_step = blockDim.x - head_step * p.head_vecs;
  // Calls do(head, vec) for the thread's vectors of a row.
  const auto for_vectors = [&](auto&& do_vector) {
    int64_t head = threadIdx.x / p.head_vecs;
    int64_t vec = threadIdx.x - head * p.head_vecs;
    while (head < p.heads) {
      do_vector(head, vec);
      head += head_step;
      vec += vec_step;
      if (vec >= p.head_vecs) {
        vec -= p.head_vecs;
        ++head;
      }
    }
  };

  const int64_t items = p.batch * p.tokens;
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const typename Task::template Walk<int64_t> token(p, item);
    const int64_t kv_row = token.kv_row(p);
    const bool has_q = Task::has(p.q);
    const bool has_k = Task::has(p.k);
    const bool writes_k = has_k && kv_row >= 0;
    const bool writes_v = Task::has(p.v) && kv_row >= 0;
    const char* const q = p.q.data + row_offset(p.q, token.batch, token.token);
    const char* const k = p.k.data + row_offset(p.k, token.batch, token.token);
    const char* const v = p.v.data + row_offset(p.v, token.batch, token.token);
    char* const q_out = p.q_out.data + row_offset(p.q_out, token.batch, token.token);
    char* const k_out = p.k_out.data + row_offset(p.k_out, token.batch, kv_row);
    char* const v_out = p.v_out.data + row_offset(p.v_out, token.batch, kv_row);

    float2 sum = make_float2(0.0f, 0.0f);
    for_vectors([&](int64_t head, int64_t vec) {
      const int64_t at = vec * Vec::kBytes;
      Vec t;
      if (has_q) {
        t.load(q + head * p.q.head_stride + at);
        sum.x = add_squares(sum.x, t);
      }
      if (has_k) {
        t.load(k + head * p.k.head_stride + at);
        sum.y = add_squares(sum.y, t);
      }
      if (writes_v) {
        t.load_once(v + head * p.v.head_stride + at);
        t.store(v_out + Task::head_offset(p, p.v_out, head) + at);
      }
    });
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = sum;
    __syncthreads();
    const float2 scale = scales(p, warp_sums, blockDim.x / 32);

    const bool is_rotated = token.is_rotated();
    for_vectors([&](int64_t head, int64_t vec) {
      const int64_t at = vec * Vec::kBytes;
      const int64_t weight_at = (head * p.head_vecs + vec) * Vec::kBytes;
      float c[kPairs], s[kPairs];
      set_identity(c, s);
      if (is_rotated) {
#pragma unroll
        for (int i = 0; i < kPairs; ++i) {
          const PairAngles angles(p.grid, vec * kPairs + i);
          const float2 angle = angles.at(token.table_row(angles.band));
          c[i] = angle.x;
          s[i] = angle.y;
        }
      }
      Vec t, weight;
      if (has_q) {
        t.load(q + head * p.q.head_stride + at);
        weight.load(p.q_weight + weight_at);
        norm_rotate(t, weight, scale.x, c, s);
        t.store(q_out + Task::head_offset(p, p.q_out, head) + at);
      }
      if (writes_k) {
        t.load(k + head * p.k.head_stride + at);
        weight.load(p.k_weight + weight_at);
        norm_rotate(t, weight, scale.y, c, s);
        t.store(k_out + Task::head_offset(p, p.k_out, head) + at);
      }
    });
    __syncthreads();
  }
}

}  // namespace vidk::norm_rope
