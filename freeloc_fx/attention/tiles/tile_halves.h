// The kernel in bfloat16, on processors that multiply bfloat16: AMX's tiles, or AVX-512's dot products of pairs.
//
// Work is cut as in tile_floats.h, and rows lie in vector lanes as there. Products are of bfloat16 with float32 sums, as
// in torch's own attention: scores are keys (as they are in memory) times turned queries, the result is values (by
// channel) times weights. The right factor lies as both instructions want it: pairs of channels, or of keys, side by
// side in each lane. What a product costs hardly matters here; what a softmax costs does, so a stripe is a range of
// keys with a mask, never a set of diagonals.

#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "tile_products.h"

#if defined(FREELOC_HALVES)

namespace {

// A tile is two sides of 16 rows, since a tile of keys or values then serves both; where it has 16 rows or fewer, one.
class HalfWorker {
 public:
  using Plan = Layout<32>;

  static int64_t floats(const LongAttention& a, const Plan& layout) {
    const int64_t dim = whole(a.dim, STEP), rows = KEYS + STEP;
    return layout.most * 4 * dim * 32 + (2 * rows + ACROSS) * dim / 2 + 64;
  }

  HalfWorker(const LongAttention& a, const Plan& layout, float* scratch)
      : a(a), layout(layout), tiles(layout.tiles), dim(whole(a.dim, STEP)), amx(tiles_allowed()), configured(amx) {
    const auto take = [&](int64_t floats) { return std::exchange(scratch, scratch + floats); };
    std::fill_n(scratch, floats(a, layout), 0.0f);  // what is read beyond a head's channels and keys must be numbers
    scratch = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(scratch) + 63) / 64 * 64);
    keys = reinterpret_cast<uint16_t*>(take((KEYS + STEP) * dim / 2));
    values = reinterpret_cast<uint16_t*>(take((KEYS + STEP) * dim / 2));
    across = reinterpret_cast<uint16_t*>(take(ACROSS * dim / 2));
    for (int64_t t = 0; t < layout.most; ++t) {
      State s{take(dim * 32), take(dim * 32), take(dim * 32), nullptr, nullptr, {}, {}, 1, -1};
      s.packed = reinterpret_cast<uint32_t*>(take(dim * 16));
      s.aside = reinterpret_cast<uint32_t*>(take(dim * 16));
      states.push_back(s);
    }
    for (int64_t p = 0; p < a.pairs; ++p) {
      adjacent &= a.second[p] == a.first[p] + 1 && a.first[p] % 2 == 0;
      for (const int32_t channel : {a.first[p], a.second[p]}) touched.push_back(channel / 2);
    }
    std::sort(touched.begin(), touched.end());
    touched.erase(std::unique(touched.begin(), touched.end()), touched.end());
  }

  // Tiles [first, last) of one head of one sample.
  void group(int64_t b, int64_t h, int64_t first, int64_t last) {
    for (int64_t t = first; t < last; ++t) begin(states[t - first], tiles[t], b, h);
    for (const std::vector<Stretch>& chunk : layout.chunks) {
      if (!pack(chunk, b, h, first, last)) continue;
      for (int64_t t = first; t < last; ++t) {
        State& s = states[t - first];
        bool striped = false;
        for (const Stretch& each : chunk) striped |= a.level[tiles[t].span * a.spans + each.span] == STRIPE;
        if (!striped) attend(s, tiles[t], chunk, h, 0, s.sides);
        else  // the sides see other keys
          for (int side = 0; side < s.sides; ++side) attend(s, tiles[t], chunk, h, side, 1);
      }
    }
    for (int64_t t = first; t < last; ++t)
      for (int64_t r = 0; r < tiles[t].rows; ++r)
        write(a, b, h, a.start[tiles[t].span] + tiles[t].row + r, states[t - first].total + r / 16 * dim * 16 + r % 16,
              16, 1 / states[t - first].sum[r]);
  }

 private:
  struct State {
    float *query, *turned, *total;  // (2, dim, 16)
    uint32_t *packed, *aside;       // (2, dim / 2, 16) pairs of channels: as they came, and turned
    float most[32], sum[32];
    int sides;
    int32_t turn;                   // what `aside` holds
  };
  struct Segment { int64_t key, place, count; };  // packed keys [key, key + count), scored from slot `place` on

  const LongAttention& a;
  const Plan& layout;
  const std::vector<Tile>& tiles;
  const int64_t dim;  // head_dim rounded up
  const bool amx;
  const Configured configured;
  bool adjacent = true;                  // the channels of each pair lie side by side
  std::vector<int32_t> touched;          // pairs of channels that a turn writes
  uint16_t *keys, *values, *across;      // a chunk by token, and its values by channel
  std::vector<State> states;
  std::vector<int64_t> offset, packed;   // of each stretch of the chunk
  std::vector<Segment> segments;
  alignas(64) float scores[2][SLOTS * 16];
  alignas(64) uint32_t weights[2][SLOTS / 2 * 16];

  void begin(State& s, const Tile& tile, int64_t b, int64_t h) {
    std::fill_n(s.query, dim * 32, 0.0f);
    const float sign = a.scale < 0 ? -1.0f : 1.0f;
    const uint16_t* q = static_cast<const uint16_t*>(a.q.data) + b * a.q.batch + h * a.q.head +
                        (a.start[tile.span] + tile.row) * a.q.token;
    for (int64_t r = 0; r < tile.rows; ++r)
      for (int64_t c = 0; c < a.dim; ++c)
        s.query[r / 16 * dim * 16 + c * 16 + r % 16] = sign * wide(q[r * a.q.token + c]);
    std::copy_n(s.query, dim * 32, s.turned);
    for (int64_t c = 0; c < dim; ++c) repack(s.query, c, s.packed);
    std::copy_n(s.packed, dim * 16, s.aside);
    std::fill_n(s.total, dim * 32, 0.0f);
    s.sides = tile.rows > 16 ? 2 : 1;
    s.turn = -1;
    std::fill_n(s.most, 32, LOW);
    std::fill_n(s.sum, 32, 0.0f);
  }

  static void repack(const float* from, int64_t c, uint32_t* to) {
    _mm512_store_si512(to + c * 16, paired(_mm512_load_ps(from + c * 32), _mm512_load_ps(from + c * 32 + 16)));
  }

  // Copy the keys that a tile of the group sees; false where there are none.
  bool pack(const std::vector<Stretch>& chunk, int64_t b, int64_t h, int64_t first, int64_t last) {
    const int64_t count = pack_runs(a, tiles, chunk, b, first, last, offset, packed,
                                    [&](int64_t token, int64_t keys_of, int64_t place) {
      copy(a.k, b, h, token, keys_of, keys + place * dim);
      copy(a.v, b, h, token, keys_of, values + place * dim);
    });
    if (!count) return false;
    const int64_t most = whole(count, STEP);
    std::fill(values + count * dim, values + most * dim, uint16_t(0));
    for (int64_t c = 0; c < dim; c += 16) {
      for (int64_t l = 0; l < most; l += STEP) {
        __m512i rows[16];
        for (int64_t i = 0; i < 16; ++i) {
          const uint16_t* x = values + (l + 2 * i) * dim + c;
          const __m512i one = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
          const __m512i two = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + dim)));
          rows[i] = _mm512_or_si512(one, _mm512_slli_epi32(two, 16));
        }
        transpose(rows);
        for (int64_t i = 0; i < 16; ++i) _mm512_storeu_si512(across + (c + i) * ACROSS + l, rows[i]);
      }
      for (int64_t i = 0; i < 16; ++i) std::fill_n(across + (c + i) * ACROSS + most, STEP, uint16_t(0));
    }
    return true;
  }

  void copy(const Tensor& t, int64_t b, int64_t h, int64_t token, int64_t count, uint16_t* to) const {
    const uint16_t* from = static_cast<const uint16_t*>(t.data) + b * t.batch + h * t.head + token * t.token;
    for (int64_t l = 0; l < count; ++l) std::copy_n(from + l * t.token, a.dim, to + l * dim);
  }

  // The tile's queries turned for a key span.
  const uint32_t* turn(State& s, int32_t which, int64_t h) const {
    if (which < 0) return s.packed;
    if (which == s.turn) return s.aside;
    s.turn = which;
    const int64_t row = ((a.turn_heads > 1 ? h : 0) * a.turns + which) * a.pairs;
    for (int64_t p = 0; p < a.pairs; ++p) {
      const __m512 cosine = _mm512_set1_ps(a.cosine[row + p]), sine = _mm512_set1_ps(a.sine[row + p]);
      for (int64_t side = 0; side < s.sides; ++side) {
        const int64_t one = (side * dim + a.first[p]) * 16, two = (side * dim + a.second[p]) * 16;
        const __m512 x = _mm512_load_ps(s.query + one), y = _mm512_load_ps(s.query + two);
        const __m512 u = _mm512_fmsub_ps(x, cosine, _mm512_mul_ps(y, sine));
        const __m512 v = _mm512_fmadd_ps(x, sine, _mm512_mul_ps(y, cosine));
        if (adjacent) {
          _mm512_store_si512(s.aside + one / 2, paired(u, v));
        } else {
          _mm512_store_ps(s.turned + one, u);
          _mm512_store_ps(s.turned + two, v);
        }
      }
    }
    for (int64_t side = 0; side < s.sides && !adjacent; ++side)
      for (const int32_t c : touched) repack(s.turned, side * dim / 2 + c, s.aside);
    return s.aside;
  }

  // `sides` sides of a tile, from `side` on, against a chunk.
  void attend(State& s, const Tile& tile, const std::vector<Stretch>& chunk, int64_t h, int side, int sides) {
    segments.clear();
    for (size_t i = 0; i < chunk.size(); ++i) {
      const int64_t pair = tile.span * a.spans + chunk[i].span;
      if (a.level[pair] == NONE || !packed[i]) continue;
      const uint32_t* query = turn(s, a.phase[pair], h) + side * dim * 8;
      const float decay = a.decay ? a.decay[pair] : 1.0f;
      if (a.level[pair] == FULL) {
        cover(query, offset[i], packed[i], nullptr, decay, sides);
        continue;
      }
      const int64_t strip = 2 * (tile.row / 32) + side;
      const uint16_t* bits = a.bits + strip * a.frame;
      int64_t low = 0, high = 0;  // ranges that are close are one
      for (const Range& seen : layout.strips[strip]) {
        const int64_t from = std::max(chunk[i].low, seen.low), to = std::min(chunk[i].high, seen.high);
        if (from >= to) continue;
        if (high && from - high >= GAP) {
          cover(query, offset[i] + low - chunk[i].low, high - low, bits + low, decay, sides);
          high = 0;
        }
        if (!high) low = from;
        high = to;
      }
      if (high) cover(query, offset[i] + low - chunk[i].low, high - low, bits + low, decay, sides);
    }
    if (segments.empty()) return;
    for (int n = 0; n < sides; ++n) soften(s, side + n, n);
    for (const Segment& each : segments)
      product(amx, sides, int(a.dim), across + each.key, ACROSS, weights[0] + each.place * 8, SLOTS * 8,
              whole(each.count, STEP) / 2, s.total + side * dim * 16, dim * 16, true);
  }

  // Score packed keys [key, key + count), which follow those scored before; `bits` say which rows see each of them.
  void cover(const uint32_t* query, int64_t key, int64_t count, const uint16_t* bits, float decay, int sides) {
    if (segments.empty() || key - segments.back().key - segments.back().count >= GAP) {
      const int64_t place = segments.empty() ? 0 : segments.back().place + whole(segments.back().count, STEP);
      segments.push_back({key, place, 0});
    }
    Segment& last = segments.back();
    for (; last.key + last.count < key; ++last.count)
      for (int n = 0; n < sides; ++n) hide(n, last.place + last.count);
    const int64_t at = (last.place + last.count) * 16;
    last.count += count;
    product(amx, sides, int(count), keys + key * dim, dim, query, dim * 8, dim / 2, scores[0] + at, SLOTS * 16, false);
    if (!bits && decay == 1) return;
    const __m512 hidden = _mm512_set1_ps(HIDDEN), factor = _mm512_set1_ps(decay);
    for (int n = 0; n < sides; ++n)
      for (int64_t l = 0; l < count; ++l) {
        float* to = scores[n] + at + l * 16;
        __m512 x = _mm512_load_ps(to);
        x = _mm512_mask_mul_ps(x, _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ), x, factor);
        _mm512_store_ps(to, bits ? _mm512_mask_mov_ps(hidden, bits[l], x) : x);
      }
  }

  void hide(int n, int64_t place) { _mm512_store_ps(scores[n] + place * 16, _mm512_set1_ps(HIDDEN)); }

  // Turn the n-th scores into weights, for the running softmax of a side.
  void soften(State& s, int side, int n) {
    const __m512 scale = _mm512_set1_ps(a.scale < 0 ? -a.scale : a.scale);
    __m512 top[4], sum[4];
    for (int i = 0; i < 4; ++i) top[i] = _mm512_set1_ps(HIDDEN), sum[i] = _mm512_setzero_ps();
    for (const Segment& each : segments) {
      for (int64_t l = each.count; l < whole(each.count, 4); ++l) hide(n, each.place + l);
      const float* x = scores[n] + each.place * 16;
      for (int64_t l = 0; l < each.count; l += 4, x += 64)
        for (int i = 0; i < 4; ++i) top[i] = _mm512_max_ps(_mm512_load_ps(x + i * 16), top[i]);
    }
    const __m512 found = _mm512_mul_ps(_mm512_max_ps(_mm512_max_ps(top[0], top[1]), _mm512_max_ps(top[2], top[3])), scale);
    // A maximum that is outdone by little still serves: 2^8 is no risk, and most chunks then need no new scale.
    const __m512 old = _mm512_loadu_ps(s.most + side * 16), before = _mm512_loadu_ps(s.sum + side * 16);
    const __mmask16 grown = _mm512_cmp_ps_mask(found, _mm512_add_ps(old, _mm512_set1_ps(8.0f)), _CMP_GT_OQ);
    const __m512 most = _mm512_mask_mov_ps(old, grown, found);
    for (const Segment& each : segments) {
      const float* x = scores[n] + each.place * 16;
      uint32_t* to = weights[n] + each.place * 8;
      for (int64_t l = 0; l < each.count; l += 4, x += 64, to += 32) {
        __m512 p[4];
        for (int i = 0; i < 4; ++i) {
          p[i] = short_exp2(_mm512_fmsub_ps(_mm512_load_ps(x + i * 16), scale, most));
          sum[i] = _mm512_add_ps(sum[i], p[i]);
        }
        _mm512_store_si512(to, paired(p[0], p[1]));
        _mm512_store_si512(to + 16, paired(p[2], p[3]));
      }
      for (int64_t l = whole(each.count, 4); l < whole(each.count, STEP); l += 2, to += 16)
        _mm512_store_si512(to, _mm512_setzero_si512());
    }
    __m512 total = _mm512_add_ps(_mm512_add_ps(sum[0], sum[1]), _mm512_add_ps(sum[2], sum[3]));
    if (grown) {
      const __m512 keep = short_exp2(_mm512_sub_ps(old, most));
      total = _mm512_fmadd_ps(before, keep, total);
      float* x = s.total + side * dim * 16;
      for (int64_t c = 0; c < dim; ++c, x += 16) _mm512_store_ps(x, _mm512_mul_ps(_mm512_load_ps(x), keep));
      _mm512_storeu_ps(s.most + side * 16, most);
    } else {
      total = _mm512_add_ps(before, total);
    }
    _mm512_storeu_ps(s.sum + side * 16, total);
  }
};

}  // namespace

#endif
