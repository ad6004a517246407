#include "tensor_memory.h"

#include <algorithm>

namespace ptxsim {
namespace {

using Kind = TensorOperation::Kind;

void join(SharedShadow::Clock& into, const SharedShadow::Clock& from) {
  for (size_t e = 0; e < into.size(); ++e) into[e] = std::max(into[e], from[e]);
}

bool queued(Kind kind) { return kind == Kind::kProduct || kind == Kind::kCopy; }

std::string text_of(const TensorOperation& op) {
  return "warp " + std::to_string(op.warp) + "'s, PTX line " + std::to_string(op.inst->text->line) +
         ": " + op.inst->text->text;
}

}  // namespace

TensorMemory::TensorMemory(Cta& cta)
    : cta_(cta),
      cells_(kRows * kColumns),
      defined_(kRows * kColumns),
      units_(kPartitions * kColumns),
      owner_(kColumns),
      size_(kColumns),
      after_(cta.warps.size()) {}

// --- allocation
// -------------------------------------------------------------------------------------

std::optional<uint32_t> TensorMemory::allocate(uint32_t columns) {
  for (uint32_t first = 0; first + columns <= kColumns; first += 32) {
    const auto begin = owner_.begin() + first;
    if (std::any_of(begin, begin + columns, [](uint32_t owner) { return owner != 0; })) continue;
    std::fill_n(begin, columns, first + 1);
    size_[first] = columns;
    last_columns = columns;
    ++cta_.progress;
    return first;
  }
  return std::nullopt;
}

void TensorMemory::release(Warp& w, uint32_t first, uint32_t columns) {
  if (first >= kColumns || owner_[first] != first + 1 || size_[first] != columns) {
    throw Fault("bounds", "tcgen05.dealloc of " + std::to_string(columns) + " columns at " +
                              std::to_string(first) + ", where no such allocation is");
  }
  // Nothing may still work there: as for a store, but dealloc needs no fence of its own.
  const SharedShadow::Clock& now = cta_.shadow.clock(w.index);
  for_each_unit(kAllPartitions, first, columns, [&](Unit& unit, uint32_t column) {
    const auto check = [&](const OperationPtr& op) {
      if (op && cta_.machine.launch.checks &&
          (op->done_clock == 0 || now[static_cast<size_t>(op->done_by)] < op->done_clock)) {
        throw Fault("async", "tcgen05.dealloc of column " + std::to_string(column) +
                                 ", on which this may still work: " + text_of(*op));
      }
    };
    check(unit.writer);
    for (const OperationPtr& op : unit.readers) check(op);
    unit = {};
  });
  std::fill_n(owner_.begin() + first, columns, 0u);
  for (uint32_t row = 0; row < kRows; ++row) std::fill_n(&defined(row, first), columns, uint8_t{0});
  ++cta_.progress;
}

uint32_t TensorMemory::allocated() const {
  return static_cast<uint32_t>(
      std::count_if(owner_.begin(), owner_.end(), [](uint32_t owner) { return owner != 0; }));
}

void TensorMemory::check_allocated(uint32_t first, uint32_t columns) const {
  const bool inside = first + columns <= kColumns;
  if (!inside || std::find(owner_.begin() + first, owner_.begin() + first + columns, 0u) !=
                     owner_.begin() + first + columns) {
    throw Fault("bounds", "tensor memory columns " + std::to_string(first) + " ... " +
                              std::to_string(first + columns - 1) + " are not allocated");
  }
}

// --- accesses
// ---------------------------------------------------------------------------------------

template <class F>
void TensorMemory::for_each_unit(uint32_t partitions, uint32_t first, uint32_t columns, F f) {
  for (uint32_t column = first; column < first + columns; ++column) {
    for (uint32_t p = 0; p < kPartitions; ++p) {
      if (partitions >> p & 1) f(units_[column * kPartitions + p], column);
    }
  }
}

TensorMemory::Order TensorMemory::order(const TensorOperation& first, const TensorOperation& then,
                                        bool first_writes, bool then_writes) const {
  const auto warp = static_cast<size_t>(first.warp), by = static_cast<size_t>(first.done_by);
  const SharedShadow::Clock& fenced = after_[static_cast<size_t>(then.warp)];
  const SharedShadow::Clock& now = cta_.shadow.clock(then.warp);
  const bool own = first.warp == then.warp;
  const bool behind_fences = first.fenced_clock != 0 && fenced[warp] >= first.fenced_clock;
  const bool done = first.done_clock != 0, tracked = first.done_by >= SharedShadow::kWarps;
  if (done && (tracked ? fenced[by] >= first.done_clock : own || behind_fences)) {
    return Order::kKnown;
  }
  if (queued(first.kind) && queued(then.kind) &&
      ((own && first.lane == then.lane) || behind_fences)) {
    const bool product = then.kind == Kind::kProduct;
    if (product && first.kind == Kind::kCopy && first_writes) return Order::kKnown;
    if (product && first.kind == Kind::kProduct && first.shape == then.shape) return Order::kKnown;
    if (then_writes && (!first_writes || !product)) return Order::kUsual;
  }
  if (!done) return Order::kPending;
  return now[by] >= first.done_clock ? Order::kUnfenced : Order::kUnknown;
}

void TensorMemory::require(const TensorOperation& first, const TensorOperation& then,
                           bool first_writes, bool then_writes, uint32_t column) {
  const auto fail = [&](const char* kind, const char* why) {
    throw Fault(kind, std::string(first_writes ? then_writes ? "overwrites" : "reads" : "writes") +
                          " tensor memory column " + std::to_string(column) +
                          (first_writes ? " after a write" : " after a read") + " that " + why +
                          "; the earlier one is " + text_of(first));
  };
  switch (order(first, then, first_writes, then_writes)) {
    case Order::kKnown:
      return;
    case Order::kUsual:
      cta_.warps[static_cast<size_t>(then.warp)].warn(
          "a tcgen05 operation overwrites tensor memory that one of the same thread may still use: "
          "in order on known hardware, but only a commit guarantees it, PTX line " +
          std::to_string(then.inst->text->line));
      return;
    case Order::kPending:
      fail("async",
           queued(first.kind) ? "no commit has completed" : "no tcgen05.wait has completed");
      return;
    case Order::kUnknown:
      fail("race", "this warp does not know to be complete");
      return;
    case Order::kUnfenced:
      fail("async",
           "is complete, but tcgen05.fence::after_thread_sync (or ::before_thread_sync in "
           "the other warp) is missing");
      return;
  }
}

void TensorMemory::read(const OperationPtr& op, uint32_t partitions, uint32_t first,
                        uint32_t columns) {
  check_allocated(first, columns);
  if (!cta_.machine.launch.checks) return;
  for_each_unit(partitions, first, columns, [&](Unit& unit, uint32_t column) {
    if (unit.writer) require(*unit.writer, *op, true, false, column);
    // Who comes after this one comes after those that are in order before it.
    auto& readers = unit.readers;
    readers.erase(std::remove_if(readers.begin(), readers.end(),
                                 [&](const OperationPtr& r) {
                                   return r == op || order(*r, *op, false, true) == Order::kKnown;
                                 }),
                  readers.end());
    readers.push_back(op);
  });
}

void TensorMemory::write(const OperationPtr& op, uint32_t partitions, uint32_t first,
                         uint32_t columns) {
  check_allocated(first, columns);
  if (!cta_.machine.launch.checks) return;
  for_each_unit(partitions, first, columns, [&](Unit& unit, uint32_t column) {
    if (unit.writer && unit.writer != op) require(*unit.writer, *op, true, true, column);
    for (const OperationPtr& reader : unit.readers) {
      if (reader != op) require(*reader, *op, false, true, column);
    }
    unit.readers.clear();
    unit.writer = op;
  });
}

// --- order
// ------------------------------------------------------------------------------------------

OperationPtr TensorMemory::issue(Kind kind, Warp& w, const Inst& inst, int lane) {
  auto op = std::make_shared<TensorOperation>();
  op->kind = kind;
  op->inst = &inst;
  op->warp = w.index;
  op->lane = lane;
  open_.push_back(op);
  unfenced_.push_back(op);
  return op;
}

void TensorMemory::wait(Warp& w, Kind kind) {
  const auto complete = [&](const OperationPtr& op) {
    if (op->kind != kind || op->warp != w.index) return false;
    op->done_by = w.index;
    op->done_clock = cta_.shadow.clock(w.index)[static_cast<size_t>(w.index)];
    return true;
  };
  open_.erase(std::remove_if(open_.begin(), open_.end(), complete), open_.end());
}

void TensorMemory::fence_before(Warp& w) {
  const auto fence = [&](const OperationPtr& op) {
    if (op->warp != w.index || (!queued(op->kind) && op->done_clock == 0)) return false;
    op->fenced_clock = cta_.shadow.clock(w.index)[static_cast<size_t>(w.index)];
    return true;
  };
  unfenced_.erase(std::remove_if(unfenced_.begin(), unfenced_.end(), fence), unfenced_.end());
}

void TensorMemory::fence_after(Warp& w) {
  after_[static_cast<size_t>(w.index)] = cta_.shadow.clock(w.index);
}

void TensorMemory::commit(Warp& w, int lane, uint32_t mbarrier) {
  mbarrier_at(cta_, w.index, mbarrier);
  std::vector<OperationPtr> tracked;
  for (const OperationPtr& op : open_) {
    if (!queued(op->kind) || op->committed || op->warp != w.index || op->lane != lane) continue;
    op->committed = true;
    tracked.push_back(op);
  }
  // What the thread knew when it issued the operations is known to who learns of their end.
  SharedShadow::Clock known{};
  cta_.shadow.release(w.index, known);
  const auto thread = std::make_pair(w.index, lane);
  enqueue([this, tracked = std::move(tracked), known, thread, mbarrier] {
    Mbarrier& bar = mbarrier_at(cta_, -1, mbarrier);
    const uint32_t phase = bar.phase + 1;
    for (const OperationPtr& op : tracked) {
      op->done_by = bar.entity;
      op->done_clock = phase;
      for (const auto& r : op->reads) {
        cta_.shadow.proxy_read_end(bar.entity, phase, r.at, r.bytes);
      }
    }
    const auto done = [](const OperationPtr& op) { return op->done_clock != 0; };
    open_.erase(std::remove_if(open_.begin(), open_.end(), done), open_.end());
    SharedShadow::Clock& covered = covered_[thread];
    covered[static_cast<size_t>(bar.entity)] = phase;
    join(bar.arriving, known);
    join(bar.arriving, covered);
    mbarrier_arrive(cta_, bar, 1);
  });
}

void TensorMemory::enqueue(std::function<void()> work) {
  queue_.push_back(std::move(work));
  const uint64_t number = ++enqueued_;
  cta_.defer([this, number] { run_until(number); });
}

void TensorMemory::run_until(uint64_t last) {
  while (executed_ < last) {
    const auto work = std::move(queue_.front());
    queue_.pop_front();
    ++executed_;
    work();
  }
}

void TensorMemory::check_finished() const {
  if (!open_.empty()) {
    throw Fault("async", "the block ends before this is committed or waited for: " +
                             text_of(*open_.front()));
  }
  if (allocated() != 0) {
    throw Fault("async", "the block ends with " + std::to_string(allocated()) +
                             " columns of tensor memory that nobody has deallocated");
  }
}

}  // namespace ptxsim
