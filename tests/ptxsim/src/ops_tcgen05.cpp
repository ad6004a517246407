// tcgen05: the matrix unit of sm_100 with memory of its own (PTX ISA 9.7.16). Here: allocation,
// moves between tensor memory and registers, copies from shared memory, and order; products are in
// ops_tcgen05_mma.cpp.
//
// Loads and stores move their data at once; that nobody looks at it before it is there is checked.

#include "descriptor.h"
#include "tcgen05.h"

namespace ptxsim {

int single_lane(Mask active, const char* what) {
  if ((active & (active - 1)) == 0) return __builtin_ctz(active);
  throw Fault("divergence", std::string(what) + " by lanes " + hex(active) +
                                ": each of them would start it; let one lane execute it");
}

uint64_t scalar(const Warp& w, const Arg& arg, int lane, const char* what) {
  w.require(arg, 1u << lane, what);
  return w.lane_value(arg, lane);
}

uint32_t first_column(const Warp& w, const Inst& inst, int operand, int lane, const char* what) {
  uint64_t at[kLanes];
  w.addresses(inst, operand, 1u << lane, at);
  const TensorAddress address(at[lane]);
  if (address.row != 0) {
    throw Fault("unsupported", std::string(what) + " at row " + std::to_string(address.row) +
                                   " of tensor memory: it begins at row 0");
  }
  return address.column;
}

void begin_reads(Warp& w, TensorOperation& op) {
  for (const Cta::AsyncState::Range& r : op.reads) {
    w.cta.shared_at(r.at, r.bytes, kChunk);
    w.cta.shadow.proxy_read_begin(w.index, r.at, r.bytes);
  }
}

std::function<void()> located(Warp& w, const Inst& inst, int lane, std::function<void()> work) {
  const Machine& m = w.cta.machine;
  if (m.launch.policy == Policy::kEager) return work;  // the instruction is still executing
  return [&w, &inst, &m, lane, work = std::move(work)] {
    try {
      work();
    } catch (const Fault& fault) {
      const auto pc = static_cast<int32_t>(&inst - m.program.insts.data());
      throw Fault(fault.kind, std::string(fault.what()) + "\n  " + m.where(w, pc, 1u << lane));
    }
  };
}

namespace {

enum Mode { kCount, kRows, kBytes, kCopies };

// --- allocation
// -------------------------------------------------------------------------------------

uint32_t columns_of(const Warp& w, const Inst& inst, int operand) {
  const uint64_t columns = uniform(w, inst.arg(operand), "a number of columns");
  if (columns < 32 || columns > TensorMemory::kColumns || (columns & (columns - 1)) != 0) {
    throw Fault("unsupported",
                std::to_string(columns) + " columns of tensor memory: a power of two, 32 to 512");
  }
  return static_cast<uint32_t>(columns);
}

void write_address(Cta& cta, int warp, uint32_t at, uint32_t column) {
  std::memcpy(cta.shared_at(at, 4, 4), &column, sizeof column);
  cta.shadow.write(warp, 0, at, 4);
}

Flow alloc(Warp& w, const Inst& inst, Mask active) {
  require_whole_warp(w, active, "tcgen05.alloc");
  TensorMemory& tensor = tensor_of(w.cta);
  const uint32_t columns = columns_of(w, inst, 1);
  if (tensor.relinquished) {
    throw Fault("unsupported", "tcgen05.alloc after tcgen05.relinquish_alloc_permit");
  }
  if (columns > tensor.last_columns) {
    throw Fault("unsupported", "tcgen05.alloc of more columns than the allocation before it");
  }
  uint32_t at[kLanes];
  shared_addresses(w, inst, 0, active, at);
  uniform(w, inst.arg(0), "where tcgen05.alloc writes the address");
  w.cta.shared_at(at[0], 4, 4);
  if (const auto column = tensor.allocate(columns)) {
    write_address(w.cta, w.index, at[0], *column);
    return Flow::kNext;
  }
  tensor.waiting.push_back({&w, at[0], columns});
  return Flow::kWait;
}

Flow dealloc(Warp& w, const Inst& inst, Mask active) {
  require_whole_warp(w, active, "tcgen05.dealloc");
  TensorMemory& tensor = tensor_of(w.cta);
  const TensorAddress address(uniform(w, inst.arg(0), "an address of tensor memory"));
  if (address.row != 0) throw Fault("bounds", "tcgen05.dealloc of an address that has a row");
  tensor.release(w, address.column, columns_of(w, inst, 1));
  // In the order of their coming.
  while (!tensor.waiting.empty()) {
    const TensorMemory::Waiting first = tensor.waiting.front();
    const auto column = tensor.allocate(first.columns);
    if (!column) break;
    tensor.waiting.erase(tensor.waiting.begin());
    write_address(w.cta, first.warp->index, first.at, *column);
    Group& group = first.warp->groups[0];
    group.blocked = false;
    ++group.pc;
  }
  return Flow::kNext;
}

Flow relinquish(Warp& w, const Inst&, Mask active) {
  require_whole_warp(w, active, "tcgen05.relinquish_alloc_permit");
  tensor_of(w.cta).relinquished = true;
  return Flow::kNext;
}

// --- registers
// --------------------------------------------------------------------------------------

// The rows of a warp, of which lane l has the l-th, and the first column.
TensorAddress fragment(const Warp& w, const Inst& inst, int operand) {
  uniform(w, inst.arg(operand), "an address of tensor memory");
  uint64_t at[kLanes];
  w.addresses(inst, operand, kAllLanes, at);
  const TensorAddress address(at[0]);
  const uint32_t own = static_cast<uint32_t>(w.index) % TensorMemory::kPartitions * 32;
  if (address.row != own) {
    throw Fault("bounds", "warp " + std::to_string(w.index) + " accesses tensor memory row " +
                              std::to_string(address.row) + ": its rows begin at " +
                              std::to_string(own));
  }
  return address;
}

Flow load(Warp& w, const Inst& inst, Mask active) {
  require_whole_warp(w, active, "tcgen05.ld");
  TensorMemory& tensor = tensor_of(w.cta);
  const TensorAddress from = fragment(w, inst, 1);
  const uint32_t count = inst.mode[kCount];
  const OperationPtr op = tensor.issue(TensorOperation::Kind::kLoad, w, inst, -1);
  tensor.read(op, 1u << w.index % 4, from.column, count);
  w.busy.resize(w.reg.size());
  for (uint32_t i = 0; i < count; ++i) {
    Lanes out;
    Mask known = 0;
    for (uint32_t l = 0; l < kLanes; ++l) {
      out.v[l] = tensor.cell(from.row + l, from.column + i);
      known |= static_cast<Mask>(tensor.defined(from.row + l, from.column + i)) << l;
    }
    const Arg& arg = inst.arg(0, static_cast<int>(i));
    w.write(arg, kAllLanes, out.v);
    w.set_defined(arg, kAllLanes, known);
    if (arg.reg >= 0) w.busy[static_cast<size_t>(arg.reg)] |= kLoading;
  }
  return Flow::kNext;
}

Flow store(Warp& w, const Inst& inst, Mask active) {
  require_whole_warp(w, active, "tcgen05.st");
  TensorMemory& tensor = tensor_of(w.cta);
  const TensorAddress to = fragment(w, inst, 0);
  const uint32_t count = inst.mode[kCount];
  const OperationPtr op = tensor.issue(TensorOperation::Kind::kStore, w, inst, -1);
  tensor.write(op, 1u << w.index % 4, to.column, count);
  for (uint32_t i = 0; i < count; ++i) {
    Lanes room;
    const Arg& arg = inst.arg(1, static_cast<int>(i));
    const uint64_t* in = w.read(arg, room);
    for (uint32_t l = 0; l < kLanes; ++l) {
      tensor.cell(to.row + l, to.column + i) = static_cast<uint32_t>(in[l]);
      tensor.defined(to.row + l, to.column + i) = w.defined_of(arg) >> l & 1;
    }
  }
  return Flow::kNext;
}

Flow wait_for_loads(Warp& w, const Inst&, Mask active) {
  require_whole_warp(w, active, "tcgen05.wait::ld");
  tensor_of(w.cta).wait(w, TensorOperation::Kind::kLoad);
  w.busy.clear();
  return Flow::kNext;
}

Flow wait_for_stores(Warp& w, const Inst&, Mask active) {
  require_whole_warp(w, active, "tcgen05.wait::st");
  tensor_of(w.cta).wait(w, TensorOperation::Kind::kStore);
  return Flow::kNext;
}

// --- copies from shared memory
// --------------------------------------------------------------------

Flow copy(Warp& w, const Inst& inst, Mask active) {
  const int lane = single_lane(active, "tcgen05.cp");
  TensorMemory& tensor = tensor_of(w.cta);
  const uint32_t column = first_column(w, inst, 0, lane, "tcgen05.cp");
  const uint64_t bits = scalar(w, inst.arg(1), lane, "a matrix descriptor");
  const Descriptor from = Descriptor::of_tcgen05(bits);
  const uint32_t rows = inst.mode[kRows], bytes = inst.mode[kBytes], copies = inst.mode[kCopies];
  const OperationPtr op = tensor.issue(TensorOperation::Kind::kCopy, w, inst, lane);
  constexpr Type kByte{'b', 8};
  note_ranges(from, true, kByte, 0, static_cast<int>(rows), static_cast<int>(bytes), op->reads);
  begin_reads(w, *op);
  tensor.write(op, TensorMemory::kAllPartitions, column, bytes / 4);
  for (uint32_t row = 0; row < rows * copies; ++row) {
    std::fill_n(&tensor.defined(row, column), bytes / 4, uint8_t{1});
  }
  Cta& cta = w.cta;
  tensor.enqueue([&cta, &tensor, from, column, rows, bytes, copies] {
    for (uint32_t row = 0; row < rows; ++row) {
      for (uint32_t b = 0; b < bytes; b += kChunk) {
        const uint8_t* chunk = cta.shared_at(from.at(true, b, row), kChunk, kChunk);
        for (uint32_t c = 0; c < copies; ++c) {
          std::memcpy(&tensor.cell(row + c * rows, column + b / 4), chunk, kChunk);
        }
      }
    }
  });
  return Flow::kNext;
}

// --- order
// ------------------------------------------------------------------------------------------

Flow commit(Warp& w, const Inst& inst, Mask active) {
  uint32_t at[kLanes];
  shared_addresses(w, inst, 0, active, at);
  for (int l = 0; l < kLanes; ++l) {
    if (active >> l & 1) tensor_of(w.cta).commit(w, l, at[l]);
  }
  return Flow::kNext;
}

Flow fence_before(Warp& w, const Inst&, Mask) {
  tensor_of(w.cta).fence_before(w);
  return Flow::kNext;
}

Flow fence_after(Warp& w, const Inst&, Mask) {
  tensor_of(w.cta).fence_after(w);
  return Flow::kNext;
}

// --- decoding
// ---------------------------------------------------------------------------------------

void take_group(Decoder& d) {
  if (!d.take("cta_group::1")) d.fail("only .cta_group::1 is supported");
}

void take_sync(Decoder& d) {
  if (!d.take("sync") || !d.take("aligned")) d.fail("no .sync.aligned");
  d.inst.gather = Gather::kWarp;
}

void decode_allocation(Decoder& d, int form) {
  take_group(d);
  take_sync(d);
  d.inst.space = d.take("shared::cta") ? Space::kShared : Space::kGeneric;
  if (form != 2 && !d.take("b32")) d.fail("no .b32");
  d.inst.execute = form == 0 ? alloc : form == 1 ? dealloc : relinquish;
  d.finish({form == 2 ? 0 : 2});
}

void decode_move(Decoder& d, bool loads) {
  take_sync(d);
  if (!d.take("32x32b")) d.fail("only the shape .32x32b is supported");
  const int count = d.choose({"x1", "x2", "x4", "x8", "x16", "x32", "x64", "x128"});
  if (count < 0 || !d.take("b32")) d.fail("no .x1 ... .x128, or no .b32");
  d.inst.mode[kCount] = 1u << count;
  d.inst.execute = loads ? load : store;
  d.inst.sets_defined = loads;
  d.results(loads ? 1 : 0);
  d.finish({2});
  if (d.inst.count(loads ? 0 : 1) != 1 << count) d.fail("wrong number of registers");
}

void decode_commit(Decoder& d) {
  take_group(d);
  if (!d.take("mbarrier::arrive::one") || !d.take("b64")) d.fail("no .mbarrier::arrive::one.b64");
  d.inst.space = d.take("shared::cluster") ? Space::kShared : Space::kGeneric;
  d.inst.execute = commit;
  d.finish({1});
}

void decode_tcgen05(Decoder& d) {
  d.inst.cls = Class::kMatrixLoad;
  d.results(0);
  const int form =
      d.choose({"alloc", "dealloc", "relinquish_alloc_permit", "ld", "st", "wait::ld", "wait::st",
                "fence::before_thread_sync", "fence::after_thread_sync", "commit", "cp", "mma"});
  if (form >= 5 && form <= 9) d.inst.cls = Class::kBarrier;
  switch (form) {
    case 0:
    case 1:
    case 2:
      return decode_allocation(d, form);
    case 3:
    case 4:
      return decode_move(d, form == 3);
    case 5:
    case 6:
      take_sync(d);
      d.inst.execute = form == 5 ? wait_for_loads : wait_for_stores;
      return d.finish({0});
    case 7:
    case 8:
      d.inst.execute = form == 7 ? fence_before : fence_after;
      return d.finish({0});
    case 9:
      return decode_commit(d);
    case 10:
      take_group(d);
      return decode_copy_to_tensor(d);
    case 11:
      take_group(d);
      d.inst.cls = Class::kMatrix;
      return decode_tensor_product(d);
    default:
      d.fail("unknown form of tcgen05");
  }
}

}  // namespace

void decode_copy_to_tensor(Decoder& d) {
  struct Shape {
    const char* name;
    const char* multicast;
    uint32_t rows, bytes;
  };
  constexpr Shape kShapes[] = {{"32x128b", "warpx4", 32, 16},
                               {"128x128b", nullptr, 128, 16},
                               {"128x256b", nullptr, 128, 32}};
  for (const Shape& shape : kShapes) {
    if (!d.take(shape.name)) continue;
    if (shape.multicast != nullptr && !d.take(shape.multicast)) d.fail("this shape needs .warpx4");
    d.inst.mode[kRows] = shape.rows;
    d.inst.mode[kBytes] = shape.bytes;
    d.inst.mode[kCopies] = TensorMemory::kRows / shape.rows;
    d.inst.execute = copy;
    return d.finish({2});
  }
  d.fail("only the shapes .32x128b.warpx4, .128x128b and .128x256b are supported");
}

void add_tcgen05_ops() { add_op("tcgen05", decode_tcgen05); }

}  // namespace ptxsim
