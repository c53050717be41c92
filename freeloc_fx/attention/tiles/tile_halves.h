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
#include <cstring>
#include <utility>
#include <vector>

#include "tile_layout.h"

#if defined(__AVX512BF16__) && defined(__AVX512BW__)
#define FREELOC_HALVES

#include <immintrin.h>

#if defined(__AMX_BF16__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

constexpr int STEP = 32, GAP = 16;       // keys of a product; fewer between two ranges are scored and hidden
constexpr int ACROSS = KEYS + 2 * STEP;  // values of a channel
constexpr int SLOTS = KEYS + (KEYS / GAP + 1) * STEP + GAP;

inline int64_t whole(int64_t x, int64_t of) { return (x + of - 1) / of * of; }

// Two vectors as pairs of bfloat16 in each lane, the first in the lower half.
inline __m512i paired(__m512 first, __m512 second) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                         5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(second, first));
}

// 2^x for x <= 8, relative error 1e-4: the result is rounded to 8 bits. NaN stays NaN.
inline __m512 short_exp2(__m512 x) {
  const __m512 shift = _mm512_set1_ps(12582912.0f);
  x = _mm512_max_ps(_mm512_set1_ps(-126.0f), x);  // the second where one is NaN
  const __m512 whole = _mm512_add_ps(x, shift), f = _mm512_sub_ps(x, _mm512_sub_ps(whole, shift));
  __m512 p = _mm512_fmadd_ps(f, _mm512_set1_ps(5.517e-2f), _mm512_set1_ps(2.4261e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.9326e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.99925e-1f));
  return _mm512_castsi512_ps(
      _mm512_add_epi32(_mm512_castps_si512(p), _mm512_slli_epi32(_mm512_castps_si512(whole), 23)));
}

// Transpose 16 x 16 numbers of 32 bits.
inline void transpose(__m512i* r) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]), t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; ++j) {
      r[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + j + 2]);
      r[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + j + 2]);
    }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88), t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88), t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 8; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
  }
}

// c[m, :] += sum over k of a[m * stride + k] . b[k, :], pairs of bfloat16, rows of 16; without `add` c is written.
template <int M>
[[gnu::noinline]] void dots(const uint16_t* a, int64_t stride, const uint32_t* b, int64_t pairs, float* c, bool add) {
  __m512 sum[M];
  for (int m = 0; m < M; ++m) sum[m] = add ? _mm512_loadu_ps(c + m * 16) : _mm512_setzero_ps();
  for (int64_t k = 0; k < pairs; ++k) {
    const __m512bh row = (__m512bh)_mm512_loadu_si512(b + k * 16);
    for (int m = 0; m < M; ++m) {
      int32_t pair;
      std::memcpy(&pair, a + m * stride + 2 * k, sizeof pair);
      sum[m] = _mm512_dpbf16_ps(sum[m], (__m512bh)_mm512_set1_epi32(pair), row);
    }
  }
  for (int m = 0; m < M; ++m) _mm512_storeu_ps(c + m * 16, sum[m]);
}

#if defined(__AMX_BF16__) && defined(__linux__)

// Whether the system lets this process use AMX's tiles, which it has to be asked for.
inline bool tiles_allowed() {
  static const bool allowed = !syscall(SYS_arch_prctl, 0x1023, 18);  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return allowed;
}

// Tiles of 16 rows of 64 bytes, as long as this lives.
class Configured {
 public:
  explicit Configured(bool on) : on(on) {
    if (!on) return;
    alignas(64) uint8_t config[64] = {1};
    for (int t = 0; t < 8; ++t) config[16 + 2 * t] = 64, config[48 + t] = 16;
    __asm__ volatile("" : : "r"(config) : "memory");
    _tile_loadconfig(config);
  }
  ~Configured() {
    if (on) _tile_release();
  }
  Configured(const Configured&) = delete;

 private:
  const bool on;
};

// `dots` of 16 M rows, 16 pairs at a time; rows of c that are not asked for must be there. The intrinsics want literals,
// and GCC's loads do not say that they read memory.
template <int M>
[[gnu::noinline]] void tiled(const uint16_t* a, int64_t stride, const uint32_t* b, int64_t pairs, float* c, bool add) {
  __asm__ volatile("" : : : "memory");
  const int64_t row = stride * 2, block = stride * 16;
  if (add) {
    _tile_loadd(0, c, 64);
    if constexpr (M > 1) _tile_loadd(1, c + 256, 64);
    if constexpr (M > 2) _tile_loadd(2, c + 512, 64);
    if constexpr (M > 3) _tile_loadd(3, c + 768, 64);
  } else {
    _tile_zero(0);
    if constexpr (M > 1) _tile_zero(1);
    if constexpr (M > 2) _tile_zero(2);
    if constexpr (M > 3) _tile_zero(3);
  }
  for (int64_t k = 0; k < pairs; k += 16) {
    const uint16_t* x = a + 2 * k;
    _tile_loadd(4, b + k * 16, 64);
    _tile_loadd(5, x, row);
    _tile_dpbf16ps(0, 5, 4);
    if constexpr (M > 1) {
      _tile_loadd(6, x + block, row);
      _tile_dpbf16ps(1, 6, 4);
    }
    if constexpr (M > 2) {
      _tile_loadd(7, x + 2 * block, row);
      _tile_dpbf16ps(2, 7, 4);
    }
    if constexpr (M > 3) {
      _tile_loadd(5, x + 3 * block, row);
      _tile_dpbf16ps(3, 5, 4);
    }
  }
  _tile_stored(0, c, 64);
  if constexpr (M > 1) _tile_stored(1, c + 256, 64);
  if constexpr (M > 2) _tile_stored(2, c + 512, 64);
  if constexpr (M > 3) _tile_stored(3, c + 768, 64);
}

// c (rows x 16) = or += a (rows x 2 pairs) b (pairs x 16), the rows rounded up to 16.
inline void product(bool amx, int rows, const uint16_t* a, int64_t stride, const uint32_t* b, int64_t pairs, float* c,
                    bool add) {
  if (amx)
    return blocked<4>((rows + 15) / 16, [&](auto m, int first) {
      tiled<m>(a + first * 16 * stride, stride, b, pairs, c + first * 256, add);
    });
  blocked<14>(rows, [&](auto m, int first) { dots<m>(a + first * stride, stride, b, pairs, c + first * 16, add); });
}

#else

inline bool tiles_allowed() { return false; }
struct Configured { explicit Configured(bool) {} };
inline void product(bool, int rows, const uint16_t* a, int64_t stride, const uint32_t* b, int64_t pairs, float* c,
                    bool add) {
  blocked<14>(rows, [&](auto m, int first) { dots<m>(a + first * stride, stride, b, pairs, c + first * 16, add); });
}

#endif

class HalfWorker {
 public:
  using Plan = Layout<16>;

  static int64_t floats(const LongAttention& a, const Plan& layout) {
    const int64_t dim = whole(a.dim, STEP), rows = KEYS + STEP;
    return layout.most * 4 * dim * 16 + (2 * rows + ACROSS) * dim / 2 + 64;
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
      State s{take(dim * 16), take(dim * 16), take(dim * 16), nullptr, nullptr, {}, {}, -1};
      s.packed = reinterpret_cast<uint32_t*>(take(dim * 8));
      s.aside = reinterpret_cast<uint32_t*>(take(dim * 8));
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
      for (int64_t t = first; t < last; ++t) attend(states[t - first], tiles[t], chunk, h);
    }
    for (int64_t t = first; t < last; ++t)
      for (int64_t r = 0; r < tiles[t].rows; ++r)
        write(a, b, h, a.start[tiles[t].span] + tiles[t].row + r, &states[t - first].total[r], 16,
              1 / states[t - first].sum[r]);
  }

 private:
  struct State {
    float *query, *turned, *total;  // (dim, 16)
    uint32_t *packed, *aside;       // (dim / 2, 16) pairs of channels: as they came, and turned
    float most[16], sum[16];
    int32_t turn;  // what `aside` holds
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
  alignas(64) float scores[SLOTS * 16];
  alignas(64) uint32_t weights[SLOTS / 2 * 16];

  void begin(State& s, const Tile& tile, int64_t b, int64_t h) {
    std::fill_n(s.query, dim * 16, 0.0f);
    const float sign = a.scale < 0 ? -1.0f : 1.0f;
    const int64_t at = b * a.q.batch + h * a.q.head + (a.start[tile.span] + tile.row) * a.q.token;
    for (int64_t r = 0; r < tile.rows; ++r)
      for (int64_t c = 0; c < a.dim; ++c)
        s.query[c * 16 + r] = sign * wide(static_cast<const uint16_t*>(a.q.data)[at + r * a.q.token + c]);
    std::copy_n(s.query, dim * 16, s.turned);
    for (int64_t c = 0; c < dim / 2; ++c) repack(s.query, c, s.packed);
    std::copy_n(s.packed, dim * 8, s.aside);
    std::fill_n(s.total, dim * 16, 0.0f);
    s.turn = -1;
    std::fill_n(s.most, 16, LOW);
    std::fill_n(s.sum, 16, 0.0f);
  }

  static void repack(const float* from, int64_t c, uint32_t* to) {
    _mm512_storeu_si512(to + c * 16, paired(_mm512_loadu_ps(from + c * 32), _mm512_loadu_ps(from + c * 32 + 16)));
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
      const int64_t one = a.first[p] * 16, two = a.second[p] * 16;
      const __m512 x = _mm512_loadu_ps(s.query + one), y = _mm512_loadu_ps(s.query + two);
      const __m512 u = _mm512_fmsub_ps(x, cosine, _mm512_mul_ps(y, sine));
      const __m512 v = _mm512_fmadd_ps(x, sine, _mm512_mul_ps(y, cosine));
      if (adjacent) {
        _mm512_storeu_si512(s.aside + one / 2, paired(u, v));
      } else {
        _mm512_storeu_ps(s.turned + one, u);
        _mm512_storeu_ps(s.turned + two, v);
      }
    }
    if (!adjacent)
      for (const int32_t c : touched) repack(s.turned, c, s.aside);
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
        cover(query, offset[i], packed[i], nullptr, decay);
        continue;
      }
      const int64_t strip = tile.row / 16;
      int64_t low = 0, high = 0;  // ranges that are close are one
      for (const Range& seen : layout.strips[strip]) {
        const int64_t from = std::max(chunk[i].low, seen.low), to = std::min(chunk[i].high, seen.high);
        if (from >= to) continue;
        if (high && from - high >= GAP) {
          cover(query, offset[i] + low - chunk[i].low, high - low, a.bits + strip * a.frame + low, decay);
          high = 0;
        }
        if (!high) low = from;
        high = to;
      }
      if (high) cover(query, offset[i] + low - chunk[i].low, high - low, a.bits + strip * a.frame + low, decay);
    }
    if (!segments.empty()) add(s);
  }

  // Score packed keys [key, key + count), which follow those scored before; `bits` say which rows see each of them.
  void cover(const uint32_t* query, int64_t key, int64_t count, const uint16_t* bits, float decay) {
    if (segments.empty() || key - segments.back().key - segments.back().count >= GAP) {
      const int64_t place = segments.empty() ? 0 : segments.back().place + whole(segments.back().count, STEP);
      segments.push_back({key, place, 0});
    }
    Segment& last = segments.back();
    for (; last.key + last.count < key; ++last.count) hide(last.place + last.count);
    float* to = scores + (last.place + last.count) * 16;
    product(amx, int(count), keys + key * dim, dim, query, dim / 2, to, false);
    const __m512 hidden = _mm512_set1_ps(HIDDEN), factor = _mm512_set1_ps(decay);
    for (int64_t l = 0; l < count && (bits || decay != 1); ++l) {
      __m512 x = _mm512_load_ps(to + l * 16);
      x = _mm512_mask_mul_ps(x, _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ), x, factor);
      _mm512_store_ps(to + l * 16, bits ? _mm512_mask_mov_ps(hidden, bits[l], x) : x);
    }
    last.count += count;
  }

  void hide(int64_t place) { _mm512_store_ps(scores + place * 16, _mm512_set1_ps(HIDDEN)); }

  // Add the scored keys to the running softmax.
  void add(State& s) {
    const __m512 scale = _mm512_set1_ps(a.scale < 0 ? -a.scale : a.scale);
    __m512 top[4], sum[4];
    for (int i = 0; i < 4; ++i) top[i] = _mm512_set1_ps(HIDDEN), sum[i] = _mm512_setzero_ps();
    for (const Segment& each : segments) {
      for (int64_t l = each.count; l < whole(each.count, 4); ++l) hide(each.place + l);
      for (int64_t l = 0; l < each.count; l += 4)
        for (int i = 0; i < 4; ++i) top[i] = _mm512_max_ps(_mm512_load_ps(scores + (each.place + l + i) * 16), top[i]);
    }
    const __m512 found = _mm512_mul_ps(
        _mm512_max_ps(_mm512_max_ps(top[0], top[1]), _mm512_max_ps(top[2], top[3])), scale);
    // A maximum that is outdone by little still serves: 2^8 is no risk, and most chunks then need no new scale.
    const __m512 old = _mm512_loadu_ps(s.most), limit = _mm512_add_ps(old, _mm512_set1_ps(8.0f));
    const __mmask16 grown = _mm512_cmp_ps_mask(found, limit, _CMP_GT_OQ);
    const __m512 most = _mm512_mask_mov_ps(old, grown, found);
    for (const Segment& each : segments) {
      const float* x = scores + each.place * 16;
      uint32_t* to = weights + each.place * 8;
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
    const __m512 before = _mm512_loadu_ps(s.sum);
    if (grown) {
      const __m512 keep = short_exp2(_mm512_sub_ps(old, most));
      total = _mm512_fmadd_ps(before, keep, total);
      for (int64_t c = 0; c < dim; ++c)
        _mm512_storeu_ps(s.total + c * 16, _mm512_mul_ps(_mm512_loadu_ps(s.total + c * 16), keep));
      _mm512_storeu_ps(s.most, most);
    } else {
      total = _mm512_add_ps(before, total);
    }
    _mm512_storeu_ps(s.sum, total);
    for (const Segment& each : segments)
      product(amx, int(a.dim), across + each.key, ACROSS, weights + each.place * 8, whole(each.count, STEP) / 2, s.total,
              true);
  }
};

}  // namespace

#endif
