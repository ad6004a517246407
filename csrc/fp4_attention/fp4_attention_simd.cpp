// fp4_attention for a range of row blocks; compiled once per instruction set.
//
// A thread takes up to kMaxBlocks blocks of one head and goes over the keys once: a tile of keys
// and values becomes float32, then every panel of queries meets it.
#include "fp4_attention/fp4_attention_simd.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>

#include "common/ceil_div.h"
#include "fp4_attention/fp4_attention_panels.h"
#include "fp4_attention/fp4_attention_rows.h"

namespace vidk {
namespace VIDK_ISA {
namespace {

constexpr int64_t kMaxBlocks = 5;
constexpr int64_t kMaxPanels = kMaxBlocks * kFp4BlockRows / kPanel;
static_assert(kFp4BlockRows % kPanel == 0 && kFp4TileRows % kPanelRows == 0);
constexpr float kLog2E = 1.44269504f;
constexpr double kLn2 = 0.693147180559945309;

int64_t padded(int64_t rows) { return ceil_div(rows, kPanelRows) * kPanelRows; }

// Keys of one tile of scales.
struct KeyTile {
  int64_t tile, first, keys;
};

template <class Format>
class HeadRows {
 public:
  explicit HeadRows(const Fp4HostArgs& args)
      : args_(args.op),
        length_(args.length),
        depth_(16 * (args_.mxfp8 ? 2 : 1) * args_.scale_cols),
        dim_(padded(args_.dim)),
        slot_tiles_(fp4_tiles(args_.frame_tokens)),
        tiles_(key_tile(length_ - 1).tile + 1),
        scale_(args_.scale * kLog2E) {
    const int64_t panel_floats = (depth_ + dim_ + 2) * kPanel;
    const int64_t bias_floats = has_means() ? padded(tiles_) * kPanel : 0;
    const int64_t mean_floats = has_means() ? padded(tiles_) * dim_ + dim_ * kPanel : 0;
    const int64_t tile_floats = kFp4TileRows * (depth_ + dim_ + kPanel);
    const int64_t row_floats = std::max(depth_, dim_);
    memory_.reset(new float[kMaxPanels * (panel_floats + bias_floats) + mean_floats + tile_floats +
                            row_floats]());
    float* at = memory_.get();
    const auto take = [&at](int64_t floats) { return std::exchange(at, at + floats); };
    keys_ = take(kFp4TileRows * depth_);
    values_ = take(kFp4TileRows * dim_);
    logits_ = take(kFp4TileRows * kPanel);
    row_ = take(row_floats);
    if (has_means()) {
      means_ = take(padded(tiles_) * dim_);
      smooth_q_ = take(dim_ * kPanel);
    }
    for (Panel& p : panels_) {
      p = {take(depth_ * kPanel), take(dim_ * kPanel), take(kPanel), take(kPanel),
           take(bias_floats)};
    }
  }

  // Computes rows [first, first + rows) of one head.
  void run(int64_t batch, int64_t head, int64_t first, int64_t rows) {
    batch_ = batch;
    head_ = head;
    const int64_t panels = ceil_div(rows, kPanel);
    if (has_means()) load_means();
    for (int64_t i = 0; i < panels; ++i) {
      const int64_t at = i * kPanel;
      load_queries(panels_[i], first + at, std::min<int64_t>(kPanel, rows - at));
    }
    for (int64_t key = 0; key < length_;) {
      const KeyTile tile = key_tile(key);
      load_tile(tile);
      for (int64_t i = 0; i < panels; ++i) attend(panels_[i], tile);
      key = tile.first + tile.keys;
    }
    for (int64_t i = 0; i < panels; ++i) {
      const int64_t at = i * kPanel;
      store_panel(panels_[i], first + at, std::min<int64_t>(kPanel, rows - at));
    }
  }

 private:
  struct Panel {
    float* q;     // [depth, kPanel]
    float* out;   // [D, kPanel], not yet divided by `sum`
    float* most;  // [kPanel]: the largest logit, times log2 e
    float* sum;   // [kPanel]
    float* bias;  // [tiles, kPanel]: q times the mean of each tile
  };

  bool has_means() const { return args_.k_mean != nullptr; }
  int64_t head_index() const { return batch_ * args_.heads + head_; }

  // The tile that a key is in, which may be the last, and cut short by the number of valid keys.
  KeyTile key_tile(int64_t key) const {
    const int64_t slot = key / args_.frame_tokens;
    const int64_t tile = key % args_.frame_tokens / kFp4TileRows;
    const int64_t first = slot * args_.frame_tokens + tile * kFp4TileRows;
    const int64_t end = std::min({first + kFp4TileRows, (slot + 1) * args_.frame_tokens, length_});
    return {slot * slot_tiles_ + tile, first, end - first};
  }

  void load_means() {
    const int64_t all = args_.capacity / args_.frame_tokens * slot_tiles_;
    const auto* mean = static_cast<const uint16_t*>(args_.k_mean) + head_index() * all * args_.dim;
    for (int64_t t = 0; t < tiles_; ++t) {
      widen_row<BFloat16>(mean + t * args_.dim, args_.dim, means_ + t * dim_);
    }
  }

  void load_queries(Panel& panel, int64_t first, int64_t rows) {
    std::fill_n(panel.q, depth_ * kPanel, 0.0f);
    std::fill_n(panel.out, dim_ * kPanel, 0.0f);
    std::fill_n(panel.most, kPanel, -INFINITY);
    std::fill_n(panel.sum, kPanel, 0.0f);
    const int64_t q_tiles = fp4_tiles(args_.tokens);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t token = first + r;
      const int64_t tile = head_index() * q_tiles + token / kFp4TileRows;
      decode_row(args_, args_.q_codes + (head_index() * args_.tokens + token) * args_.row_bytes,
                 args_.q_scales + tile * args_.scale_cols / 4 * kFp4TileBytes, token % kFp4TileRows,
                 row_);
      for (int64_t d = 0; d < depth_; ++d) panel.q[d * kPanel + r] = row_[d];
    }
    if (!has_means()) return;
    std::fill_n(smooth_q_, dim_ * kPanel, 0.0f);
    for (int64_t r = 0; r < rows; ++r) {
      widen_row<Format>(args_.q.row(batch_, first + r, head_), args_.dim, row_);
      for (int64_t d = 0; d < args_.dim; ++d) smooth_q_[d * kPanel + r] = row_[d];
    }
    panel_product<false, false>(padded(tiles_), dim_, means_, dim_, smooth_q_, panel.bias);
  }

  void load_tile(const KeyTile& tile) {
    const int64_t all = args_.capacity / args_.frame_tokens * slot_tiles_;
    const uint8_t* scales =
        args_.k_scales + (head_index() * all + tile.tile) * args_.scale_cols / 4 * kFp4TileBytes;
    const uint8_t* codes =
        args_.k_codes + (head_index() * args_.capacity + tile.first) * args_.row_bytes;
    const int64_t row = (tile.first % args_.frame_tokens) % kFp4TileRows;
    for (int64_t i = 0; i < tile.keys; ++i) {
      decode_row(args_, codes + i * args_.row_bytes, scales, row + i, keys_ + i * depth_);
      const char* v = args_.v.row(batch_, tile.first + i, head_);
      if (args_.v_is_fp8) {
        widen_e4m3_row(v, args_.dim, values_ + i * dim_);
      } else {
        widen_row<Format>(v, args_.dim, values_ + i * dim_);
      }
    }
  }

  void attend(Panel& panel, const KeyTile& tile) {
    panel_product<false, false>(padded(tile.keys), depth_, keys_, depth_, panel.q, logits_);
    for (int at = 0; at < kPanel; at += kLanes) {
      const PanelF bias =
          has_means() ? load<PanelF>(panel.bias + tile.tile * kPanel + at) * scale_ : PanelF{};
      weigh(panel, at, tile.keys, bias);
    }
    panel_product<true, true>(dim_, tile.keys, values_, dim_, logits_, panel.out);
  }

  // Turns a vector's logits into weights relative to the largest logit so far.
  void weigh(Panel& panel, int at, int64_t keys, PanelF bias) {
    const PanelF scale = every_lane(scale_);
    float* s = logits_ + at;
    PanelF most = load<PanelF>(s);
    for (int64_t i = 1; i < keys; ++i) {
      const PanelF next = load<PanelF>(s + i * kPanel);
      most = most > next ? most : next;
    }
    const PanelF before = load<PanelF>(panel.most + at);
    most = multiply_add(most, scale, bias);
    most = before > most ? before : most;
    const PanelF shift = bias - most;
    PanelF sum{};
    for (int64_t i = 0; i < keys; ++i) {
      const PanelF weight = exp2_of(multiply_add(load<PanelF>(s + i * kPanel), scale, shift));
      store(s + i * kPanel, weight);
      sum += weight;
    }
    const PanelF shrink = exp2_of(before - most);
    store(panel.most + at, most);
    store(panel.sum + at, multiply_add(load<PanelF>(panel.sum + at), shrink, sum));
    for (int64_t d = 0; d < dim_; ++d) {
      float* out = panel.out + d * kPanel + at;
      store(out, load<PanelF>(out) * shrink);
    }
  }

  void store_panel(const Panel& panel, int64_t first, int64_t rows) {
    const int64_t element = static_cast<int64_t>(sizeof(typename Format::T));
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t token = first + r;
      for (int64_t d = 0; d < args_.dim; ++d) row_[d] = panel.out[d * kPanel + r] / panel.sum[r];
      const int64_t at = ((batch_ * args_.tokens + token) * args_.heads + head_) * args_.dim;
      narrow_row<Format>(row_, args_.dim, static_cast<char*>(args_.out) + at * element);
      // In float: the double logarithm of newer C libraries is another symbol, which older ones
      // lack.
      args_.lse[head_index() * args_.tokens + token] =
          static_cast<float>(panel.most[r] * kLn2 + std::log(panel.sum[r]));
    }
  }

  const Fp4AttentionArgs& args_;
  const int64_t length_, depth_, dim_, slot_tiles_, tiles_;
  const float scale_;
  std::unique_ptr<float[]> memory_;
  float *keys_, *values_, *logits_, *row_, *means_ = nullptr, *smooth_q_ = nullptr;
  Panel panels_[kMaxPanels];
  int64_t batch_ = 0, head_ = 0;
};

template <class Format>
void run(const Fp4HostArgs& args, int64_t begin, int64_t end) {
  HeadRows<Format> head(args);
  const int64_t tokens = args.op.tokens;
  const int64_t head_blocks = ceil_div(tokens, kFp4BlockRows);
  while (begin < end) {
    const int64_t block = begin % head_blocks;
    const int64_t count = std::min({kMaxBlocks, head_blocks - block, end - begin});
    const int64_t first = block * kFp4BlockRows;
    const int64_t rows = std::min(count * kFp4BlockRows, tokens - first);
    const int64_t index = begin / head_blocks;
    head.run(index / args.op.heads, index % args.op.heads, first, rows);
    begin += count;
  }
}

}  // namespace

void fp4_attention_blocks(const Fp4HostArgs& args, int64_t begin, int64_t end) {
  switch (args.element) {
    case Element::kFloat32:
      return run<Float32>(args, begin, end);
    case Element::kBFloat16:
      return run<BFloat16>(args, begin, end);
    case Element::kFloat16:
      return run<Float16>(args, begin, end);
  }
}

}  // namespace VIDK_ISA
}  // namespace vidk
