#include "counters.h"

#include <algorithm>

namespace ptxsim {
namespace {

// Distinct values among the first n.
int distinct(uint64_t* values, int n) {
  std::sort(values, values + n);
  return static_cast<int>(std::unique(values, values + n) - values);
}

// The most distinct 4-byte words that fall on one of the 32 banks, for the lanes [begin, end).
int wavefronts(Mask active, const uint32_t* at, uint32_t bytes, int begin, int end) {
  uint64_t words[kLanes * 4];
  int n = 0;
  for (int l = begin; l < end; ++l) {
    if (!(active >> l & 1)) continue;
    for (uint32_t word = at[l] / 4; word <= (at[l] + bytes - 1) / 4; ++word) words[n++] = word;
  }
  n = distinct(words, n);
  int load[32] = {};
  for (int i = 0; i < n; ++i) ++load[words[i] % 32];
  return *std::max_element(load, load + 32);
}

}  // namespace

void count_global(Counters::Global& c, Mask active, const uint64_t* at, uint32_t bytes) {
  uint64_t first[kLanes];
  int n = 0;
  bool sorted = true;
  for (int l = 0; l < kLanes; ++l) {
    if (!(active >> l & 1)) continue;
    sorted &= n == 0 || first[n - 1] <= at[l];
    first[n++] = at[l];
  }
  if (!sorted) std::sort(first, first + n);
  // In order of their addresses, each access adds what no earlier one has asked for.
  uint64_t byte_end = 0, sector_end = 0;
  for (int i = 0; i < n; ++i) {
    const uint64_t end = first[i] + bytes;
    const uint64_t sectors = (end + 31) / 32;
    c.bytes += end - std::min(end, std::max(byte_end, first[i]));
    c.sectors += sectors - std::min(sectors, std::max(sector_end, first[i] / 32));
    byte_end = std::max(byte_end, end);
    sector_end = std::max(sector_end, sectors);
  }
  ++c.requests;
}

void count_shared(Counters::Shared& c, Mask active, const uint32_t* at, uint32_t bytes) {
  // 8 bytes per lane are served by half-warps, 16 by quarters.
  const int lanes = bytes <= 4 ? 32 : bytes == 8 ? 16 : 8;
  ++c.requests;
  for (int begin = 0; begin < kLanes; begin += lanes) {
    const Mask part = (lanes == 32 ? kAllLanes : (1u << lanes) - 1) << begin;
    if ((active & part) == 0) continue;
    c.wavefronts += static_cast<uint64_t>(wavefronts(active, at, bytes, begin, begin + lanes));
    ++c.ideal;
  }
  c.bytes += static_cast<uint64_t>(__builtin_popcount(active)) * bytes;
}

void count_matrix(Counters::Shared& c, int matrices, const uint32_t* row_at) {
  ++c.requests;
  for (int m = 0; m < matrices; ++m) {
    c.wavefronts += static_cast<uint64_t>(wavefronts(kAllLanes, row_at + 8 * m, 16, 0, 8));
    ++c.ideal;
  }
  c.bytes += static_cast<uint64_t>(matrices) * 128;
}

}  // namespace ptxsim
