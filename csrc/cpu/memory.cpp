#include "cpu/memory.h"

#include <algorithm>
#include <cstdlib>
#include <list>
#include <memory>
#include <mutex>
#include <new>
#include <unordered_map>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace fastnas::cpu {
namespace {

constexpr std::size_t kLine = 64;
constexpr std::size_t kHugePage = std::size_t{2} << 20;

// AddressSanitizer knows where a block ends, and keeps what was freed out of use for a while: it gets blocks of the
// very size that was asked for, and none is used again.
#ifdef __SANITIZE_ADDRESS__
constexpr bool kKeep = false;
#else
constexpr bool kKeep = true;
#endif

std::size_t rounded(std::size_t bytes) {
  if (!kKeep) return std::max<std::size_t>(1, bytes);
  const std::size_t unit = bytes >= kHugePage ? std::size_t{64} << 10 : kLine;
  return std::max(unit, (bytes + unit - 1) / unit * unit);
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

class Blocks {
 public:
  void* allocate(std::size_t wanted) {
    const std::size_t bytes = rounded(wanted);
    const std::lock_guard<std::mutex> lock(mutex_);
    // The youngest block of this size is the likeliest to be in a cache still.
    const auto found = std::find_if(kept_.rbegin(), kept_.rend(), [&](const Block& b) { return b.bytes == bytes; });
    void* block;
    if (found != kept_.rend()) {
      block = found->address;
      use_.kept -= bytes;
      kept_.erase(std::next(found).base());
    } else {
      trim(std::max(use_.peak, use_.used + bytes) - bytes);
      block = from_system(bytes);
    }
    use_.used += bytes;
    use_.peak = std::max(use_.peak, use_.used);
    sizes_[block] = bytes;
    return block;
  }

  void recycle(void* block) noexcept {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto size = sizes_.find(block);
    const std::size_t bytes = size->second;
    sizes_.erase(size);
    use_.used -= bytes;
    if (!kKeep) return std::free(block);
    use_.kept += bytes;
    kept_.push_back({block, bytes});
  }

  MemoryUse use() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return use_;
  }

 private:
  struct Block {
    void* address;
    std::size_t bytes;
  };

  void trim(std::size_t most) {  // oldest first
    while (!kept_.empty() && use_.used + use_.kept > most) {
      std::free(kept_.front().address);
      use_.kept -= kept_.front().bytes;
      kept_.pop_front();
    }
  }

  std::mutex mutex_;
  std::list<Block> kept_;
  std::unordered_map<void*, std::size_t> sizes_;
  MemoryUse use_{};
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
    block.reset(from_system(rounded(bytes)));
    size = rounded(bytes);
  }
  return block.get();
}

}  // namespace fastnas::cpu
