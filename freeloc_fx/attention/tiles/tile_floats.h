// The kernel in float32 (bfloat16 is widened when it is read), in any vector width: R query rows a tile.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "tile_layout.h"

namespace {

// The diagonals of one key frame among a tile's scores: the tile's first packed key of it, the first diagonal's slot.
struct Placed { int64_t key, place; };

// Tokens [token, token + count) of one head, as rows of `dim` floats.
inline void read(const LongAttention& a, const Tensor& t, int64_t b, int64_t h, int64_t token, int64_t count,
                 float* to) {
  const int64_t at = b * t.batch + h * t.head + token * t.token;
  for (int64_t l = 0; l < count; ++l, to += a.dim) {
    if (!a.half) {
      std::copy_n(static_cast<const float*>(t.data) + at + l * t.token, a.dim, to);
      continue;
    }
    const uint16_t* x = static_cast<const uint16_t*>(t.data) + at + l * t.token;
    for (int64_t c = 0; c < a.dim; ++c) to[c] = wide(x[c]);
  }
}

template <int R>
class Worker {
  static constexpr int N = R / W;  // vectors that hold a tile's rows
  static constexpr int MARGIN = 2 * R, WIDE = KEYS + 2 * MARGIN;  // a chunk by channel, what diagonals reach beyond it

 public:
  using Plan = Layout<R>;

  static constexpr int PITCH = KEYS * PANEL + 16;  // floats of a panel; a power of two would share few sets of a cache
  static int64_t panels(const LongAttention& a) { return (a.dim + PANEL - 1) / PANEL * PITCH; }

  // Floats from one key's values to the next: an odd number of cache lines, lest those of a chunk share few sets.
  static int64_t spaced(const LongAttention& a) { return (a.dim + 15) / 32 * 32 + 16; }

  static int64_t floats(const LongAttention& a, const Plan& layout) {
    const int64_t across = layout.diagonals.empty() ? 0 : 2 * WIDE * a.dim;
    return layout.most * 3 * a.dim * R + panels(a) + KEYS * (spaced(a) + a.dim) + across;
  }

  Worker(const LongAttention& a, const Plan& layout, float* scratch) : a(a), layout(layout), tiles(layout.tiles) {
    const auto take = [&](int64_t floats) { return std::exchange(scratch, scratch + floats); };
    keys = take(panels(a)), values = take(KEYS * spaced(a)), lines = take(KEYS * a.dim);
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
  // One tile's queries, their turned copy, and its running softmax.
  struct State {
    float *query, *turned, *total;
    float most[R], sum[R];
    int32_t turn;  // what `turned` holds
  };

  const LongAttention& a;
  const Plan& layout;
  const std::vector<Tile>& tiles;
  float *keys, *values, *lines;  // a chunk: keys in panels of channels, values by token; rows that were read
  float *keys_across = nullptr, *values_across = nullptr;  // by channel
  std::vector<State> states;
  std::vector<int64_t> offset, packed;  // of each stretch of the chunk
  std::vector<Placed> placed;
  float scores[KEYS * R], shrink[R];
  int32_t at[N][KEYS];                  // where the value of each score is, for each vector of rows
  int64_t whole, used;                  // scores that all rows share, and all

  void begin(State& s, const Tile& tile, int64_t b, int64_t h) {
    std::fill(s.query, s.query + a.dim * R, 0.0f);
    for (int64_t r = 0; r < tile.rows; ++r) {
      read(a, a.q, b, h, a.start[tile.span] + tile.row + r, 1, lines);
      for (int64_t c = 0; c < a.dim; ++c) s.query[c * R + r] = lines[c] * a.scale;
    }
    std::copy(s.query, s.query + a.dim * R, s.turned);
    std::fill(s.total, s.total + a.dim * R, 0.0f);
    s.turn = -1;
    std::fill(s.most, s.most + R, LOW);
    std::fill(s.sum, s.sum + R, 0.0f);
  }

  // Copy the keys that a tile of the group sees; false where there are none.
  bool pack(const std::vector<Stretch>& chunk, int64_t b, int64_t h, int64_t first, int64_t last) {
    const int64_t count = pack_runs(a, tiles, chunk, b, first, last, offset, packed,
                                    [&](int64_t token, int64_t keys_of, int64_t place) {
      read(a, a.k, b, h, token, keys_of, lines);
      for (int64_t c = 0; c < a.dim; c += PANEL) {
        const float* from = lines + c;
        float* to = keys + c / PANEL * PITCH + place * PANEL;
        const int64_t count_of = std::min<int64_t>(PANEL, a.dim - c);
        if (count_of == PANEL)
          for (int64_t l = 0; l < keys_of; ++l) std::memcpy(to + l * PANEL, from + l * a.dim, PANEL * sizeof(float));
        else
          for (int64_t l = 0; l < keys_of; ++l) std::copy_n(from + l * a.dim, count_of, to + l * PANEL);
      }
      read(a, a.v, b, h, token, keys_of, lines);
      for (int64_t l = 0; l < keys_of; ++l) std::copy_n(lines + l * a.dim, a.dim, values + (place + l) * spaced(a));
    });
    for (size_t i = 0; i < chunk.size() && keys_across; ++i) {
      bool striped = false;
      for (int64_t t = first; t < last; ++t) striped |= a.level[tiles[t].span * a.spans + chunk[i].span] == STRIPE;
      if (!striped) continue;
      for (int64_t c = 0; c < a.dim; ++c)
        for (int64_t l = offset[i]; l < offset[i] + packed[i]; ++l) {
          keys_across[c * WIDE + MARGIN + l] = keys[c / PANEL * PITCH + l * PANEL + c % PANEL];
          values_across[c * WIDE + MARGIN + l] = values[l * spaced(a) + c];
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
    score<R, V>(int(count), keys + key * PANEL, PITCH, a.dim, query + n * W, scores + place * R + n * W);
    for (int v = n; v < n + V; ++v)
      for (int64_t l = 0; l < count; ++l) at[v][place + l] = int32_t((key + l) * spaced(a));
  }

  // Hide a slot from the rows of vector n whose bit is not set.
  void hide(int64_t place, uint32_t bits, int n) {
    Int lane;
    for (int i = 0; i < W; ++i) lane[i] = 1 << i;
    float* x = scores + place * R + n * W;
    store(x, (lane & int32_t(bits >> (n * W))) != 0 ? load(x) : splat(HIDDEN));
  }

  // A tile against the diagonals of its stripe in a frame.
  void diagonals(const float* query, const Tile& tile, int64_t key) {
    const std::vector<Diagonal>& all = layout.diagonals[tile.row / R];
    along(all, keys_across, tile.row + key, [&](auto m, const float* const* from, int first) {
      diagonal_scores<R, m>(from, WIDE, query, a.dim, scores + (used + first) * R);
    });
    for (size_t i = 0; i < all.size(); ++i)
      for (int n = 0; n < N; ++n) hide(used + i, all[i].bits, n);
    placed.push_back({tile.row + key, used});
    used += all.size();
  }

  // `body` for some diagonals at a time, with where each begins in `x`.
  template <class Body>
  void along(const std::vector<Diagonal>& all, const float* x, int64_t key, const Body& body) const {
    blocked<ALONG>(int(all.size()), [&](auto m, int first) {
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
        this->template fill<1>(query, key + low - stretch.low, high - low, place[n], n);
        for (int64_t l = low; l < high; ++l, ++place[n]) hide(place[n], Plan::seen(a, strip, l), n);
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
      Vec tops[4];  // one alone would wait for itself
      for (int i = 0; i < 4; ++i) tops[i] = load(&scores[n * W]);
      int64_t l = 0;
      for (; l + 4 <= used; l += 4)
        for (int i = 0; i < 4; ++i) tops[i] = larger(load(&scores[(l + i) * R + n * W]), tops[i]);
      for (; l < used; ++l) tops[0] = larger(load(&scores[l * R + n * W]), tops[0]);
      const Vec top = larger(larger(tops[0], tops[1]), larger(tops[2], tops[3]));
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
    weigh<R, N>(int(a.dim), values, at[0], whole, scores, s.total);
    for (const Placed& each : placed)
      along(layout.diagonals[tile.row / R], values_across, each.key, [&](auto m, const float* const* from, int first) {
        diagonal_values<R, m>(from, WIDE, scores + (each.place + first) * R, a.dim, s.total);
      });
    for (int n = 0; n < N && placed.empty() && whole < used; ++n)
      weigh<R, 1>(int(a.dim), values, at[n] + whole, used - whole, scores + whole * R + n * W, s.total + n * W);
  }
};

}  // namespace
