// Regions of the system's memory, cut into blocks.
//
// Two maps hold all blocks: by address, so that a block finds its neighbours when it is freed, and by size, so that a
// request finds the smallest free block that holds it. Both take logarithmic time, which is nothing next to the large
// tensors that come here; one mutex guards them. A request takes the front of a free block and leaves the rest to
// others; freed blocks join their free neighbours. Small and large blocks live in different regions, or a small one
// would keep a large region from becoming whole again. Whole regions go back to the system, oldest first, when the
// cache would otherwise grow past what was ever in use. Compiled once, for any processor.
#include "cpu/caching_allocator.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <iterator>
#include <map>
#include <mutex>
#include <string>
#include <utility>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace fastnas::cpu {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;
/// What a request leaves of a block becomes a free block if it has at least this size.
constexpr std::size_t kLeast = std::size_t{32} << 10;
/// Smaller blocks have regions of their own, or a few of them would keep large regions from becoming whole again.
constexpr std::size_t kLarge = std::size_t{1} << 20;
/// The least size of a region. Pages that no block has reached yet cost nothing.
constexpr std::size_t kRegion = std::size_t{128} << 20, kSmallRegion = std::size_t{8} << 20;

/// Blocks follow each other, so tensors of the same power of two would all begin in the same sets of a cache, which
/// hold eight lines each while a kernel reads dozens of tensors at a time. A few more lines after each shift the next
/// one.
std::size_t padded(std::size_t bytes) {
  if (!kReuseMemory) return std::max<std::size_t>(1, bytes);
  constexpr std::size_t kLinesBetween = 5;
  return (std::max<std::size_t>(1, bytes) + kCacheLine - 1) / kCacheLine * kCacheLine + kLinesBetween * kCacheLine;
}

class CachingAllocator {
 public:
  void* allocate(std::size_t wanted) {
    const std::size_t bytes = padded(wanted);
    const std::lock_guard<std::mutex> lock(mutex_);
    const bool large = bytes >= kLarge;
    auto found = free_.lower_bound({large, bytes, 0});
    if (found == free_.end() || found->first.large != large) found = add_region(bytes, large);
    const auto block = found->second;
    free_.erase(found);
    if (block->second.bytes >= bytes + kLeast) {
      const Block rest{block->second.bytes - bytes, large, /*begins_region=*/false, /*free=*/false};
      block->second.bytes = bytes;
      make_free(blocks_.emplace_hint(std::next(block), block->first + bytes, rest));
    }
    block->second.free = false;
    use_.cached -= block->second.bytes;
    use_.used += block->second.bytes;
    use_.peak = std::max(use_.peak, use_.used);
    return block->first;
  }

  void recycle(void* address) noexcept {
    const std::lock_guard<std::mutex> lock(mutex_);
    auto block = blocks_.find(static_cast<char*>(address));
    use_.used -= block->second.bytes;
    use_.cached += block->second.bytes;
    const auto next = std::next(block);
    if (next != blocks_.end() && next->second.free && !next->second.begins_region) absorb(block, next);
    if (!block->second.begins_region && std::prev(block)->second.free) {
      block = std::prev(block);
      free_.erase(key(block));
      absorb(block, std::next(block));
    }
    make_free(block);
    if (!kReuseMemory) give_back(block);
  }

  MemoryUse use() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return use_;
  }

 private:
  struct Block {
    std::size_t bytes;
    bool large;  // of a region of large blocks
    bool begins_region;
    bool free;
    std::uint64_t since = 0;  // when it became free
  };
  using All = std::map<char*, Block>;  // by address
  struct Key {
    bool large;
    std::size_t bytes;
    std::uint64_t age;  // of equal ones the youngest is the likeliest to be in a cache still
    auto operator<=>(const Key&) const = default;
  };
  using Free = std::map<Key, All::iterator>;

  static Key key(All::iterator block) { return {block->second.large, block->second.bytes, ~block->second.since}; }

  Free::iterator make_free(All::iterator block) {
    block->second.free = true;
    block->second.since = ++time_;
    return free_.emplace(key(block), block).first;
  }

  /// `block` grows by the one after it, which leaves the free ones if it is one of them.
  void absorb(All::iterator block, All::iterator next) {
    if (next->second.free) free_.erase(key(next));
    block->second.bytes += next->second.bytes;
    blocks_.erase(next);
  }

  Free::iterator add_region(std::size_t bytes, bool large) {
    const std::size_t least = large ? kRegion : kSmallRegion;
    const std::size_t size = kReuseMemory ? std::max(least, (bytes + kHugePage - 1) / kHugePage * kHugePage) : bytes;
    trim(std::max(use_.peak, use_.used + size) - size);
    use_.cached += size;
    return make_free(
        blocks_.emplace(static_cast<char*>(allocate_from_system(size)), Block{size, large, true, false}).first);
  }

  /// Gives whole regions back, oldest first, until no more than `most` bytes are used and cached, or there is none
  /// left.
  void trim(std::size_t most) {
    while (use_.used + use_.cached > most) {
      auto oldest = free_.end();
      for (auto each = free_.begin(); each != free_.end(); ++each) {
        if (is_region(each->second) && (oldest == free_.end() || each->first.age > oldest->first.age)) oldest = each;
      }
      if (oldest == free_.end()) return;
      give_back(oldest->second);
    }
  }

  bool is_region(All::iterator block) const {
    const auto next = std::next(block);
    return block->second.begins_region && (next == blocks_.end() || next->second.begins_region);
  }

  void give_back(All::iterator region) {
    free_.erase(key(region));
    use_.cached -= region->second.bytes;
    std::free(region->first);
    blocks_.erase(region);
  }

  std::mutex mutex_;
  All blocks_;
  Free free_;
  MemoryUse use_{};
  std::uint64_t time_ = 0;
};

CachingAllocator& allocator() {
  static auto* const all = new CachingAllocator;  // never destroyed: tensors may outlive static objects
  return *all;
}

}  // namespace

void* allocate(std::size_t bytes) { return allocator().allocate(bytes); }
void recycle(void* block) noexcept { allocator().recycle(block); }
MemoryUse memory_use() { return allocator().use(); }

void* allocate_from_system(std::size_t bytes) {
  const std::size_t alignment = bytes >= kHugePage ? kHugePage : kCacheLine;
  void* block = nullptr;
  if (posix_memalign(&block, alignment, bytes) != 0) {
    throw OutOfMemory("fastnas: not enough memory: " + std::to_string(bytes) + " bytes more were asked for");
  }
#ifdef __linux__
  if (bytes >= kHugePage) madvise(block, bytes, MADV_HUGEPAGE);
#endif
  return block;
}

}  // namespace fastnas::cpu
