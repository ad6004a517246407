#include "memory.h"

#include <algorithm>

namespace ptxsim {

void Memory::add(Allocation a) {
  a.read_sectors.assign(a.bytes / (32 * 64) + 2, 0);
  a.written_sectors = a.read_sectors;
  if (checks_) {
    a.writer.assign(a.bytes, 0);
    a.reader.assign(a.bytes, 0);
    if (!a.defined) a.written.assign(a.bytes, 0);
  }
  all_.push_back(std::move(a));
}

Allocation& Memory::find(uint64_t at, uint32_t bytes, uint32_t align, const char* what) {
  const auto holds = [&](const Allocation& a) {
    return at >= a.begin && at - a.begin < a.bytes && a.bytes - (at - a.begin) >= bytes;
  };
  if (last_ >= all_.size() || !holds(all_[last_])) {
    last_ = static_cast<size_t>(std::find_if(all_.begin(), all_.end(), holds) - all_.begin());
  }
  if (last_ == all_.size()) {
    std::string nearest = "no allocation is near";
    uint64_t best = UINT64_MAX;
    for (const Allocation& a : all_) {
      const uint64_t before = a.begin > at ? a.begin - at : 0;
      const uint64_t behind = at + bytes > a.begin + a.bytes ? at + bytes - a.begin - a.bytes : 0;
      if (std::max(before, behind) >= best) continue;
      best = std::max(before, behind);
      nearest = before != 0 ? std::to_string(before) + " bytes before " + a.name
                            : std::to_string(behind) + " bytes past the end of " + a.name + " (" +
                                  std::to_string(a.bytes) + " bytes)";
    }
    throw Fault("bounds", std::string("global ") + what + " of " + std::to_string(bytes) +
                              " bytes at " + hex(at) + ": " + nearest);
  }
  if (at % align != 0) {
    throw Fault("alignment", std::string("global ") + what + " of " + std::to_string(bytes) +
                                 " bytes at " + hex(at) + ", not a multiple of " +
                                 std::to_string(align));
  }
  return all_[last_];
}

void Memory::note(Allocation& a, uint64_t i, uint32_t bytes, std::vector<uint64_t>& sectors) {
  const uint64_t first = a.begin % 32 + i;  // sectors are aligned in memory, not in the tensor
  for (uint64_t s = first / 32; s <= (first + bytes - 1) / 32; ++s) {
    sectors[s / 64] |= uint64_t{1} << s % 64;
  }
}

uint8_t* Memory::read(uint64_t at, uint32_t bytes, uint32_t align, uint32_t block, bool constant) {
  Allocation& a = find(at, bytes, align, "load");
  const uint64_t i = at - a.begin;
  note(a, i, bytes, a.read_sectors);
  if (checks_ && a.writable) {
    const uint32_t me = block + 1;
    for (uint64_t b = i; b < i + bytes; ++b) {
      const uint32_t writer = a.writer[b];
      if (writer != 0 && (writer != me || constant)) {
        throw Fault(writer == me ? "race" : "cross-block",
                    "load of byte " + std::to_string(b) + " of " + a.name + ", which block " +
                        std::to_string(writer - 1) + " writes in this launch" +
                        (constant ? ", through the read-only path (.nc)" : ""));
      }
      a.reader[b] = a.reader[b] == 0 || a.reader[b] == me ? me : kMany;
    }
  }
  return reinterpret_cast<uint8_t*>(at);
}

uint8_t* Memory::write(uint64_t at, uint32_t bytes, uint32_t align, uint32_t block) {
  Allocation& a = find(at, bytes, align, "store");
  const uint64_t i = at - a.begin;
  if (!a.writable) throw Fault("bounds", "store to " + a.name + ", which is an input");
  note(a, i, bytes, a.written_sectors);
  if (checks_) {
    const uint32_t me = block + 1;
    for (uint64_t b = i; b < i + bytes; ++b) {
      if ((a.writer[b] != 0 && a.writer[b] != me) || (a.reader[b] != 0 && a.reader[b] != me)) {
        const bool written = a.writer[b] != 0;
        const uint32_t other = written ? a.writer[b] : a.reader[b];
        throw Fault("cross-block",
                    "store to byte " + std::to_string(b) + " of " + a.name + ", which " +
                        (other == kMany ? "several blocks" : "block " + std::to_string(other - 1)) +
                        (written ? " wrote too" : " reads") + " in this launch");
      }
      a.writer[b] = me;
    }
    if (!a.defined) std::fill_n(a.written.begin() + static_cast<int64_t>(i), bytes, uint8_t{1});
  }
  return reinterpret_cast<uint8_t*>(at);
}

uint8_t* Memory::atomic(uint64_t at, uint32_t bytes, uint32_t align, uint32_t /*block*/) {
  // Atomic against atomic is no race; blocks that mix them with plain accesses are not tracked.
  Allocation& a = find(at, bytes, align, "atomic");
  const uint64_t i = at - a.begin;
  if (!a.writable) throw Fault("bounds", "atomic on " + a.name + ", which is an input");
  note(a, i, bytes, a.read_sectors);
  note(a, i, bytes, a.written_sectors);
  return reinterpret_cast<uint8_t*>(at);
}

std::vector<uint64_t> Memory::behind_multicast(uint64_t at, uint32_t bytes) const {
  for (const Multicast& m : multicast_) {
    if (at < m.begin || at - m.begin > m.bytes || m.bytes - (at - m.begin) < bytes) continue;
    std::vector<uint64_t> places = m.places;
    for (uint64_t& place : places) place += at - m.begin;
    return places;
  }
  throw Fault("bounds", "multicast store of " + std::to_string(bytes) + " bytes at " + hex(at) +
                            ", which is no multicast address");
}

bool Memory::initialised(uint64_t at, uint32_t bytes) {
  Allocation& a = find(at, bytes, 1, "load");
  if (!checks_ || a.defined) return true;
  const auto from = a.written.begin() + static_cast<int64_t>(at - a.begin);
  return std::all_of(from, from + bytes, [](uint8_t x) { return x != 0; });
}

uint8_t* Memory::peek(uint64_t at, uint64_t bytes) {
  for (const Allocation& a : all_) {
    if (at >= a.begin && at - a.begin <= a.bytes && a.bytes - (at - a.begin) >= bytes) {
      return reinterpret_cast<uint8_t*>(at);
    }
  }
  return nullptr;
}

namespace {

uint64_t bytes_of(const std::vector<uint64_t>& sectors) {
  uint64_t n = 0;
  for (uint64_t word : sectors) n += static_cast<uint64_t>(__builtin_popcountll(word));
  return 32 * n;
}

}  // namespace

uint64_t Memory::unique_read() const {
  uint64_t n = 0;
  for (const Allocation& a : all_) n += bytes_of(a.read_sectors);
  return n;
}

uint64_t Memory::unique_written() const {
  uint64_t n = 0;
  for (const Allocation& a : all_) n += bytes_of(a.written_sectors);
  return n;
}

}  // namespace ptxsim
