// Vectors of floats and the register blocks of `tile_kernel.cpp`. No intrinsics: GCC's and clang's vector extension.

#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace {

#if defined(__AVX512F__)
constexpr int W = 16, DEEP = 14;  // lanes of a vector; rows of a register block of a whole tile
#elif defined(__AVX__)
constexpr int W = 8, DEEP = 6;
#elif defined(__aarch64__)
constexpr int W = 4, DEEP = 5;
#else
constexpr int W = 4, DEEP = 2;
#endif

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

// Everywhere R (or `rows`) is the query rows of a tile, R / W the vectors that hold them.

constexpr int ALONG = DEEP < 6 ? DEEP : 6;  // diagonals of a register block
constexpr int PANEL = W == 16 ? 8 : 32;  // channels of a key that lie side by side

// Scores of M keys for V vectors of query rows: c[m, :] = sum over k of a[m, k] * b[k, :], in `rows` floats.
// Keys lie in panels of `stride` floats, so that all of a block's are near one address: 14 addresses are no registers.
template <int M, int V>
[[gnu::noinline]] void scores_of(const float* a, int64_t stride, int64_t dim, const float* b, float* c,
                               int64_t rows) {
  Vec sum[M][V] = {};
  for (int64_t first = 0; first < dim; first += PANEL, a += stride) {
    const int64_t last = first + PANEL < dim ? first + PANEL : dim;
    const float* x = a;
    for (int64_t k = first; k < last; ++k, ++x, b += rows) {
      Vec row[V];
      for (int v = 0; v < V; ++v) row[v] = load(b + v * W);
      for (int m = 0; m < M; ++m)
        for (int v = 0; v < V; ++v) sum[m][v] += splat(x[m * PANEL]) * row[v];
    }
  }
  for (int m = 0; m < M; ++m)
    for (int v = 0; v < V; ++v) store(c + m * rows + v * W, sum[m][v]);
}

// M channels of weighted values: c[m, :] += sum over k of a[at[k] + m] * b[k, :].
template <int M, int V>
[[gnu::noinline]] void values_of(const float* a, const int32_t* at, int64_t keys, const float* b, float* c,
                               int64_t rows) {
  Vec sum[M][V];
  for (int m = 0; m < M; ++m)
    for (int v = 0; v < V; ++v) sum[m][v] = load(c + m * rows + v * W);
  for (int64_t k = 0; k < keys; ++k) {
    const float* x = a + at[k];
    if constexpr (V == 1) __asm__("" : "+r"(x));  // one register: with an index, a product is two steps of a processor
    Vec row[V];
    for (int v = 0; v < V; ++v) row[v] = load(b + k * rows + v * W);
    for (int m = 0; m < M; ++m)
      for (int v = 0; v < V; ++v) sum[m][v] += splat(x[m]) * row[v];
  }
  for (int m = 0; m < M; ++m)
    for (int v = 0; v < V; ++v) store(c + m * rows + v * W, sum[m][v]);
}

template <int M, class Body>
void pick(int size, int first, const Body& body) {
  if (size == M) return body(std::integral_constant<int, M>{}, first);
  if constexpr (M > 1) pick<M - 1>(size, first, body);
}

// `body` with a compile-time count, over `rows` rows in blocks of nearly equal size (a small one waits for its sums).
template <int MOST, class Body>
void blocked(int rows, const Body& body) {
  const int blocks = (rows + MOST - 1) / MOST;
  for (int i = 0, first = 0; i < blocks; ++i) {
    const int last = rows * (i + 1) / blocks;
    pick<MOST>(last - first, first, body);
    first = last;
  }
}

// Rows of a register block for V vectors; beyond 14 nothing is gained.
template <int R, int V>
constexpr int block = DEEP * (R / W) / V > 14 ? 14 : DEEP * (R / W) / V;

template <int R, int V>
void score(int keys, const float* a, int64_t stride, int64_t dim, const float* b, float* c) {
  blocked<block<R, V>>(keys, [&](auto m, int first) {
    scores_of<m, V>(a + first * PANEL, stride, dim, b, c + first * R, R);
  });
}

template <int R, int V>
void weigh(int dim, const float* a, const int32_t* at, int64_t keys, const float* b, float* c) {
  blocked<block<R, V>>(dim, [&](auto m, int first) { values_of<m, V>(a + first, at, keys, b, c + first * R, R); });
}

// Scores of M diagonals: c[m, r] = sum over k of b[k, r] * a[m][k * stride + r].
template <int R, int M>
[[gnu::noinline]] void diagonal_scores(const float* const* a, int64_t stride, const float* b, int64_t dim, float* c) {
  constexpr int N = R / W;
  Vec sum[M][N] = {};
  for (int64_t k = 0; k < dim; ++k)
    for (int n = 0; n < N; ++n) {
      const Vec row = load(b + k * R + n * W);
      for (int m = 0; m < M; ++m) sum[m][n] += load(a[m] + k * stride + n * W) * row;
    }
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) store(c + m * R + n * W, sum[m][n]);
}

// Values weighted along M diagonals: c[k, r] += sum over m of b[m, r] * a[m][k * stride + r].
template <int R, int M>
[[gnu::noinline]] void diagonal_values(const float* const* a, int64_t stride, const float* b, int64_t dim, float* c) {
  constexpr int N = R / W;
  Vec row[M][N];
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) row[m][n] = load(b + m * R + n * W);
  for (int64_t k = 0; k < dim; ++k)
    for (int n = 0; n < N; ++n) {
      Vec sum = load(c + k * R + n * W);
      for (int m = 0; m < M; ++m) sum += load(a[m] + k * stride + n * W) * row[m][n];
      store(c + k * R + n * W, sum);
    }
}

}  // namespace
