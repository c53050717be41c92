// Long attention on a CPU in one pass: visible pairs only, positions remapped pair by pair, online softmax.
//
// A sequence is cut into spans (latent frames, text) inside which visibility level and remapped distance are one. Query
// rows run in tiles of 16, transposed so that rows lie in vector lanes: scores, softmax and weighted values are then
// the same rank-1 updates, without horizontal sums. A tile turns its own temporal channels to its distance from a key
// span, one part in about as many as a span has keys, so that no key is ever rotated or stored a second time.
// Extra memory: one tile group's state and one chunk of keys for each thread.
//
// The softmax is FlashAttention's (Dao et al. 2022), in base 2. No intrinsics: GCC's and clang's vector extension.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <exception>
#include <thread>
#include <type_traits>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int W = 16, DEEP = 14;  // lanes of a vector; rows of a register block
#elif defined(__AVX__)
constexpr int W = 8, DEEP = 6;
#elif defined(__aarch64__)
constexpr int W = 4, DEEP = 5;
#else
constexpr int W = 4, DEEP = 2;
#endif
constexpr int R = 16, N = R / W;           // query rows of a tile, vectors that hold them
constexpr int KEYS = 128, GROUP = 32;      // keys of a chunk, most tiles that share it
constexpr int64_t STATE = 192 << 10;       // bytes of a group's tiles that stay in cache beside a chunk
constexpr float LOW = -1e30f, HIDDEN = -3e38f;  // maximum of nothing; below it, so that a hidden key never counts
enum Level : int8_t { NONE = 0, STRIPE = 1, FULL = 2 };

typedef float Vec __attribute__((vector_size(W * sizeof(float))));
typedef int32_t Int __attribute__((vector_size(W * sizeof(int32_t))));

inline Vec load(const float* x) { Vec v; std::memcpy(&v, x, sizeof v); return v; }
inline void store(float* x, Vec v) { std::memcpy(x, &v, sizeof v); }
inline Vec splat(float x) { return x - Vec{}; }
inline Vec larger(Vec a, Vec b) { return a > b ? a : b; }

// 2^x for x <= 0, relative error 2e-7; not below 2^-126. NaN stays NaN.
inline Vec exp2(Vec x) {
  const Vec least = splat(-126.0f), shift = splat(12582912.0f);  // 1.5 * 2^23 rounds to an integer
  x = x < least ? least : x;
  const Vec whole = x + shift, f = x - (whole - shift);
  Vec p = splat(1.327646886e-3f) * f + splat(9.675541309e-3f);
  p = p * f + splat(5.550713283e-2f);
  p = p * f + splat(2.402211972e-1f);
  p = p * f + splat(6.931469671e-1f);
  p = p * f + splat(1.000000072f);
  return (Vec)((Int)p + ((Int)whole << 23));
}

// Scores of M keys for V vectors of query rows: c[m, :] = sum over k of a[m * dim + k] * b[k, :], rows of R floats.
template <int M, int V>
[[gnu::noinline]] void scores_of(const float* a, int64_t dim, const float* b, float* c) {
  Vec sum[M][V] = {};
  for (int64_t k = 0; k < dim; ++k) {
    Vec row[V];
    for (int v = 0; v < V; ++v) row[v] = load(b + k * R + v * W);
    for (int m = 0; m < M; ++m)
      for (int v = 0; v < V; ++v) sum[m][v] += splat(a[m * dim + k]) * row[v];
  }
  for (int m = 0; m < M; ++m)
    for (int v = 0; v < V; ++v) store(c + m * R + v * W, sum[m][v]);
}

// M channels of weighted values: c[m, :] += sum over k of a[at[k] + m] * b[k, :].
template <int M, int V>
[[gnu::noinline]] void values_of(const float* a, const int32_t* at, int64_t keys, const float* b, float* c) {
  Vec sum[M][V];
  for (int m = 0; m < M; ++m)
    for (int v = 0; v < V; ++v) sum[m][v] = load(c + m * R + v * W);
  for (int64_t k = 0; k < keys; ++k) {
    const float* x = a + at[k];
    Vec row[V];
    for (int v = 0; v < V; ++v) row[v] = load(b + k * R + v * W);
    for (int m = 0; m < M; ++m)
      for (int v = 0; v < V; ++v) sum[m][v] += splat(x[m]) * row[v];
  }
  for (int m = 0; m < M; ++m)
    for (int v = 0; v < V; ++v) store(c + m * R + v * W, sum[m][v]);
}

template <int M, class Body>
void pick(int size, int first, const Body& body) {
  if (size == M) return body(std::integral_constant<int, M>{}, first);
  if constexpr (M > 1) pick<M - 1>(size, first, body);
}

// `body` with a compile-time count, over `rows` rows in blocks of nearly equal size (a small block waits for its own sums).
template <int MOST, class Body>
void blocked(int rows, const Body& body) {
  const int blocks = (rows + MOST - 1) / MOST;
  for (int i = 0, first = 0; i < blocks; ++i) {
    const int last = rows * (i + 1) / blocks;
    pick<MOST>(last - first, first, body);
    first = last;
  }
}

template <int V>
void score(int keys, const float* a, int64_t dim, const float* b, float* c) {
  blocked<DEEP * N / V>(keys, [&](auto m, int first) { scores_of<m, V>(a + first * dim, dim, b, c + first * R); });
}

template <int V>
void weigh(int dim, const float* a, const int32_t* at, int64_t keys, const float* b, float* c) {
  blocked<DEEP * N / V>(dim, [&](auto m, int first) { values_of<m, V>(a + first, at, keys, b, c + first * R); });
}

struct Tensor {  // (batch, heads, tokens, head_dim), channels contiguous; strides in elements
  void* data;
  int64_t batch, head, token;
};

}  // namespace

extern "C" struct LongAttention {
  int64_t batch, heads, dim, half;  // half: 1 where the tensors are bfloat16, 0 for float32
  Tensor q, k, v, out;
  int64_t spans;
  const int64_t* start;   // (spans + 1,) first token of each
  const int8_t* level;    // (spans, spans), query by key
  const int32_t* phase;   // (spans, spans), which turn brings a query to its distance; -1 for none
  const float* decay;     // (spans, spans), factor on positive scores; null for none
  int64_t turns, turn_heads, pairs;
  const float* cosine;    // (turn_heads, turns, pairs)
  const float* sine;
  const int32_t* first;   // (pairs,) channels of a pair
  const int32_t* second;
  const uint16_t* bits;   // (tiles of a frame, tokens of a frame), bit r: row r of the tile sees the key; for STRIPE
  int64_t frame;          // tokens of a frame
  const uint8_t* valid;   // (batch, tokens), 0 for padded text; null for none
  float scale;            // on q k, times log2(e)
  int64_t threads;
};

namespace {

struct Piece { int64_t span, low, high; };  // tokens [low, high) of a span
struct Tile { int64_t span, row, rows; };   // rows [row, row + rows) of a span
struct Range { int64_t low, high; };         // tokens of a frame

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
  std::vector<float> query, turned, total;
  float most[R], sum[R];
  int32_t turn;  // what `turned` holds
};

class Worker {
 public:
  Worker(const LongAttention& a, const std::vector<Tile>& tiles, const std::vector<std::vector<Piece>>& chunks,
         const std::vector<std::vector<Range>>& strips)
      : a(a), tiles(tiles), chunks(chunks), strips(strips), keys(KEYS * a.dim), values(KEYS * a.dim), states(GROUP) {
    for (State& s : states) s.query.resize(a.dim * R), s.turned.resize(a.dim * R), s.total.resize(a.dim * R);
    line.resize(a.dim);
  }

  // Tiles [first, last) of one head of one sample.
  void group(int64_t b, int64_t h, int64_t first, int64_t last) {
    for (int64_t t = first; t < last; ++t) begin(states[t - first], tiles[t], b, h);
    for (const std::vector<Piece>& chunk : chunks) {
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
  const std::vector<Tile>& tiles;
  const std::vector<std::vector<Piece>>& chunks;
  const std::vector<std::vector<Range>>& strips;
  std::vector<float> keys, values, line;
  std::vector<State> states;
  std::vector<int64_t> offset, packed;  // of each piece of the chunk
  float scores[KEYS * R], shrink[R];
  int32_t at[N][KEYS];                  // where the value of each score is, for each vector of rows
  int64_t whole, used;                  // scores that all rows share, and all

  void begin(State& s, const Tile& tile, int64_t b, int64_t h) {
    std::fill(s.query.begin(), s.query.end(), 0.0f);
    for (int64_t r = 0; r < tile.rows; ++r) {
      read(a, a.q, b, h, a.start[tile.span] + tile.row + r, 1, line.data());
      for (int64_t c = 0; c < a.dim; ++c) s.query[c * R + r] = line[c] * a.scale;
    }
    s.turned = s.query;
    s.turn = -1;
    std::fill(s.total.begin(), s.total.end(), 0.0f);
    std::fill(s.most, s.most + R, LOW);
    std::fill(s.sum, s.sum + R, 0.0f);
  }

  Level level(int64_t query, int64_t key) const { return static_cast<Level>(a.level[query * a.spans + key]); }

  // Copy the keys that a tile of the group sees; false where there are none.
  bool pack(const std::vector<Piece>& chunk, int64_t b, int64_t h, int64_t first, int64_t last) {
    offset.assign(chunk.size(), 0);
    packed.assign(chunk.size(), 0);
    int64_t count = 0;
    for (size_t i = 0; i < chunk.size(); ++i) {
      offset[i] = count;
      bool seen = false;
      for (int64_t t = first; t < last && !seen; ++t) seen = level(tiles[t].span, chunk[i].span) != NONE;
      if (!seen) continue;
      const int64_t begin = a.start[chunk[i].span];
      for (int64_t token = begin + chunk[i].low, end = begin + chunk[i].high, next; token < end; token = next) {
        const uint8_t* valid = a.valid ? a.valid + b * a.start[a.spans] : nullptr;
        for (next = token + 1; next < end && !(valid && valid[next] != valid[token]); ++next) {}
        if (valid && !valid[token]) continue;
        read(a, a.k, b, h, token, next - token, &keys[count * a.dim]);
        read(a, a.v, b, h, token, next - token, &values[count * a.dim]);
        count += next - token;
      }
      packed[i] = count - offset[i];
    }
    return count > 0;
  }

  // The tile's queries turned for a key span.
  const float* turn(State& s, int32_t which, int64_t h) const {
    if (which < 0) return s.query.data();
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
    return s.turned.data();
  }

  // Score packed keys [key, key + count) for vectors [n, n + V), from slot `place` on.
  template <int V>
  void fill(const float* query, int64_t key, int64_t count, int64_t place, int n) {
    score<V>(int(count), &keys[key * a.dim], a.dim, query + n * W, scores + place * R + n * W);
    for (int v = n; v < n + V; ++v)
      for (int64_t l = 0; l < count; ++l) at[v][place + l] = int32_t((key + l) * a.dim);
  }

  // Hide from vector n what `bits` (of the keys from slot `place` on) says its rows do not see.
  void hide(const uint16_t* bits, int64_t count, int64_t place, int n) {
    Int lane;
    for (int i = 0; i < W; ++i) lane[i] = 1 << (n * W + i);
    for (int64_t l = 0; l < count; ++l) {
      float* x = scores + (place + l) * R + n * W;
      store(x, (lane & int32_t(bits[l])) != 0 ? load(x) : splat(HIDDEN));
    }
  }

  // Each vector of rows against its own stripe of a piece; rows that see fewer keys are filled up with hidden ones.
  void stripes(const float* query, const Tile& tile, const Piece& piece, int64_t key) {
    const int64_t strip = tile.row / R;
    int64_t place[N];
    for (int n = 0; n < N; ++n) {
      place[n] = used;
      for (const Range& seen : strips[strip * N + n]) {
        const int64_t low = std::max(piece.low, seen.low), high = std::min(piece.high, seen.high);
        if (low >= high) continue;
        fill<1>(query, key + low - piece.low, high - low, place[n], n);
        hide(a.bits + strip * a.frame + low, high - low, place[n], n);
        place[n] += high - low;
      }
    }
    used = *std::max_element(place, place + N);
    for (int n = 0; n < N; ++n)
      for (; place[n] < used; ++place[n]) {
        store(scores + place[n] * R + n * W, splat(HIDDEN));
        at[n][place[n]] = 0;
      }
  }

  void attend(State& s, const Tile& tile, const std::vector<Piece>& chunk, int64_t h) {
    used = 0;
    for (const Level sought : {FULL, STRIPE}) {
      for (size_t i = 0; i < chunk.size(); ++i) {
        const int64_t pair = tile.span * a.spans + chunk[i].span, before = used;
        if (a.level[pair] != sought || !packed[i]) continue;
        const float* query = turn(s, a.phase[pair], h);
        if (sought == STRIPE) {
          stripes(query, tile, chunk[i], offset[i]);
        } else {
          fill<N>(query, offset[i], packed[i], used, 0);
          used += packed[i];
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
    if (used) add(s);
  }

  // Add the scored keys to the running softmax.
  void add(State& s) {
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
    weigh<N>(int(a.dim), values.data(), at[0], whole, scores, s.total.data());
    for (int n = 0; n < N && whole < used; ++n)
      weigh<1>(int(a.dim), values.data(), at[n] + whole, used - whole, scores + whole * R + n * W, &s.total[n * W]);
  }
};

}  // namespace

extern "C" int freeloc_long_attention(const LongAttention* task) try {
  const LongAttention& a = *task;
  std::vector<Tile> tiles;
  std::vector<std::vector<Piece>> chunks(1);
  int64_t room = KEYS;
  for (int64_t s = 0; s < a.spans; ++s) {
    const int64_t size = a.start[s + 1] - a.start[s];
    for (int64_t row = 0; row < size; row += R) tiles.push_back({s, row, std::min<int64_t>(R, size - row)});
    for (int64_t low = 0; low < size;) {
      if (!room) chunks.emplace_back(), room = KEYS;
      const int64_t high = std::min(size, low + room);
      chunks.back().push_back({s, low, high});
      room -= high - low;
      low = high;
    }
  }
  // What each vector of rows of a frame sees under STRIPE.
  std::vector<std::vector<Range>> strips((a.frame + R - 1) / R * N);
  for (size_t i = 0; a.bits && i < strips.size(); ++i) {
    const int mask = ((1 << W) - 1) << (i % N * W);
    for (int64_t l = 0; l < a.frame; ++l) {
      if (!(a.bits[i / N * a.frame + l] & mask)) continue;
      if (!strips[i].empty() && strips[i].back().high == l) ++strips[i].back().high;
      else strips[i].push_back({l, l + 1});
    }
  }
  // Tiles of a group share what is packed; every thread should have several groups.
  const int64_t size = tiles.size(), heads = a.batch * a.heads, bytes = 3 * a.dim * R * sizeof(float);
  int64_t most = std::min<int64_t>({GROUP, STATE / bytes, size * heads / (4 * std::max<int64_t>(a.threads, 1))});
  most = std::max<int64_t>(most, 1);
  const int64_t groups = (size + most - 1) / most, count = heads * groups;
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  auto work = [&] {
    try {
      Worker worker(a, tiles, chunks, strips);
      for (int64_t i; (i = next.fetch_add(1)) < count;) {
        const int64_t g = i % groups, head = i / groups;
        worker.group(head / a.heads, head % a.heads, size * g / groups, size * (g + 1) / groups);
      }
    } catch (const std::exception&) {
      failed = true;
    }
  };
  std::vector<std::thread> others;
  for (int64_t i = 1; i < std::min(a.threads, count); ++i) others.emplace_back(work);
  work();
  for (std::thread& other : others) other.join();
  return failed;
} catch (const std::exception&) {
  return 1;
}
