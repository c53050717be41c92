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
#include <array>
#include <atomic>
#include <chrono>
#include <cmath>
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

#if defined(FREELOC_HALVES)
// Seconds to score 14 keys of 128 channels for 32 rows, 32 times over, at best of 16: [in float32, in bfloat16].
std::array<double, 2> race() {
  constexpr int64_t DIM = 128, TIMES = 32;
  std::vector<float> keys(DIM / PANEL * Worker<32>::PITCH), query(DIM * 32), scores(14 * 32);
  const auto* halves = reinterpret_cast<const uint16_t*>(keys.data());
  const auto* pairs = reinterpret_cast<const uint32_t*>(query.data());
  const auto timed = [&](const auto& run) {
    const auto start = std::chrono::steady_clock::now();
    for (int64_t i = 0; i < TIMES; ++i) run();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  std::array<double, 2> best{1, 1};
  for (int turn = 0; turn < 16; ++turn) {
    best[0] = std::min(best[0], timed([&] {
      scores_of<14, 2>(keys.data(), Worker<32>::PITCH, DIM, query.data(), scores.data(), 32);
    }));
    best[1] = std::min(best[1], timed([&] {
      product(false, 2, 14, halves, DIM, pairs, DIM * 8, DIM / 2, scores.data(), 14 * 16, false);
    }));
  }
  return best;
}
#endif

}  // namespace

// How many times as fast this processor multiplies bfloat16 as it does float32: 0 where it cannot, infinite with AMX.
// AVX-512's dot products of pairs are faster on an EPYC, and on a Xeon half as fast, so that to widen is quicker there.
extern "C" double freeloc_product_gain() try {
#if defined(FREELOC_HALVES)
  if (tiles_allowed()) return HUGE_VAL;
  const auto [wide, half] = race();
  return wide / half;
#else
  return 0;
#endif
} catch (const std::exception&) {
  return 0;
}

// As `attend`.
extern "C" int64_t freeloc_long_attention(LongAttention* task) try {
#if defined(FREELOC_HALVES)
  if (task->half == 2) return attend<HalfWorker>(*task);
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
