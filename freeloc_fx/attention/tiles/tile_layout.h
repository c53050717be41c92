// What the kernel is asked, how it cuts that into work, and how it reads and writes: `tile_kernel.cpp`.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include <unistd.h>

#include "tile_vectors.h"

namespace {

constexpr int KEYS = 128, GROUP = 32;      // keys of a chunk, most tiles that share it
constexpr float LOW = -1e30f, HIDDEN = -3e38f;  // maximum of nothing; below it, so that a hidden key never counts
enum Level : int8_t { NONE = 0, STRIPE = 1, FULL = 2 };

struct Tensor {  // (batch, heads, tokens, head_dim), channels contiguous; strides in elements
  void* data;
  int64_t batch, head, token;
};

}  // namespace

extern "C" struct LongAttention {
  int64_t batch, heads, dim, half;  // half: 0 float32, 1 bfloat16 to widen, 2 bfloat16 as it is where it can
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
  void (*parallel)(void (*)(void*), void*, unsigned, unsigned);  // GOMP_parallel of torch's OpenMP; null without
  float* scratch;         // as many floats as `freeloc_long_attention` says when this is null
  double seconds;         // after which no more work is begun
  int64_t next;           // what is to be done next; 0 at first, written
};

namespace {

struct Stretch { int64_t span, low, high; };  // tokens [low, high) of a span
struct Tile { int64_t span, row, rows; };   // rows [row, row + rows) of a span
struct Range { int64_t low, high; };        // tokens of a frame
struct Diagonal { int64_t offset; uint32_t bits; };  // row r against the key at r + offset, where bit r is set

// Floats of a group's tiles that stay in a core's second cache beside a chunk: about half of it.
inline int64_t state() {
  if (W < 16) return 48 << 10;
#if defined(_SC_LEVEL2_CACHE_SIZE)
  static const int64_t size = sysconf(_SC_LEVEL2_CACHE_SIZE);  // 0 or less where the system does not know
  return std::clamp<int64_t>(size / 8, 128 << 10, 256 << 10);
#else
  return 128 << 10;
#endif
}

// What all threads share, for tiles of R rows.
template <int R>
struct Layout {
  static constexpr int N = (R + W - 1) / W;  // vectors that hold a tile's rows
  std::vector<Tile> tiles;
  std::vector<std::vector<Stretch>> chunks;
  std::vector<std::vector<Range>> strips;        // what each vector of rows of a frame sees under STRIPE
  std::vector<std::vector<Diagonal>> diagonals;  // the same for each tile; empty where strips are no more work
  int64_t most, groups, count, threads;  // tiles of a group at most, groups of a head, of all

  explicit Layout(const LongAttention& a) : chunks(1) {
    int64_t room = KEYS;
    for (int64_t s = 0; s < a.spans; ++s) {
      const int64_t size = a.start[s + 1] - a.start[s];
      for (int64_t row = 0; row < size; row += R) tiles.push_back({s, row, std::min<int64_t>(R, size - row)});
      for (int64_t low = 0, high; low < size; low = high) {
        if (!room || (size <= KEYS && room < size)) chunks.emplace_back(), room = KEYS;
        high = std::min(size, low + room);
        chunks.back().push_back({s, low, high});
        room -= high - low;
      }
    }
    if (a.bits) stripe(a);
    // Tiles of a group share what is packed; every thread should have several groups.
    const int64_t size = tiles.size(), heads = a.batch * a.heads, each = 3 * a.dim * R;
    most = std::min<int64_t>({GROUP, state() / each, size * heads / (4 * std::max<int64_t>(a.threads, 1))});
    most = std::max<int64_t>(most, 1);
    groups = (size + most - 1) / most;
    count = heads * groups;
    threads = std::max<int64_t>(1, std::min(a.threads, count));
  }

  // Which rows of a tile of a frame see a token of it under STRIPE. The tables are for tiles of 16 rows.
  static uint32_t seen(const LongAttention& a, int64_t tile, int64_t token) {
    if constexpr (R == 16) return a.bits[tile * a.frame + token];
    const uint16_t* bits = a.bits + 2 * tile * a.frame + token;
    return bits[0] | (32 * tile + 16 < a.frame ? uint32_t(bits[a.frame]) << 16 : 0);
  }

  void stripe(const LongAttention& a) {
    const int64_t frame_tiles = (a.frame + R - 1) / R;
    bool narrow = a.frame <= KEYS;
    for (int64_t t = 0; t < frame_tiles; ++t) {
      int64_t slots = 0;
      for (int n = 0; n < N; ++n) {
        std::vector<Range> ranges;
        int64_t sum = 0;
        for (int64_t l = 0; l < a.frame; ++l) {
          if (!(seen(a, t, l) >> (n * W) & ((1u << std::min(W, R)) - 1))) continue;
          if (!ranges.empty() && ranges.back().high == l) ++ranges.back().high;
          else ranges.push_back({l, l + 1});
          ++sum;
        }
        strips.push_back(ranges);
        slots = std::max(slots, sum);
      }
      std::vector<Diagonal> found;
      for (int64_t offset = -R; offset <= R && narrow; ++offset) {
        Diagonal diagonal{offset, 0};
        for (int64_t r = 0; r < R; ++r) {
          const int64_t l = t * R + r + offset;
          if (l >= 0 && l < a.frame) diagonal.bits |= seen(a, t, l) & 1u << r;
        }
        if (diagonal.bits) found.push_back(diagonal);
      }
      int64_t pairs = 0, held = 0;
      for (int64_t l = 0; l < a.frame; ++l) pairs += __builtin_popcount(seen(a, t, l));
      for (const Diagonal& diagonal : found) held += __builtin_popcount(diagonal.bits);
      narrow = narrow && pairs == held && (W == 16 ? 5 : 3) * int64_t(found.size()) <= 2 * slots;
      diagonals.push_back(found);
    }
    if (!narrow) diagonals.clear();
  }
};

inline float wide(uint16_t x) {
  const uint32_t bits = uint32_t(x) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline void write(const LongAttention& a, int64_t b, int64_t h, int64_t token, const float* from, int64_t stride,
                  float scale) {
  const int64_t at = b * a.out.batch + h * a.out.head + token * a.out.token;
  if (!a.half) {
    float* x = static_cast<float*>(a.out.data) + at;
    for (int64_t c = 0; c < a.dim; ++c) x[c] = from[c * stride] * scale;
    return;
  }
  uint16_t* x = static_cast<uint16_t*>(a.out.data) + at;
  for (int64_t c = 0; c < a.dim; ++c) {
    const float value = from[c * stride] * scale;
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    // to nearest, ties to even; a NaN keeps its payload's top bits and must not round to infinity
    x[c] = value != value ? uint16_t(bits >> 16 | 0x40) : uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  }
}

// Tell `copy` which keys of a chunk tiles [first, last) see: runs of tokens, and the place of each among those packed.
// `offset` and `packed` say where each stretch begins and how many of its keys count; their sum is returned.
template <class Copy>
int64_t pack_runs(const LongAttention& a, const std::vector<Tile>& tiles, const std::vector<Stretch>& chunk, int64_t b,
                  int64_t first, int64_t last, std::vector<int64_t>& offset, std::vector<int64_t>& packed,
                  const Copy& copy) {
  const uint8_t* valid = a.valid ? a.valid + b * a.start[a.spans] : nullptr;
  offset.assign(chunk.size(), 0);
  packed.assign(chunk.size(), 0);
  int64_t count = 0;
  for (size_t i = 0; i < chunk.size(); ++i) {
    offset[i] = count;
    bool seen = false;
    for (int64_t t = first; t < last && !seen; ++t) seen = a.level[tiles[t].span * a.spans + chunk[i].span] != NONE;
    if (!seen) continue;
    const int64_t begin = a.start[chunk[i].span] + chunk[i].low, end = a.start[chunk[i].span] + chunk[i].high;
    for (int64_t token = begin, next; token < end; token = next) {
      for (next = valid ? token + 1 : end; next < end && valid[next] == valid[token]; ++next) {}
      if (valid && !valid[token]) continue;
      copy(token, next - token, count);
      count += next - token;
    }
    packed[i] = count - offset[i];
  }
  return count;
}

}  // namespace
