// Long attention on a CPU in one pass: visible pairs only, positions remapped pair by pair, online softmax.
//
// A sequence is cut into spans (latent frames, text) inside which visibility level and remapped distance are one. A tile
// is 16 query rows of one span (not one of FlexAttention's blocks, which are 128 x 128 scores whatever the frames). It is
// transposed so that rows lie in vector lanes: scores, softmax and weighted values are then the same rank-1 updates,
// without horizontal sums. A tile turns its own temporal channels to its distance from a key span, which is one part in
// about as many as a span has keys, so that no key is ever rotated or stored a second time.
// Narrow stripes run along their diagonals, on keys laid out by channel, so that only visible pairs are computed.
// Extra memory: for each thread one chunk of keys and the state of a group of tiles, which the caller provides.
//
// The softmax is FlashAttention's (Dao et al. 2022), in base 2.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <exception>
#include <thread>
#include <utility>
#include <vector>

#include "tile_layout.h"

namespace {

constexpr float LOW = -1e30f, HIDDEN = -3e38f;  // maximum of nothing; below it, so that a hidden key never counts

// The diagonals of one key frame among a tile's scores: the tile's first packed key of it, the first diagonal's slot.
struct Placed { int64_t key, place; };

// Tokens [token, token + count) of one head, as rows of `dim` floats.
void read(const LongAttention& a, const Tensor& t, int64_t b, int64_t h, int64_t token, int64_t count, float* to) {
  const int64_t at = b * t.batch + h * t.head + token * t.token;
  for (int64_t l = 0; l < count; ++l, to += a.dim) {
    if (!a.half) {
      std::copy_n(static_cast<const float*>(t.data) + at + l * t.token, a.dim, to);
      continue;
    }
    const uint16_t* x = static_cast<const uint16_t*>(t.data) + at + l * t.token;
    for (int64_t c = 0; c < a.dim; ++c) {
      const uint32_t wide = uint32_t(x[c]) << 16;
      std::memcpy(to + c, &wide, sizeof wide);
    }
  }
}

void write(const LongAttention& a, int64_t b, int64_t h, int64_t token, const float* from, int64_t stride, float scale) {
  const int64_t at = b * a.out.batch + h * a.out.head + token * a.out.token;
  if (!a.half) {
    float* x = static_cast<float*>(a.out.data) + at;
    for (int64_t c = 0; c < a.dim; ++c) x[c] = from[c * stride] * scale;
    return;
  }
  uint16_t* x = static_cast<uint16_t*>(a.out.data) + at;
  for (int64_t c = 0; c < a.dim; ++c) {
    const float value = from[c * stride] * scale;
    uint32_t wide;
    std::memcpy(&wide, &value, sizeof wide);
    // to nearest, ties to even; a NaN keeps its payload's top bits and must not round to infinity
    x[c] = value != value ? uint16_t(wide >> 16 | 0x40) : uint16_t((wide + 0x7fff + (wide >> 16 & 1)) >> 16);
  }
}

// One tile's queries, their turned copy, and its running softmax.
struct State {
  float *query, *turned, *total;
  float most[R], sum[R];
  int32_t turn;  // what `turned` holds
};

class Worker {
 public:
  Worker(const LongAttention& a, const Layout& layout, float* scratch) : a(a), layout(layout), tiles(layout.tiles) {
    const auto take = [&](int64_t floats) { return std::exchange(scratch, scratch + floats); };
    keys = take(KEYS * a.dim), values = take(KEYS * a.dim), line = take(a.dim);
    if (!layout.diagonals.empty()) {
      keys_across = take(WIDE * a.dim), values_across = take(WIDE * a.dim);
      std::fill(keys_across, scratch, 0.0f);  // what is read beyond a frame is hidden, but must be numbers
    }
    for (int64_t t = 0; t < layout.most; ++t)
      states.push_back({take(a.dim * R), take(a.dim * R), take(a.dim * R), {}, {}, -1});
  }

  // Tiles [first, last) of one head of one sample.
  void group(int64_t b, int64_t h, int64_t first, int64_t last) {
    for (int64_t t = first; t < last; ++t) begin(states[t - first], tiles[t], b, h);
    for (const std::vector<Stretch>& chunk : layout.chunks) {
      if (!pack(chunk, b, h, first, last)) continue;
      for (int64_t t = first; t < last; ++t) attend(states[t - first], tiles[t], chunk, h);
    }
    for (int64_t t = first; t < last; ++t)
      for (int64_t r = 0; r < tiles[t].rows; ++r)
        write(a, b, h, a.start[tiles[t].span] + tiles[t].row + r, &states[t - first].total[r], R,
              1 / states[t - first].sum[r]);
  }

 private:
  const LongAttention& a;
  const Layout& layout;
  const std::vector<Tile>& tiles;
  float *keys, *values, *line, *keys_across = nullptr, *values_across = nullptr;  // a chunk by token, and by channel
  std::vector<State> states;
  std::vector<int64_t> offset, packed;  // of each stretch of the chunk
  std::vector<Placed> placed;
  float scores[KEYS * R], shrink[R];
  int32_t at[N][KEYS];                  // where the value of each score is, for each vector of rows
  int64_t whole, used;                  // scores that all rows share, and all

  void begin(State& s, const Tile& tile, int64_t b, int64_t h) {
    std::fill(s.query, s.query + a.dim * R, 0.0f);
    for (int64_t r = 0; r < tile.rows; ++r) {
      read(a, a.q, b, h, a.start[tile.span] + tile.row + r, 1, line);
      for (int64_t c = 0; c < a.dim; ++c) s.query[c * R + r] = line[c] * a.scale;
    }
    std::copy(s.query, s.query + a.dim * R, s.turned);
    std::fill(s.total, s.total + a.dim * R, 0.0f);
    s.turn = -1;
    std::fill(s.most, s.most + R, LOW);
    std::fill(s.sum, s.sum + R, 0.0f);
  }

  // Copy the keys that a tile of the group sees; false where there are none.
  bool pack(const std::vector<Stretch>& chunk, int64_t b, int64_t h, int64_t first, int64_t last) {
    const uint8_t* valid = a.valid ? a.valid + b * a.start[a.spans] : nullptr;
    offset.assign(chunk.size(), 0);
    packed.assign(chunk.size(), 0);
    int64_t count = 0;
    for (size_t i = 0; i < chunk.size(); ++i) {
      offset[i] = count;
      bool seen = false, striped = false;
      for (int64_t t = first; t < last; ++t) {
        const int8_t level = a.level[tiles[t].span * a.spans + chunk[i].span];
        seen |= level != NONE, striped |= level == STRIPE;
      }
      if (!seen) continue;
      const int64_t begin = a.start[chunk[i].span] + chunk[i].low, end = a.start[chunk[i].span] + chunk[i].high;
      for (int64_t token = begin, next; token < end; token = next) {
        for (next = valid ? token + 1 : end; next < end && valid[next] == valid[token]; ++next) {}
        if (valid && !valid[token]) continue;
        read(a, a.k, b, h, token, next - token, keys + count * a.dim);
        read(a, a.v, b, h, token, next - token, values + count * a.dim);
        count += next - token;
      }
      packed[i] = count - offset[i];
      if (!keys_across || !striped) continue;
      for (int64_t c = 0; c < a.dim; ++c)
        for (int64_t l = offset[i]; l < count; ++l) {
          keys_across[c * WIDE + MARGIN + l] = keys[l * a.dim + c];
          values_across[c * WIDE + MARGIN + l] = values[l * a.dim + c];
        }
    }
    return count > 0;
  }

  // The tile's queries turned for a key span.
  const float* turn(State& s, int32_t which, int64_t h) const {
    if (which < 0) return s.query;
    if (which != s.turn) {
      const int64_t row = ((a.turn_heads > 1 ? h : 0) * a.turns + which) * a.pairs;
      for (int64_t p = 0; p < a.pairs; ++p) {
        const Vec cosine = splat(a.cosine[row + p]), sine = splat(a.sine[row + p]);
        const int64_t one = a.first[p] * R, two = a.second[p] * R;
        for (int n = 0; n < R; n += W) {
          const Vec x = load(&s.query[one + n]), y = load(&s.query[two + n]);
          store(&s.turned[one + n], x * cosine - y * sine);
          store(&s.turned[two + n], x * sine + y * cosine);
        }
      }
      s.turn = which;
    }
    return s.turned;
  }

  // Score packed keys [key, key + count) for vectors [n, n + V), from slot `place` on.
  template <int V>
  void fill(const float* query, int64_t key, int64_t count, int64_t place, int n) {
    score<V>(int(count), keys + key * a.dim, a.dim, query + n * W, scores + place * R + n * W);
    for (int v = n; v < n + V; ++v)
      for (int64_t l = 0; l < count; ++l) at[v][place + l] = int32_t((key + l) * a.dim);
  }

  // Hide a slot from the rows of vector n whose bit is not set.
  void hide(int64_t place, uint16_t bits, int n) {
    Int lane;
    for (int i = 0; i < W; ++i) lane[i] = 1 << (n * W + i);
    float* x = scores + place * R + n * W;
    store(x, (lane & int32_t(bits)) != 0 ? load(x) : splat(HIDDEN));
  }

  // A tile against the diagonals of its stripe in a frame.
  void diagonals(const float* query, const Tile& tile, int64_t key) {
    const std::vector<Diagonal>& all = layout.diagonals[tile.row / R];
    along(all, keys_across, tile.row + key, [&](auto m, const float* const* from, int first) {
      diagonal_scores<m>(from, WIDE, query, a.dim, scores + (used + first) * R);
    });
    for (size_t i = 0; i < all.size(); ++i)
      for (int n = 0; n < N; ++n) hide(used + i, all[i].bits, n);
    placed.push_back({tile.row + key, used});
    used += all.size();
  }

  // `body` for some diagonals at a time, with where each begins in `x`.
  template <class Body>
  void along(const std::vector<Diagonal>& all, const float* x, int64_t key, const Body& body) const {
    blocked<DEEP>(int(all.size()), [&](auto m, int first) {
      const float* from[m];
      for (int i = 0; i < m; ++i) from[i] = x + MARGIN + key + all[first + i].offset;
      body(m, from, first);
    });
  }

  // Each vector of rows against its own stripe of a stretch; rows that see fewer keys are filled up with hidden ones.
  void stripes(const float* query, const Tile& tile, const Stretch& stretch, int64_t key) {
    const int64_t strip = tile.row / R;
    int64_t place[N];
    for (int n = 0; n < N; ++n) {
      place[n] = used;
      for (const Range& seen : layout.strips[strip * N + n]) {
        const int64_t low = std::max(stretch.low, seen.low), high = std::min(stretch.high, seen.high);
        if (low >= high) continue;
        fill<1>(query, key + low - stretch.low, high - low, place[n], n);
        for (int64_t l = low; l < high; ++l, ++place[n]) hide(place[n], a.bits[strip * a.frame + l], n);
      }
    }
    used = *std::max_element(place, place + N);
    for (int n = 0; n < N; ++n)
      for (; place[n] < used; ++place[n]) {
        store(scores + place[n] * R + n * W, splat(HIDDEN));
        at[n][place[n]] = 0;
      }
  }

  void attend(State& s, const Tile& tile, const std::vector<Stretch>& chunk, int64_t h) {
    used = 0;
    placed.clear();
    for (const Level sought : {FULL, STRIPE}) {
      for (size_t i = 0; i < chunk.size(); ++i) {
        const int64_t pair = tile.span * a.spans + chunk[i].span, before = used;
        if (a.level[pair] != sought || !packed[i]) continue;
        const float* query = turn(s, a.phase[pair], h);
        if (sought == FULL) {
          fill<N>(query, offset[i], packed[i], used, 0);
          used += packed[i];
        } else if (keys_across) {
          diagonals(query, tile, offset[i]);
        } else {
          stripes(query, tile, chunk[i], offset[i]);
        }
        if (a.decay && a.decay[pair] != 1) {
          const Vec factor = splat(a.decay[pair]);
          for (float* x = scores + before * R; x < scores + used * R; x += W) {
            const Vec y = load(x);
            store(x, y > 0 ? y * factor : y);
          }
        }
      }
      if (sought == FULL) whole = used;
    }
    if (used) add(s, tile);
  }

  // Add the scored keys to the running softmax.
  void add(State& s, const Tile& tile) {
    Vec most[N], sum[N];
    bool grown = false;
    for (int n = 0; n < N; ++n) {
      Vec top = load(&scores[n * W]);
      for (int64_t l = 1; l < used; ++l) top = larger(top, load(&scores[l * R + n * W]));
      const Vec old = load(s.most + n * W);
      most[n] = larger(top, old);
      const Vec keep = exp2(old - most[n]);
      sum[n] = load(s.sum + n * W) * keep;
      store(s.most + n * W, most[n]);
      for (int i = 0; i < W; ++i) grown |= most[n][i] != old[i];
      store(shrink + n * W, keep);
    }
    for (int64_t l = 0; l < used; ++l)
      for (int n = 0; n < N; ++n) {
        const Vec p = exp2(load(&scores[l * R + n * W]) - most[n]);
        sum[n] += p;
        store(&scores[l * R + n * W], p);
      }
    for (int n = 0; n < N; ++n) store(s.sum + n * W, sum[n]);
    if (grown)
      for (int64_t c = 0; c < a.dim; ++c)
        for (int n = 0; n < N; ++n) {
          float* x = &s.total[c * R + n * W];
          store(x, load(x) * load(shrink + n * W));
        }
    weigh<N>(int(a.dim), values, at[0], whole, scores, s.total);
    for (const Placed& each : placed)
      along(layout.diagonals[tile.row / R], values_across, each.key, [&](auto m, const float* const* from, int first) {
        diagonal_values<m>(from, WIDE, scores + (each.place + first) * R, a.dim, s.total);
      });
    for (int n = 0; n < N && placed.empty() && whole < used; ++n)
      weigh<1>(int(a.dim), values, at[n] + whole, used - whole, scores + whole * R + n * W, s.total + n * W);
  }
};

}  // namespace

// 0 when done, or the floats of scratch it needs where there is none, -1 where it failed (no memory, no threads).
extern "C" int64_t freeloc_long_attention(const LongAttention* task) try {
  const LongAttention& a = *task;
  const Layout layout(a);
  if (!a.scratch) return layout.threads * layout.floats;
  std::atomic<int64_t> next{0}, place{0};
  std::atomic<bool> failed{false};
  auto work = [&] {
    try {
      Worker worker(a, layout, a.scratch + place.fetch_add(1) * layout.floats);
      for (int64_t i; (i = next.fetch_add(1)) < layout.count;) {
        const int64_t g = i % layout.groups, head = i / layout.groups, size = layout.tiles.size();
        worker.group(head / a.heads, head % a.heads, size * g / layout.groups, size * (g + 1) / layout.groups);
      }
    } catch (const std::exception&) {
      failed = true;
    }
  };
  if (a.parallel && layout.threads > 1) {
    a.parallel([](void* each) { (*static_cast<decltype(work)*>(each))(); }, &work, unsigned(layout.threads), 0);
    return failed ? -1 : 0;
  }
  std::vector<std::thread> others;
  for (int64_t i = 1; i < layout.threads; ++i) others.emplace_back(work);
  work();
  for (std::thread& other : others) other.join();
  return failed ? -1 : 0;
} catch (const std::exception&) {
  return -1;
}
