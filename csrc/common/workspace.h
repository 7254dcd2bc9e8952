// Host only: work space that outlives a call.
//
// Blocks of some hundred kilobytes otherwise come from fresh pages at every call, each of which costs a fault, and lie on
// pages scattered by chance over the sets of the second cache, which slows passes over them by up to half in some
// processes and not in others. Kept blocks are on huge pages where the system has them.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <array>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <new>

namespace bitlens {
namespace workspace_detail {

constexpr std::size_t kHugePage = std::size_t{2} << 20;
constexpr std::size_t kLeast = std::size_t{128} << 10;  // smaller blocks are the allocator's business
constexpr std::size_t kMost = std::size_t{32} << 20;    // bytes kept between calls, by the process
constexpr std::align_val_t kAligned{64}, kAlignedHuge{kHugePage};

inline std::size_t rounded(std::size_t bytes) { return (bytes + kHugePage - 1) / kHugePage * kHugePage; }

struct Block {
  void* memory;
  std::size_t bytes;
};

// Blocks that nobody uses, the one that was returned last at the end.
struct Kept {
  std::mutex mutex;
  std::array<Block, kMost / kHugePage> blocks;
  std::size_t count = 0, bytes = 0;

  void* remove(std::size_t index) {
    const Block block = blocks[index];
    for (std::size_t i = index + 1; i < count; ++i) blocks[i - 1] = blocks[i];
    --count;
    bytes -= block.bytes;
    return block.memory;
  }
};

inline Kept& kept() {
  static Kept* const all = new Kept;  // never destroyed: threads may still work when the process ends
  return *all;
}

}  // namespace workspace_detail

// At least so many bytes, 64-byte aligned, not initialised; throws std::bad_alloc. Give the same number back.
inline void* take_workspace(std::size_t bytes) {
  using namespace workspace_detail;
  if (bytes < kLeast) return ::operator new(bytes, kAligned);
  const std::size_t wanted = rounded(bytes);
  Kept& all = kept();
  // Never waits: a fork may have left the lock with a thread that the child does not have.
  if (std::unique_lock<std::mutex> lock(all.mutex, std::try_to_lock); lock) {
    for (std::size_t i = all.count; i-- > 0;) {
      if (all.blocks[i].bytes == wanted) return all.remove(i);
    }
  }
  void* const memory = ::operator new(wanted, kAlignedHuge);
#if defined(MADV_HUGEPAGE)
  ::madvise(memory, wanted, MADV_HUGEPAGE);  // some systems refuse, without harm
#endif
  return memory;
}

inline void return_workspace(void* memory, std::size_t bytes) noexcept {
  using namespace workspace_detail;
  if (bytes < kLeast) return ::operator delete(memory, kAligned);
  const std::size_t size = rounded(bytes);
  Kept& all = kept();
  const std::unique_lock<std::mutex> lock(all.mutex, std::try_to_lock);
  if (!lock || size > kMost) return ::operator delete(memory, kAlignedHuge);
  while (all.bytes + size > kMost) ::operator delete(all.remove(0), kAlignedHuge);
  all.blocks[all.count++] = {memory, size};
  all.bytes += size;
}

}  // namespace bitlens
