// Tensor memory of one block (PTX ISA 9.7.16): 128 lanes of 512 columns of 32 bits, who allocated
// which columns, and which tcgen05 operations may still work on them.
//
// An operation may touch cells that an earlier one writes, or write cells that it reads, only if
//  - the earlier one is known to be complete: the mbarrier phase of its commit, or its wait::ld or
//    wait::st, happened before, and tcgen05.fence::after_thread_sync stands behind what made that
//    known (fence::before_thread_sync before it, if another warp waited); or
//  - the two are products of one shape on one accumulator, or a copy and a product, issued in this
//    order by one thread, or by two between which there are both fences: these form a pipeline.
#pragma once

#include <array>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "async.h"

namespace ptxsim {

struct TensorOperation {
  enum class Kind : uint8_t { kProduct, kCopy, kLoad, kStore };
  Kind kind;
  const Inst* inst;
  int warp, lane;                             // who issued it; of loads and stores all lanes did
  uint64_t shape = 0;                         // of a product: its accumulator, M, N and k
  std::vector<Cta::AsyncState::Range> reads;  // shared memory
  bool committed = false;
  // Complete for who has seen `done_clock` of the warp or mbarrier `done_by`; 0: for nobody yet.
  int done_by = 0;
  uint32_t done_clock = 0;
  uint32_t fenced_clock = 0;  // of its warp, at fence::before_thread_sync; 0: not fenced
};
using OperationPtr = std::shared_ptr<TensorOperation>;

class TensorMemory {
 public:
  static constexpr uint32_t kRows = 128, kColumns = 512, kPartitionRows = 32, kPartitions = 4;
  static constexpr uint32_t kAllPartitions = 0xf;

  explicit TensorMemory(Cta& cta);

  uint32_t& cell(uint32_t row, uint32_t column) { return cells_[row * kColumns + column]; }
  uint8_t& defined(uint32_t row, uint32_t column) { return defined_[row * kColumns + column]; }

  // --- allocation
  // First fit; nothing if there is no room.
  std::optional<uint32_t> allocate(uint32_t columns);
  void release(Warp& w, uint32_t first, uint32_t columns);
  uint32_t allocated() const;  // columns
  struct Waiting {
    Warp* warp;
    uint32_t at, columns;  // where in shared memory the address goes
  };
  std::vector<Waiting> waiting;  // for columns
  bool relinquished = false;
  uint32_t last_columns = kColumns;  // of the youngest allocation

  // --- accesses by an operation that is being issued: checks, and remembers
  void read(const OperationPtr& op, uint32_t partitions, uint32_t first, uint32_t columns);
  void write(const OperationPtr& op, uint32_t partitions, uint32_t first, uint32_t columns);

  // --- order
  OperationPtr issue(TensorOperation::Kind kind, Warp& w, const Inst& inst, int lane);
  void wait(Warp& w, TensorOperation::Kind kind);  // wait::ld, wait::st
  void fence_before(Warp& w);
  void fence_after(Warp& w);
  // Makes an arrival at the mbarrier complete what the thread has issued so far.
  void commit(Warp& w, int lane, uint32_t mbarrier);
  // Products, copies and arrivals happen in the order of their issue, when the policy says so.
  void enqueue(std::function<void()> work);

  void check_finished() const;  // the block ends

 private:
  struct Unit {  // one column of one partition
    OperationPtr writer;
    std::vector<OperationPtr> readers;
  };
  enum class Order : uint8_t { kKnown, kUsual, kPending, kUnknown, kUnfenced };
  Order order(const TensorOperation& first, const TensorOperation& then, bool first_writes,
              bool then_writes) const;
  void require(const TensorOperation& first, const TensorOperation& then, bool first_writes,
               bool then_writes, uint32_t column);
  void check_allocated(uint32_t first, uint32_t columns) const;
  template <class F>
  void for_each_unit(uint32_t partitions, uint32_t first, uint32_t columns, F f);
  void run_until(uint64_t last);

  Cta& cta_;
  std::vector<uint32_t> cells_;
  std::vector<uint8_t> defined_;
  std::vector<Unit> units_;
  std::vector<uint32_t> owner_;         // per column: first column of its allocation + 1; 0: free
  std::vector<uint32_t> size_;          // per first column of an allocation
  std::vector<OperationPtr> open_;      // not known to be complete to anybody
  std::vector<OperationPtr> unfenced_;  // not behind a fence::before_thread_sync
  std::vector<SharedShadow::Clock> after_;  // per warp: its clock at fence::after_thread_sync
  // Per thread: what its earlier commits completed, which a later one covers too.
  std::map<std::pair<int, int>, SharedShadow::Clock> covered_;
  std::deque<std::function<void()>> queue_;
  uint64_t enqueued_ = 0, executed_ = 0;
};

inline TensorMemory& tensor_of(Cta& cta) {
  if (!cta.tensor) cta.tensor = std::make_shared<TensorMemory>(cta);
  return *cta.tensor;
}

}  // namespace ptxsim
