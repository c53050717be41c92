// The kernel in bfloat16, on processors that multiply bfloat16 faster than float32: with AMX's tiles, or AVX-512's dot
// products of pairs.
//
// Work is cut as in tile_floats.h, and rows lie in vector lanes as there. Products are of bfloat16 with float32 sums,
// as in torch's own attention: scores are keys (as they are in memory) times turned queries, the result is values (by
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
    for (size_t strip = 0; strip < layout.strips.size(); strip += 2) {
      std::vector<Range> both = layout.strips[strip], joined;
      both.insert(both.end(), layout.strips[strip + 1].begin(), layout.strips[strip + 1].end());
      std::sort(both.begin(), both.end(), [](const Range& x, const Range& y) { return x.low < y.low; });
      for (const Range& each : both) {
        if (joined.empty() || each.low - joined.back().high >= GAP) joined.push_back(each);
        else joined.back().high = std::max(joined.back().high, each.high);
      }
      ranges.push_back(joined);
    }
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
  // Packed keys [key, key + count), scored from slot `place` on; a side sees some of [low, high) of them, and no other.
  struct Segment { int64_t key, place, count, low[2], high[2]; };

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
  std::vector<std::vector<Range>> ranges;  // what each tile of a frame sees under STRIPE; those that are close are one
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

  void attend(State& s, const Tile& tile, const std::vector<Stretch>& chunk, int64_t h) {
    segments.clear();
    for (size_t i = 0; i < chunk.size(); ++i) {
      const int64_t pair = tile.span * a.spans + chunk[i].span;
      if (a.level[pair] == NONE || !packed[i]) continue;
      const uint32_t* query = turn(s, a.phase[pair], h);
      const float decay = a.decay ? a.decay[pair] : 1.0f;
      if (a.level[pair] == FULL) {
        cover(query, offset[i], packed[i], s.sides);
        if (decay != 1)
          for (int n = 0; n < s.sides; ++n) mask(n, packed[i], 0, packed[i], nullptr, decay);
        continue;
      }
      const int64_t strip = tile.row / 16;
      for (const Range& range : ranges[tile.row / 32]) {
        const int64_t low = std::max(chunk[i].low, range.low), high = std::min(chunk[i].high, range.high);
        if (low >= high) continue;
        cover(query, offset[i] + low - chunk[i].low, high - low, s.sides);
        for (int n = 0; n < s.sides; ++n) {
          const std::vector<Range>& seen = layout.strips[strip + n];
          const int64_t from = seen.empty() ? high : std::max(low, seen.front().low);
          const int64_t to = seen.empty() ? high : std::min(high, seen.back().high);
          mask(n, high - low, from - low, to - low, a.bits + (strip + n) * a.frame + low, decay);
        }
      }
    }
    if (segments.empty()) return;
    for (int n = 0; n < s.sides; ++n) soften(s, n);
    for (const Segment& each : segments)
      product(amx, s.sides, int(a.dim), across + each.key, ACROSS, weights[0] + each.place * 8, SLOTS * 8,
              whole(each.count, STEP) / 2, s.total, dim * 16, true);
  }

  // Score packed keys [key, key + count), which follow those scored before.
  void cover(const uint32_t* query, int64_t key, int64_t count, int sides) {
    if (segments.empty() || key - segments.back().key - segments.back().count >= GAP) {
      const int64_t place = segments.empty() ? 0 : segments.back().place + whole(segments.back().count, STEP);
      segments.push_back({key, place, 0, {SLOTS, SLOTS}, {0, 0}});
    }
    Segment& last = segments.back();
    for (; last.key + last.count < key; ++last.count)
      for (int n = 0; n < sides; ++n) hide(n, last.place + last.count);
    product(amx, sides, int(count), keys + key * dim, dim, query, dim * 8, dim / 2,
            scores[0] + (last.place + last.count) * 16, SLOTS * 16, false);
    for (int n = 0; n < sides; ++n) {
      last.low[n] = std::min(last.low[n], last.count);
      last.high[n] = last.count + count;
    }
    last.count += count;
  }

  // Of the `count` keys scored last a side sees some of [from, to): `bits` say which rows see which, null for all.
  void mask(int n, int64_t count, int64_t from, int64_t to, const uint16_t* bits, float decay) {
    Segment& last = segments.back();
    const int64_t begin = last.count - count;
    from = std::min(from, count), to = std::max(from, to);
    // Slots outside of what a side sees are not softened; between two parts of it they are hidden.
    if (last.low[n] == begin) last.low[n] += from;
    else
      for (int64_t l = 0; l < from; ++l) hide(n, last.place + begin + l);
    for (int64_t l = to; l < count; ++l) hide(n, last.place + begin + l);
    last.high[n] = begin + to;
    const __m512 hidden = _mm512_set1_ps(HIDDEN), factor = _mm512_set1_ps(decay);
    for (int64_t l = from; l < to; ++l) {
      float* x = scores[n] + (last.place + begin + l) * 16;
      __m512 y = _mm512_load_ps(x);
      y = _mm512_mask_mul_ps(y, _mm512_cmp_ps_mask(y, _mm512_setzero_ps(), _CMP_GT_OQ), y, factor);
      _mm512_store_ps(x, bits ? _mm512_mask_mov_ps(hidden, bits[l], y) : y);
    }
  }

  void hide(int n, int64_t place) { _mm512_store_ps(scores[n] + place * 16, _mm512_set1_ps(HIDDEN)); }

  // Turn a side's scores into weights, for its running softmax.
  void soften(State& s, int n) {
    const __m512 scale = _mm512_set1_ps(a.scale < 0 ? -a.scale : a.scale);
    __m512 top[4], sum[4];
    for (int i = 0; i < 4; ++i) top[i] = _mm512_set1_ps(HIDDEN), sum[i] = _mm512_setzero_ps();
    for (Segment& each : segments) {  // four at a time
      each.low[n] = std::min(each.low[n], each.high[n]);
      while (each.low[n] % 4) hide(n, each.place + --each.low[n]);
      for (; each.high[n] % 4; ++each.high[n])
        if (each.high[n] >= each.count) hide(n, each.place + each.high[n]);
      const float* x = scores[n] + (each.place + each.low[n]) * 16;
      for (int64_t l = each.low[n]; l < each.high[n]; l += 4, x += 64)
        for (int i = 0; i < 4; ++i) top[i] = _mm512_max_ps(_mm512_load_ps(x + i * 16), top[i]);
    }
    const __m512 highest = _mm512_max_ps(_mm512_max_ps(top[0], top[1]), _mm512_max_ps(top[2], top[3]));
    const __m512 found = _mm512_mul_ps(highest, scale);
    // A maximum that is outdone by little still serves: 2^8 is no risk, and most chunks then need no new scale.
    const __m512 old = _mm512_loadu_ps(s.most + n * 16), before = _mm512_loadu_ps(s.sum + n * 16);
    const __mmask16 grown = _mm512_cmp_ps_mask(found, _mm512_add_ps(old, _mm512_set1_ps(8.0f)), _CMP_GT_OQ);
    const __m512 most = _mm512_mask_mov_ps(old, grown, found);
    for (const Segment& each : segments) {
      const float* x = scores[n] + (each.place + each.low[n]) * 16;
      uint32_t* to = weights[n] + each.place * 8;
      int64_t l = 0;
      for (; l < each.low[n]; l += 2, to += 16) _mm512_store_si512(to, _mm512_setzero_si512());
      for (; l < each.high[n]; l += 4, x += 64, to += 32) {
        __m512 p[4];
        for (int i = 0; i < 4; ++i) {
          p[i] = short_exp2(_mm512_fmsub_ps(_mm512_load_ps(x + i * 16), scale, most));
          sum[i] = _mm512_add_ps(sum[i], p[i]);
        }
        _mm512_store_si512(to, paired(p[0], p[1]));
        _mm512_store_si512(to + 16, paired(p[2], p[3]));
      }
      for (; l < whole(each.count, STEP); l += 2, to += 16) _mm512_store_si512(to, _mm512_setzero_si512());
    }
    __m512 total = _mm512_add_ps(_mm512_add_ps(sum[0], sum[1]), _mm512_add_ps(sum[2], sum[3]));
    if (grown) {
      const __m512 keep = short_exp2(_mm512_sub_ps(old, most));
      total = _mm512_fmadd_ps(before, keep, total);
      float* x = s.total + n * dim * 16;
      for (int64_t c = 0; c < dim; ++c, x += 16) _mm512_store_ps(x, _mm512_mul_ps(_mm512_load_ps(x), keep));
      _mm512_storeu_ps(s.most + n * 16, most);
    } else {
      total = _mm512_add_ps(before, total);
    }
    _mm512_storeu_ps(s.sum + n * 16, total);
  }
};

}  // namespace

#endif
