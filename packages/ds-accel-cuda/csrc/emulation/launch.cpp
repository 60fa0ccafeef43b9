// Launches: limits of a grid, engines that are kept, blocks spread over host threads, and the settings of the
// emulation.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "ds_kernel.h"
#include "emulation/engine.h"

#define DSK_EMULATION_EXPORT extern "C" __attribute__((visibility("default")))

namespace dsk_emulation {
namespace {

struct Settings {
  std::atomic<int> order{static_cast<int>(Order::kInOrder)};
  std::atomic<uint64_t> seed{0};
  std::atomic<uint64_t> launches{0};
};

// DS_EMULATION_ORDER: in_order, reversed, shuffled or shuffled:SEED.
void read_environment(Settings& settings) {
  const char* text = std::getenv("DS_EMULATION_ORDER");
  const std::string asked = text == nullptr ? "" : text;
  if (asked.rfind("reversed", 0) == 0) settings.order = static_cast<int>(Order::kReversed);
  if (asked.rfind("shuffled", 0) == 0) settings.order = static_cast<int>(Order::kShuffled);
  const std::size_t colon = asked.find(':');
  if (colon != std::string::npos) settings.seed = std::strtoull(asked.c_str() + colon + 1, nullptr, 10);
}

Settings& settings() {
  static Settings* const kept = [] {
    Settings* made = new Settings;
    read_environment(*made);
    return made;
  }();
  return *kept;
}

// Engines keep their stacks from launch to launch; nobody frees them, for threads may outlive the library's end.
class Engines {
 public:
  std::unique_ptr<Engine> take() {
    const std::lock_guard<std::mutex> hold(mutex_);
    if (free_.empty()) return std::make_unique<Engine>();
    std::unique_ptr<Engine> engine = std::move(free_.back());
    free_.pop_back();
    return engine;
  }
  void give_back(std::unique_ptr<Engine> engine) {
    const std::lock_guard<std::mutex> hold(mutex_);
    free_.push_back(std::move(engine));
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<Engine>> free_;
};

Engines& engines() {
  static Engines* const kept = new Engines;
  return *kept;
}

std::string& error_text() {
  static thread_local std::string kept;
  return kept;
}

std::string complaint(const Shape& shape) {
  const uint64_t threads = uint64_t{shape.block.x} * shape.block.y * shape.block.z;
  if (threads == 0 || threads > kMostThreads || shape.block.z > 64) {
    return "a block of (" + std::to_string(shape.block.x) + ", " + std::to_string(shape.block.y) + ", " +
           std::to_string(shape.block.z) + ") threads; 1 to 1024 are allowed, at most 64 in z";
  }
  if (shape.grid.x == 0 || shape.grid.y == 0 || shape.grid.z == 0 || shape.grid.x > 0x7fffffffu ||
      shape.grid.y > 65535 || shape.grid.z > 65535) {
    return "a grid of (" + std::to_string(shape.grid.x) + ", " + std::to_string(shape.grid.y) + ", " +
           std::to_string(shape.grid.z) + ") blocks; 1 to 2^31 - 1 in x and 1 to 65535 in y and z are allowed";
  }
  const std::size_t limit = shape.large_shared ? kLargeShared : kShared;
  if (shape.shared_bytes > limit) {
    return std::to_string(shape.shared_bytes) + " bytes of dynamic shared memory; " + std::to_string(limit) +
           " are allowed";
  }
  return "";
}

void run_blocks(Launch& launch, uint64_t begin, uint64_t end, uint64_t total) {
  std::unique_ptr<Engine> engine = engines().take();
  const dim3 grid = launch.shape.grid;
  for (uint64_t i = begin; i < end && !launch.failed.load(std::memory_order_relaxed); ++i) {
    uint64_t number = i;
    if (launch.order == Order::kReversed) number = total - 1 - i;
    if (launch.order == Order::kShuffled) {
      // A step that shares no factor with the count visits every block once.
      uint64_t step = (launch.seed * 2 + 1) % total;
      while (step == 0 || std::__gcd(step, total) != 1) ++step;
      number = static_cast<uint64_t>((static_cast<unsigned __int128>(i) * step + launch.seed) % total);
    }
    const uint3 block = {static_cast<unsigned>(number % grid.x), static_cast<unsigned>(number / grid.x % grid.y),
                         static_cast<unsigned>(number / grid.x / grid.y)};
    if (!engine->run_block(launch, block, number)) break;
  }
  engines().give_back(std::move(engine));
}

void spread(Launch& launch, uint64_t total, int host_threads) {
  const uint64_t parts = std::min<uint64_t>({static_cast<uint64_t>(std::max(host_threads, 1)), total, 8});
  if (parts <= 1) {
    run_blocks(launch, 0, total, total);
    return;
  }
  std::vector<std::thread> helpers;
  for (uint64_t part = 1; part < parts; ++part) {
    helpers.emplace_back(run_blocks, std::ref(launch), total * part / parts, total * (part + 1) / parts, total);
  }
  run_blocks(launch, 0, total / parts, total);
  for (std::thread& helper : helpers) helper.join();
}

}  // namespace

int32_t run(const Shape& shape, void (*call)(const void* arguments), const void* arguments, int host_threads) {
  const uint64_t number = settings().launches.fetch_add(1) + 1;
  const std::string refused = complaint(shape);
  if (!refused.empty()) {
    error_text() = "launch at " + text_of(shape.site) + " asks for " + refused;
    return DS_DEVICE_ERROR;
  }
  Launch launch;
  launch.shape = shape;
  launch.call = call;
  launch.arguments = arguments;
  launch.order = static_cast<Order>(settings().order.load());
  launch.seed = settings().seed.load() + (launch.order == Order::kShuffled ? number * 0x9e3779b9u : 0);
  spread(launch, uint64_t{shape.grid.x} * shape.grid.y * shape.grid.z, host_threads);
  if (launch.status != DS_OK) error_text() = launch.text;
  return launch.status;
}

const char* last_error() { return error_text().c_str(); }

}  // namespace dsk_emulation

// --- what a test may set and ask ------------------------------------------------------------------------------------

// Why the last launch of the calling thread that failed did; "" if none has. ds_exec.message says it of each call.
DSK_EMULATION_EXPORT const char* dsk_emulation_error(void) { return dsk_emulation::last_error(); }

// The order of threads and blocks: 0 by number, 1 by number from the last, 2 at random from `seed`.
DSK_EMULATION_EXPORT void dsk_emulation_set_order(int32_t order, uint64_t seed) {
  dsk_emulation::settings().order = order;
  dsk_emulation::settings().seed = seed;
}

// Launches since the library was loaded.
DSK_EMULATION_EXPORT uint64_t dsk_emulation_launches(void) { return dsk_emulation::settings().launches.load(); }
