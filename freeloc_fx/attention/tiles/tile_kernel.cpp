// Long attention on a CPU in one pass: visible pairs only, positions remapped pair by pair, online softmax.
//
// A sequence is cut into spans (latent frames, text) inside which visibility level and remapped distance are one. A
// tile is 16 or 32 query rows of one span (not one of FlexAttention's blocks, which are 128 x 128 scores whatever the
// frames). It is transposed so that rows lie in vector lanes: scores, softmax and weighted values are then the same
// rank-1 updates, without horizontal sums. A tile turns its own temporal channels to its distance from a key span, which is one part in
// about as many as a span has keys, so that no key is ever rotated or stored a second time.
// Narrow stripes run along their diagonals, on keys laid out by channel, so that only visible pairs are computed.
// Extra memory: for each thread one chunk of keys and the state of a group of tiles, which the caller provides.
//
// The softmax is FlashAttention's (Dao et al. 2022), in base 2.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <exception>
#include <thread>
#include <vector>

#include "tile_floats.h"
#include "tile_halves.h"

namespace {

// The floats of scratch it needs where there is none. With it 0 when done, 1 when the time was up, after which it goes on
// where it is called again; -1 where it failed (no memory, no threads).
template <class Worker>
int64_t attend(LongAttention& a) {
  const typename Worker::Plan layout(a);
  const int64_t floats = (Worker::floats(a, layout) + 15) / 16 * 16;
  if (!a.scratch) return layout.threads * floats;
  std::atomic<int64_t> next{a.next}, place{0};
  std::atomic<bool> failed{false};
  const auto stop = std::chrono::steady_clock::now() + std::chrono::duration<double>(a.seconds);
  auto work = [&] {
    try {
      Worker worker(a, layout, a.scratch + place.fetch_add(1) * floats);
      for (int64_t i; (i = next.fetch_add(1)) < layout.count;) {
        const int64_t g = i % layout.groups, head = i / layout.groups, size = layout.tiles.size();
        worker.group(head / a.heads, head % a.heads, size * g / layout.groups, size * (g + 1) / layout.groups);
        if (std::chrono::steady_clock::now() > stop) break;
      }
    } catch (const std::exception&) {
      failed = true;
    }
  };
  if (a.parallel && layout.threads > 1) {
    a.parallel([](void* each) { (*static_cast<decltype(work)*>(each))(); }, &work, unsigned(layout.threads), 0);
  } else {
    std::vector<std::thread> others;
    for (int64_t i = 1; i < layout.threads; ++i) others.emplace_back(work);
    work();
    for (std::thread& other : others) other.join();
  }
  a.next = std::min<int64_t>(next, layout.count);
  return failed ? -1 : a.next < layout.count;
}

}  // namespace

// As `attend`.
extern "C" int64_t freeloc_long_attention(LongAttention* task) try {
#if defined(FREELOC_HALVES)
  if (task->half) return attend<HalfWorker>(*task);
#endif
  // Two vectors of rows share what is read of a key; where frames are small they would be half empty.
  if constexpr (W == 16) {
    int64_t one = 0, two = 0;
    for (int64_t s = 0; s < task->spans; ++s) {
      const int64_t size = task->start[s + 1] - task->start[s];
      one += (size + 15) / 16 * 16, two += (size + 31) / 32 * 32;
    }
    if (8 * two <= 9 * one) return attend<Worker<32>>(*task);
  }
  return attend<Worker<16>>(*task);
} catch (const std::exception&) {
  return -1;
}
