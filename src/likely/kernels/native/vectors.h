// Registers of floats by the vector extensions of GCC and Clang; LANES floats each.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#ifdef __AVX512F__
#include <immintrin.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#endif

#include "rows.h"

namespace {

typedef float F __attribute__((vector_size(4 * LANES)));
typedef int32_t I __attribute__((vector_size(4 * LANES)));
typedef uint32_t U __attribute__((vector_size(4 * LANES)));
typedef uint16_t H __attribute__((vector_size(2 * LANES)));
typedef uint16_t bf16;

const float INF = __builtin_inff();

inline int thread_number() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

inline F all(float x) { return F{} + x; }
inline F bits(I x) { F y; std::memcpy(&y, &x, sizeof y); return y; }
inline I ints(F x) { I y; std::memcpy(&y, &x, sizeof y); return y; }
inline F where(I mask, F a, F b) { return bits((mask & ints(a)) | (~mask & ints(b))); }
inline F only(I mask, F a) { return bits(mask & ints(a)); }  // 0 elsewhere, whatever stands there

inline F load(const float* p) { F v; std::memcpy(&v, p, sizeof v); return v; }
inline F load(const bf16* p) {
  H h;
  std::memcpy(&h, p, sizeof h);
  const U u = __builtin_convertvector(h, U) << 16;
  F v;
  std::memcpy(&v, &u, sizeof v);
  return v;
}
inline void store(float* p, F v) { std::memcpy(p, &v, sizeof v); }
inline void store(bf16* p, F v) {
#ifdef __AVX512BF16__
  const __m256bh h = _mm512_cvtneps_pbh((__m512)v);
  std::memcpy(p, &h, sizeof h);
#else
  U u;
  std::memcpy(&u, &v, sizeof u);
  const U nan = (U)(v != v);
  u = (u + 0x7fff + ((u >> 16) & 1)) >> 16;  // to the nearest, ties to even
  const H h = __builtin_convertvector((u & ~nan) | (nan & 0x7fc0), H);
  std::memcpy(p, &h, sizeof h);
#endif
}
inline float get(const float* p) { return *p; }
inline float get(const bf16* p) { const uint32_t u = (uint32_t)*p << 16; float f; std::memcpy(&f, &u, 4); return f; }
inline void put(float* p, float v) { *p = v; }
inline void put(bf16* p, float v) { bf16 h[LANES]; store(h, all(v)); *p = h[0]; }

// The register of a row at class j; in the row's tail the classes beyond C are `fill`, and are not written.
template <bool TAIL, class T> inline F take(const T* p, int64_t j, int64_t C, float fill) {
  if constexpr (TAIL) {
    float t[LANES];
    for (int64_t k = 0; k < LANES; k++) t[k] = j + k < C ? get(p + j + k) : fill;
    return load(t);
  } else {
    return load(p + j);
  }
}
template <bool TAIL, class T> inline void give(T* p, int64_t j, int64_t C, F v) {
  if constexpr (TAIL) {
    T t[LANES];
    store(t, v);
    for (int64_t k = 0; j + k < C; k++) p[j + k] = t[k];
  } else {
    store(p + j, v);
  }
}
template <bool TAIL> inline F inside(int64_t j, int64_t C, float x) {
  F v = all(x);
  if constexpr (TAIL) for (int64_t k = 0; k < LANES; k++) if (j + k >= C) v[k] = 0;
  return v;
}

// A float32 held as two planes of 16 bits.
template <bool TAIL> inline F joined(const uint16_t* high, const uint16_t* low, int64_t j, int64_t C) {
  uint16_t h[LANES] = {}, l[LANES] = {};
  const int64_t n = TAIL ? C - j : LANES;
  for (int64_t k = 0; k < n; k++) h[k] = high[j + k], l[k] = low[j + k];
  H a, b;
  std::memcpy(&a, h, sizeof a);
  std::memcpy(&b, l, sizeof b);
  return bits((I)((__builtin_convertvector(a, U) << 16) | __builtin_convertvector(b, U)));
}
template <bool TAIL> inline void split(uint16_t* high, uint16_t* low, int64_t j, int64_t C, F v) {
  const U u = (U)ints(v);
  const H a = __builtin_convertvector(u >> 16, H), b = __builtin_convertvector(u & 0xffff, H);
  uint16_t h[LANES], l[LANES];
  std::memcpy(h, &a, sizeof a);
  std::memcpy(l, &b, sizeof b);
  const int64_t n = TAIL ? C - j : LANES;
  for (int64_t k = 0; k < n; k++) high[j + k] = h[k], low[j + k] = l[k];
}

inline double sum(F v) {
  double d = 0;
  for (int k = 0; k < LANES; k++) d += v[k];
  return d;
}

// exp(x) for x <= 0, about 1 ulp; 0 below -87; NaN stays.  The polynomial is Cephes'.
inline F vexp(F x) {
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, left in the lowest bits
  const F shifted = x * 1.44269504088896341f + magic;
  const F n = shifted - magic;
  F r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  F p = all(1.9875691500E-4f);
  p = p * r + 1.3981999507E-3f;
  p = p * r + 8.3334519073E-3f;
  p = p * r + 4.1665795894E-2f;
  p = p * r + 1.6666665459E-1f;
  p = p * r + 5.0000001201E-1f;
  p = p * (r * r) + (r + 1.0f);
  const I scale = (ints(shifted) << 23) + (127 << 23);
  return only(~(x < -87.0f), p * bits(scale));
}

// log(x) for x >= 0, denormal or not; at 0 it is 0, which x log x wants.  The polynomial is Cephes'.
inline F vlog(F x) {
  const I small = x < 1.17549435e-38f;
  const F wide = where(small, x * 16777216.0f, x);
  const I raw = ints(wide);
  I e = ((raw >> 23) & 255) - 126;
  F m = bits((raw & 0x7fffff) | 0x3f000000);  // in [1/2, 1)
  const I low = m < 0.707106781186547524f;
  e = e + low;  // a true mask is -1
  m = m + only(low, m) - 1.0f;
  const F z = m * m;
  F p = all(7.0376836292E-2f);
  p = p * m - 1.1514610310E-1f;
  p = p * m + 1.1676998740E-1f;
  p = p * m - 1.2420140846E-1f;
  p = p * m + 1.4249322787E-1f;
  p = p * m - 1.6668057665E-1f;
  p = p * m + 2.0000714765E-1f;
  p = p * m - 2.4999993993E-1f;
  p = p * m + 3.3333331174E-1f;
  const F f = __builtin_convertvector(e, F) - only(small, all(24.0f));
  F y = m * z * p - f * 2.12194440e-4f - 0.5f * z;
  y = m + y + f * 0.693359375f;
  return where(x < INF, only(x != 0, y), x);  // +inf and NaN stay
}

template <class T> float row_max(const T* z, int64_t C) {
  auto larger = [](F a, F b) { return where(a > b, a, b); };
  F m0 = all(-INF), m1 = m0, m2 = m0, m3 = m0;
  int64_t j = 0;
  for (; j + 4 * LANES <= C; j += 4 * LANES) {
    m0 = larger(m0, load(z + j));
    m1 = larger(m1, load(z + j + LANES));
    m2 = larger(m2, load(z + j + 2 * LANES));
    m3 = larger(m3, load(z + j + 3 * LANES));
  }
  m0 = larger(larger(m0, m1), larger(m2, m3));
  float m = -INF;
  for (int k = 0; k < LANES; k++) m = m > m0[k] ? m : m0[k];
  for (; j < C; j++) {
    const float v = get(z + j);
    m = m > v ? m : v;
  }
  return m;
}

// The first class whose logit is m; -1 only where there is a NaN.
template <class T> int64_t first_at(const T* z, int64_t C, float m) {
  int64_t j = 0;
  for (; j + LANES <= C; j += LANES) {
    const I hit = load(z + j) == m;
#if defined(__AVX512DQ__)
    const bool any = _mm512_movepi32_mask((__m512i)hit);
#else
    int32_t found = 0;
    for (int k = 0; k < LANES; k++) found |= hit[k];
    const bool any = found;
#endif
    if (any) break;
  }
  for (; j < C; j++)
    if (get(z + j) == m) return j;
  return -1;
}

}  // namespace
