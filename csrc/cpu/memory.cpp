#include "cpu/memory.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <utility>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace fastnas::cpu {
namespace {

constexpr std::size_t kLine = 64;
constexpr std::size_t kHugePage = std::size_t{2} << 20;
/// What is left of a block is kept for others from this size on.
constexpr std::size_t kLeast = std::size_t{32} << 10;
/// Smaller blocks have regions of their own, or a few of them would keep large regions from becoming whole again.
constexpr std::size_t kLarge = std::size_t{1} << 20;
/// Of a region, at least. Pages that no block has reached yet cost nothing.
constexpr std::size_t kRegion = std::size_t{128} << 20, kSmallRegion = std::size_t{8} << 20;

// AddressSanitizer knows where a block ends, and keeps what was freed out of use for a while: it gets blocks of the
// very size that was asked for, and none is used again.
#ifdef __SANITIZE_ADDRESS__
constexpr bool kKeep = false;
#else
constexpr bool kKeep = true;
#endif

/// Blocks follow each other, so tensors of the same power of two would all begin in the same sets of a cache, which
/// hold eight lines each while a kernel reads dozens of tensors at a time. Some more lines behind each move the next
/// one on.
std::size_t padded(std::size_t bytes) {
  if (!kKeep) return std::max<std::size_t>(1, bytes);
  constexpr std::size_t kLinesBetween = 5;
  return (std::max<std::size_t>(1, bytes) + kLine - 1) / kLine * kLine + kLinesBetween * kLine;
}

void* from_system(std::size_t bytes) {
  const std::size_t alignment = bytes >= kHugePage ? kHugePage : kLine;
  void* block = nullptr;
  if (posix_memalign(&block, alignment, bytes) != 0) throw std::bad_alloc();
#ifdef __linux__
  if (bytes >= kHugePage) madvise(block, bytes, MADV_HUGEPAGE);
#endif
  return block;
}

/// Regions of the system's memory, each cut into blocks. A request gets the smallest free block that holds it, and what
/// is left of that becomes a block again; free neighbours become one. So memory serves tensors of any size that come
/// one after the other, and the system has to fault in and zero no page twice.
class Blocks {
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
    use_.kept -= block->second.bytes;
    use_.used += block->second.bytes;
    use_.peak = std::max(use_.peak, use_.used);
    return block->first;
  }

  void recycle(void* address) noexcept {
    const std::lock_guard<std::mutex> lock(mutex_);
    auto block = blocks_.find(static_cast<char*>(address));
    use_.used -= block->second.bytes;
    use_.kept += block->second.bytes;
    const auto next = std::next(block);
    if (next != blocks_.end() && next->second.free && !next->second.begins_region) absorb(block, next);
    if (!block->second.begins_region && std::prev(block)->second.free) {
      block = std::prev(block);
      free_.erase(key(block));
      absorb(block, std::next(block));
    }
    make_free(block);
    if (!kKeep) give_back(block);
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

  /// `block` grows by the one behind it, which leaves the free ones if it is one of them.
  void absorb(All::iterator block, All::iterator next) {
    if (next->second.free) free_.erase(key(next));
    block->second.bytes += next->second.bytes;
    blocks_.erase(next);
  }

  Free::iterator add_region(std::size_t bytes, bool large) {
    const std::size_t least = large ? kRegion : kSmallRegion;
    const std::size_t size = kKeep ? std::max(least, (bytes + kHugePage - 1) / kHugePage * kHugePage) : bytes;
    trim(std::max(use_.peak, use_.used + size) - size);
    use_.kept += size;
    return make_free(blocks_.emplace(static_cast<char*>(from_system(size)), Block{size, large, true, false}).first);
  }

  /// Gives whole regions back, oldest first, until no more than `most` bytes are used and kept, or there is none left.
  void trim(std::size_t most) {
    while (use_.used + use_.kept > most) {
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
    use_.kept -= region->second.bytes;
    std::free(region->first);
    blocks_.erase(region);
  }

  std::mutex mutex_;
  All blocks_;
  Free free_;
  MemoryUse use_{};
  std::uint64_t time_ = 0;
};

Blocks& blocks() {
  static auto* all = new Blocks;  // never destroyed: tensors may outlive static objects
  return *all;
}

struct Free {
  void operator()(void* block) const { std::free(block); }
};

}  // namespace

void* allocate(std::size_t bytes) { return blocks().allocate(bytes); }
void recycle(void* block) noexcept { blocks().recycle(block); }
MemoryUse memory_use() { return blocks().use(); }

void* scratch(std::size_t bytes) {
  thread_local std::unique_ptr<void, Free> block;
  thread_local std::size_t size = 0;
  if (!block || bytes > size || !kKeep) {
    block.reset();
    size = 0;
    block.reset(from_system(std::max(kLine, bytes)));
    size = bytes;
  }
  return block.get();
}

}  // namespace fastnas::cpu
