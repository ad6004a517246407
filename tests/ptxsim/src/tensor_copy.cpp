// cp.async.bulk.tensor (PTX ISA 9.7.9.25.5): one thread copies a box of a tensor, whose place and
// shape a tensor map tells. What lies outside the tensor is read as zero, and not written; the
// bytes that a load completes are always those of the whole box.

#include <algorithm>
#include <cstring>

#include "copy.h"
#include "tensor_map.h"

namespace ptxsim {
namespace {

constexpr uint32_t kSharedAlign = 128;
constexpr uint32_t kChunk = 16;  // that swizzles move

TensorMap map_at(Warp& w, uint64_t at) {
  const uint8_t* bytes = nullptr;
  if (at >> 56 == kParamWindow >> 56) {
    const std::vector<uint8_t>& params = w.cta.machine.launch.params;
    const auto offset = static_cast<uint32_t>(at);
    if (offset % kTensorMapAlign != 0 || offset > params.size() ||
        params.size() - offset < sizeof(TensorMap)) {
      throw Fault("alignment", "no tensor map can lie at parameter byte " + std::to_string(offset));
    }
    bytes = params.data() + offset;
  } else {
    bytes = w.cta.machine.memory.read(at, sizeof(TensorMap), kTensorMapAlign, w.cta.index);
  }
  TensorMap map;
  std::memcpy(&map, bytes, sizeof map);
  check(map);
  return map;
}

// A run of elements of one row of the box that lies in the tensor.
struct Run {
  uint64_t global;  // address
  uint32_t box;     // byte in the dense box
  uint32_t bytes;
};

// Row after row; `at` are the coordinates of the box's first element, which may be negative.
std::vector<Run> runs_of(const TensorMap& map, const int64_t* at) {
  std::vector<Run> runs;
  const auto extent = [&](uint32_t i) { return static_cast<int64_t>(map.dim[i]); };
  const int64_t first = std::max<int64_t>(at[0], 0);
  const int64_t end = std::min<int64_t>(at[0] + map.box[0], extent(0));
  uint32_t rows = 1;
  for (uint32_t i = 1; i < map.rank; ++i) rows *= map.box[i];
  for (uint32_t row = 0; row < rows && first < end; ++row) {
    uint64_t address = map.base + static_cast<uint64_t>(first) * map.element_bytes;
    bool inside = true;
    uint32_t rest = row;
    for (uint32_t i = 1; i < map.rank; ++i) {
      const int64_t c = at[i] + rest % map.box[i];
      rest /= map.box[i];
      inside = inside && c >= 0 && c < extent(i);
      address += static_cast<uint64_t>(c) * map.stride[i - 1];
    }
    if (!inside) continue;
    const auto skipped = static_cast<uint32_t>(first - at[0]) * map.element_bytes;
    runs.push_back({address, row * map.row_bytes() + skipped,
                    static_cast<uint32_t>(end - first) * map.element_bytes});
  }
  return runs;
}

// Calls f(byte of the run, shared offset within the box, bytes) for each chunk of the run.
template <class F>
void for_each_chunk(const TensorMap& map, const Run& run, uint32_t shared, F f) {
  for (uint32_t done = 0; done < run.bytes;) {
    const uint32_t at = run.box + done;
    const uint32_t n =
        map.swizzle == 0 ? run.bytes : std::min(run.bytes - done, kChunk - at % kChunk);
    f(done, swizzled(shared + at, map.swizzle) - shared, n);
    done += n;
  }
}

// The box and where it lies, of one thread.
struct Box {
  TensorMap map;
  std::vector<Run> runs;
  uint8_t* shared;

  Box(Warp& w, const Inst& inst, int map_operand, int lane, uint64_t map_address, uint32_t at)
      : map(map_at(w, map_address)) {
    if (map.rank != inst.mode[0]) {
      throw Fault("launch", "a tensor map of rank " + std::to_string(map.rank) + " in a copy of " +
                                std::to_string(inst.mode[0]) + " dimensions");
    }
    int64_t first[5] = {};
    for (uint32_t i = 0; i < map.rank; ++i) {
      const Arg& coordinate = inst.arg(map_operand, 1 + static_cast<int>(i));
      w.require(coordinate, 1u << lane, "a tensor coordinate");
      first[i] = static_cast<int32_t>(w.lane_value(coordinate, lane));
    }
    runs = runs_of(map, first);
    shared = w.cta.shared_at(at, map.box_bytes(), kSharedAlign);
  }
};

// [shared], [map, {coordinates}], [mbarrier]
Flow load(Warp& w, const Inst& inst, Mask active) {
  uint32_t to[kLanes], bar[kLanes];
  uint64_t maps[kLanes];
  shared_addresses(w, inst, 0, active, to);
  w.addresses(inst, 1, active, maps);
  shared_addresses(w, inst, 2, active, bar);
  for (int l = 0; l < kLanes; ++l) {
    if (!(active >> l & 1)) continue;
    const Box box(w, inst, 1, l, maps[l], to[l]);
    const uint32_t bytes = box.map.box_bytes();
    Pieces pieces{{nullptr, box.shared, bytes}};
    for (const Run& run : box.runs) {
      const uint8_t* from = copy_source(w, run.global, run.bytes, box.map.element_bytes);
      for_each_chunk(box.map, run, to[l], [&](uint32_t done, uint32_t at, uint32_t n) {
        pieces.push_back({from + done, box.shared + at, n});
      });
      w.cta.machine.counters.bulk_read_bytes += run.bytes;
    }
    begin_load(w, to[l], bytes, bar[l], std::move(pieces));
  }
  return Flow::kNext;
}

// [map, {coordinates}], [shared]
Flow store(Warp& w, const Inst& inst, Mask active) {
  uint32_t from[kLanes];
  uint64_t maps[kLanes];
  w.addresses(inst, 0, active, maps);
  shared_addresses(w, inst, 1, active, from);
  for (int l = 0; l < kLanes; ++l) {
    if (!(active >> l & 1)) continue;
    const Box box(w, inst, 0, l, maps[l], from[l]);
    Pieces pieces;
    for (const Run& run : box.runs) {
      uint8_t* to =
          w.cta.machine.memory.write(run.global, run.bytes, box.map.element_bytes, w.cta.index);
      for_each_chunk(box.map, run, from[l], [&](uint32_t done, uint32_t at, uint32_t n) {
        pieces.push_back({box.shared + at, to + done, n});
      });
      w.cta.machine.counters.bulk_written_bytes += run.bytes;
    }
    begin_store(w, l, from[l], box.map.box_bytes(), std::move(pieces));
  }
  return Flow::kNext;
}

Flow nothing(Warp&, const Inst&, Mask) { return Flow::kNext; }

}  // namespace

void decode_tensor_copy(Decoder& d) {
  const int rank = 1 + d.choose({"1d", "2d", "3d", "4d", "5d"});
  if (rank == 0) d.fail("no .1d ... .5d");
  if (!d.take("global")) d.fail("no .global");
  d.take("tile");
  const int policy = d.take("L2::cache_hint") ? 1 : 0;
  d.inst.mode[0] = static_cast<uint32_t>(rank);
  d.inst.space = Space::kShared;
  int map = 0;
  if (d.take("prefetch")) {
    if (!d.take("L2")) d.fail("no .L2");
    d.inst.execute = nothing;
    d.finish({1 + policy});
  } else if (d.take("mbarrier::complete_tx::bytes")) {
    if (d.choose({"shared::cluster", "shared::cta"}) < 0) d.fail("not to shared memory");
    map = 1;
    d.inst.execute = load;
    d.finish({3 + policy});
  } else {
    if (!d.take("bulk_group") || !d.take("shared::cta")) d.fail("not .shared::cta.bulk_group");
    d.inst.execute = store;
    d.finish({2 + policy});
  }
  if (d.inst.count(map) != 1 + rank) d.fail("wrong number of coordinates");
}

}  // namespace ptxsim
