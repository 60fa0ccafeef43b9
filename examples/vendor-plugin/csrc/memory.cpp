// Memory of the device and page-locked memory of the host: who owns which bytes, how many, and how many at most.
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#include "device.h"

namespace openbox {
namespace {

using Stats = c10::CachingDeviceAllocator::DeviceStats;
constexpr size_t kAggregate = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
// As torch aligns host memory: kernels that take another path for unaligned data give the same numbers here.
constexpr size_t kAlignment = 64;

struct Block {
  size_t size_bytes;
  c10::DeviceIndex device;
};

// Blocks by address, so that a pointer into the middle of one is found as well.
class Blocks {
 public:
  void* take(size_t size_bytes, c10::DeviceIndex device) {
    void* data = nullptr;
    if (posix_memalign(&data, kAlignment, size_bytes) != 0) return nullptr;
    blocks_[data] = {size_bytes, device};
    return data;
  }

  Block give_back(void* data) {
    auto found = blocks_.extract(data);
    std::free(data);
    return found.mapped();
  }

  const Block* find(const void* data) const {
    auto next = blocks_.upper_bound(const_cast<void*>(data));
    if (next == blocks_.begin()) return nullptr;
    const auto& [start, block] = *std::prev(next);
    return static_cast<const char*>(data) < static_cast<char*>(start) + block.size_bytes ? &block : nullptr;
  }

 private:
  std::map<void*, Block> blocks_;
};

size_t host_bytes() {
  return static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<size_t>(sysconf(_SC_PAGE_SIZE));
}

class DeviceMemory final : public c10::DeviceAllocator {
  template <typename Do>
  auto with(c10::DeviceIndex index, Do&& act) {
    check_index(index);
    std::lock_guard<std::mutex> lock(mutex_);
    return act(stats_[index]);
  }

 public:
  c10::DataPtr allocate(size_t size_bytes) override {
    const c10::Device device(kType, current_device());
    if (size_bytes == 0) return {nullptr, device};
    std::lock_guard<std::mutex> lock(mutex_);
    Stats& stats = stats_[device.index()];
    const size_t limit_bytes = limits_[device.index()];
    const size_t used_bytes = static_cast<size_t>(stats.allocated_bytes[kAggregate].current);
    const bool fits = limit_bytes == 0 || used_bytes + size_bytes <= limit_bytes;
    void* data = fits ? blocks_.take(size_bytes, device.index()) : nullptr;
    if (data == nullptr) {
      stats.num_ooms += 1;
      TORCH_CHECK_WITH(OutOfMemoryError, false, "device ", static_cast<int>(device.index()),
                       " of openbox is out of memory: tried to allocate ", size_bytes, " bytes; ", used_bytes,
                       " bytes are in use, the limit is ", limit_bytes == 0 ? host_bytes() : limit_bytes, " bytes");
    }
    count(stats, size_bytes, true);
    return {data, data, &DeviceMemory::release, device};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &DeviceMemory::release; }
  void copy_data(void* to, const void* from, size_t size_bytes) const override { std::memcpy(to, from, size_bytes); }
  bool initialized() override { return true; }
  void emptyCache(c10::MempoolId_t) override {}
  void recordStream(const c10::DataPtr&, c10::Stream) override {}
  Stats getDeviceStats(c10::DeviceIndex index) override {
    return with(index, [](Stats& stats) { return stats; });
  }

  void resetAccumulatedStats(c10::DeviceIndex index) override {
    with(index, [](Stats& stats) {
      stats.allocated_bytes[kAggregate].reset_accumulated();
      stats.allocation[kAggregate].reset_accumulated();
    });
  }

  void resetPeakStats(c10::DeviceIndex index) override {
    with(index, [](Stats& stats) {
      for (auto* each : {&stats.allocated_bytes, &stats.reserved_bytes, &stats.active_bytes, &stats.requested_bytes,
                         &stats.allocation})
        (*each)[kAggregate].reset_peak();
    });
  }

  std::pair<size_t, size_t> getMemoryInfo(c10::DeviceIndex index) override {
    return with(index, [&](Stats& stats) {
      const size_t total = limits_[index] == 0 ? host_bytes() : limits_[index];
      const size_t used = static_cast<size_t>(stats.allocated_bytes[kAggregate].current);
      return std::pair<size_t, size_t>{total > used ? total - used : 0, total};
    });
  }

  void limit(c10::DeviceIndex index, size_t limit_bytes) {
    with(index, [&](Stats&) { limits_[index] = limit_bytes; });
  }

  c10::Device where(const void* data) {
    std::lock_guard<std::mutex> lock(mutex_);
    const Block* block = blocks_.find(data);
    TORCH_CHECK(block != nullptr, "the pointer is not in memory of an openbox device");
    return {kType, block->device};
  }

 private:
  static void count(Stats& stats, size_t size_bytes, bool taken) {
    for (auto* each : {&stats.allocated_bytes, &stats.reserved_bytes, &stats.active_bytes, &stats.requested_bytes})
      taken ? (*each)[kAggregate].increase(size_bytes) : (*each)[kAggregate].decrease(size_bytes);
    taken ? stats.allocation[kAggregate].increase(1) : stats.allocation[kAggregate].decrease(1);
  }

  static void release(void* data);

  std::mutex mutex_;
  Blocks blocks_;
  std::array<Stats, kCount> stats_;
  std::array<size_t, kCount> limits_{};
};

class PinnedMemory final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t size_bytes) override {
    if (size_bytes == 0) return {nullptr, c10::Device(c10::DeviceType::CPU)};
    std::lock_guard<std::mutex> lock(mutex_);
    void* data = blocks_.take(size_bytes, 0);
    TORCH_CHECK_WITH(OutOfMemoryError, data != nullptr, "the host has no ", size_bytes, " bytes to page-lock");
    return {data, data, &PinnedMemory::release, c10::Device(c10::DeviceType::CPU)};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &PinnedMemory::release; }
  void copy_data(void* to, const void* from, size_t size_bytes) const override { std::memcpy(to, from, size_bytes); }

  bool owns(const void* data) {
    std::lock_guard<std::mutex> lock(mutex_);
    return blocks_.find(data) != nullptr;
  }

 private:
  static void release(void* data);

  std::mutex mutex_;
  Blocks blocks_;
};

// Never destroyed: tensors may outlive static objects.
DeviceMemory& device_instance() {
  static auto* made = new DeviceMemory();
  return *made;
}

PinnedMemory& pinned_instance() {
  static auto* made = new PinnedMemory();
  return *made;
}

void DeviceMemory::release(void* data) {
  if (data == nullptr) return;
  DeviceMemory& memory = device_instance();
  std::lock_guard<std::mutex> lock(memory.mutex_);
  const Block block = memory.blocks_.give_back(data);
  count(memory.stats_[block.device], block.size_bytes, false);
}

void PinnedMemory::release(void* data) {
  if (data == nullptr) return;
  PinnedMemory& memory = pinned_instance();
  std::lock_guard<std::mutex> lock(memory.mutex_);
  memory.blocks_.give_back(data);
}

const c10::AllocatorRegisterer<kType> registered(&device_instance());

}  // namespace

c10::DeviceAllocator* device_memory() { return &device_instance(); }
c10::Allocator* pinned_memory() { return &pinned_instance(); }
bool is_pinned(const void* data) { return pinned_instance().owns(data); }
c10::Device device_of(const void* data) { return device_instance().where(data); }
void set_memory_limit(c10::DeviceIndex index, size_t limit_bytes) { device_instance().limit(index, limit_bytes); }

void resize_bytes(c10::StorageImpl& storage, size_t size_bytes) {
  TORCH_CHECK(storage.resizable(), "this storage of openbox cannot be resized");
  const OnDevice use(storage.device().index());
  c10::DataPtr data = device_instance().allocate(size_bytes);
  const size_t kept_bytes = std::min(storage.nbytes(), size_bytes);
  if (kept_bytes != 0 && storage.data() != nullptr) std::memcpy(data.get(), storage.data(), kept_bytes);
  storage.set_data_ptr_noswap(std::move(data));
  storage.set_nbytes(size_bytes);
}

}  // namespace openbox
