// Products of bfloat16 with float32 sums: AMX's tiles, or AVX-512's dot products of pairs. Empty for other processors.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "tile_layout.h"

#if defined(__AVX512BF16__) && defined(__AVX512BW__)
#define FREELOC_HALVES

#include <immintrin.h>

#if defined(__AMX_BF16__) && defined(__linux__)
#define FREELOC_AMX

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
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; ++j) {
      r[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + j + 2]);
      r[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + j + 2]);
    }
  for (int i = 0; i < 16; i += 8)
    for (int j = i; j < i + 4; ++j) {
      t[j] = _mm512_shuffle_i32x4(r[j], r[j + 4], 0x88);
      t[j + 4] = _mm512_shuffle_i32x4(r[j], r[j + 4], 0xdd);
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

#if defined(FREELOC_AMX)

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

// `dots` of 16 M rows, 16 pairs at a time; rows of c that are not asked for must be there. The intrinsics want
// literals, and GCC's loads do not say that they read memory.
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

// `tiled` for two right factors and results, which lie `across_b` and `across_c` apart: a tile of `a` serves both.
template <int M>
[[gnu::noinline]] void tiled_both(const uint16_t* a, int64_t stride, const uint32_t* b, int64_t across_b, int64_t pairs,
                                  float* c, int64_t across_c, bool add) {
  __asm__ volatile("" : : : "memory");
  const int64_t row = stride * 2, block = stride * 16;
  float* other = c + across_c;
  if (add) {
    _tile_loadd(0, c, 64);
    _tile_loadd(1, other, 64);
    if constexpr (M > 1) {
      _tile_loadd(2, c + 256, 64);
      _tile_loadd(3, other + 256, 64);
    }
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t k = 0; k < pairs; k += 16) {
    _tile_loadd(4, b + k * 16, 64);
    _tile_loadd(6, a + 2 * k, row);
    _tile_dpbf16ps(0, 6, 4);
    _tile_loadd(5, b + across_b + k * 16, 64);
    _tile_dpbf16ps(1, 6, 5);
    if constexpr (M > 1) {
      _tile_loadd(7, a + block + 2 * k, row);
      _tile_dpbf16ps(2, 7, 4);
      _tile_dpbf16ps(3, 7, 5);
    }
  }
  _tile_stored(0, c, 64);
  _tile_stored(1, other, 64);
  if constexpr (M > 1) {
    _tile_stored(2, c + 256, 64);
    _tile_stored(3, other + 256, 64);
  }
}

#else

inline bool tiles_allowed() { return false; }
struct Configured { explicit Configured(bool) {} };

#endif

// c (rows, 16) = or += a (rows, 2 pairs) b (pairs, 16) for one or two of b and c; rows may be rounded up to 16.
inline void product([[maybe_unused]] bool amx, int sides, int rows, const uint16_t* a, int64_t stride,
                    const uint32_t* b, int64_t across_b, int64_t pairs, float* c, int64_t across_c, bool add) {
#if defined(FREELOC_AMX)
  if (amx && sides == 2)
    return blocked<2>((rows + 15) / 16, [&](auto m, int first) {
      tiled_both<m>(a + first * 16 * stride, stride, b, across_b, pairs, c + first * 256, across_c, add);
    });
  if (amx)
    return blocked<4>((rows + 15) / 16, [&](auto m, int first) {
      tiled<m>(a + first * 16 * stride, stride, b, pairs, c + first * 256, add);
    });
#endif
  for (int side = 0; side < sides; ++side, b += across_b, c += across_c)
    blocked<14>(rows, [&](auto m, int first) { dots<m>(a + first * stride, stride, b, pairs, c + first * 16, add); });
}

}  // namespace

#endif
