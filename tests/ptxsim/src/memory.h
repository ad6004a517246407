// Global memory: the tensors of a launch, where they may be touched, and by whom they were.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "fault.h"

namespace ptxsim {

// Addresses. Global ones are those of the host. The other spaces have windows above all user
// memory; inside `.shared`, `.local` and `.param` instructions only the low 32 bits count.
constexpr uint64_t kSharedWindow = 1ull << 56;
constexpr uint64_t kLocalWindow = 2ull << 56;
constexpr uint64_t kParamWindow = 3ull << 56;
// The first byte of shared memory: a null offset stays invalid, as the runtime has it.
constexpr uint32_t kSharedBase = 1024;

struct Allocation {
  std::string name;
  uint64_t begin = 0;
  uint64_t bytes = 0;
  bool writable = false;
  bool defined = true;  // false: an output that must be written before it is read

  // Filled by Memory::add.
  std::vector<uint32_t> writer, reader;  // block + 1 per byte; kMany: several blocks read it
  std::vector<uint8_t> written;          // per byte, where not `defined`
  std::vector<uint64_t> read_sectors, written_sectors;  // one bit per 32 bytes
};

// An address range behind which lie ranges of several devices (NVLS).
struct Multicast {
  uint64_t begin = 0;
  uint64_t bytes = 0;
  std::vector<uint64_t> places;
};

class Memory {
 public:
  explicit Memory(bool checks) : checks_(checks) {}
  void add(Allocation a);
  void add(Multicast m) { multicast_.push_back(std::move(m)); }
  // Checks the access of one thread of `block`, notes it, and returns the host's pointer.
  uint8_t* read(uint64_t at, uint32_t bytes, uint32_t align, uint32_t block, bool constant = false);
  uint8_t* write(uint64_t at, uint32_t bytes, uint32_t align, uint32_t block);
  uint8_t* atomic(uint64_t at, uint32_t bytes, uint32_t align, uint32_t block);
  // Where the bytes at a multicast address lie.
  std::vector<uint64_t> behind_multicast(uint64_t at, uint32_t bytes) const;
  // False while the bytes hold nothing but what an allocation happened to contain.
  bool initialised(uint64_t at, uint32_t bytes);
  // Host pointer without checks or notes, or null if the range is not in one allocation.
  uint8_t* peek(uint64_t at, uint64_t bytes);

  // Union over the launch, in bytes of whole sectors.
  uint64_t unique_read() const;
  uint64_t unique_written() const;
  const std::vector<Allocation>& allocations() const { return all_; }

 private:
  static constexpr uint32_t kMany = 0xffffffffu;
  Allocation& find(uint64_t at, uint32_t bytes, uint32_t align, const char* what);
  void note(Allocation& a, uint64_t i, uint32_t bytes, std::vector<uint64_t>& sectors);

  bool checks_;
  std::vector<Allocation> all_;
  std::vector<Multicast> multicast_;
  size_t last_ = 0;
};

}  // namespace ptxsim
