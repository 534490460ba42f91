// Passes over dense rows of features for a binary model, in float64: log odds, what is made of them row by row, and
// sums over the rows weighted by it, in one reading of the features.

#include "vectors.h"

namespace {

constexpr int64_t D8 = LANES / 2;  // doubles in a register
constexpr int64_t TILE = 64;       // rows whose log odds are held at once

typedef double V __attribute__((vector_size(4 * LANES)));
typedef int64_t J __attribute__((vector_size(4 * LANES)));

inline V all8(double x) { return V{} + x; }
inline V load8(const double* p) { V v; std::memcpy(&v, p, sizeof v); return v; }
inline void store8(double* p, V v) { std::memcpy(p, &v, sizeof v); }
inline J ints8(V x) { J y; std::memcpy(&y, &x, sizeof y); return y; }
inline V bits8(J x) { V y; std::memcpy(&y, &x, sizeof y); return y; }
inline V where8(J mask, V a, V b) { return bits8((mask & ints8(a)) | (~mask & ints8(b))); }
inline double sum8(V v) {
#ifdef __AVX512F__
  return _mm512_reduce_add_pd((__m512d)v);
#else
  double d = 0;
  for (int k = 0; k < D8; k++) d += v[k];
  return d;
#endif
}

// exp(x) for x <= 0, about 1 ulp; 0 below -708; NaN stays.  Taylor's polynomial on |r| <= log(2)/2.
inline V exp8(V x) {
  const double magic = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to an integer, left in the lowest bits
  const V shifted = x * 1.4426950408889634 + magic;
  const V n = shifted - magic;
  const V r = (x - n * 0.693147180369123816490) - n * 1.90821492927058770002e-10;
  const V s = r * r;  // two short chains of products instead of a long one
  V even = all8(1.0 / 479001600.0), odd = all8(1.0 / 6227020800.0);
  even = even * s + 1.0 / 3628800.0, odd = odd * s + 1.0 / 39916800.0;
  even = even * s + 1.0 / 40320.0, odd = odd * s + 1.0 / 362880.0;
  even = even * s + 1.0 / 720.0, odd = odd * s + 1.0 / 5040.0;
  even = even * s + 1.0 / 24.0, odd = odd * s + 1.0 / 120.0;
  even = even * s + 0.5, odd = odd * s + 1.0 / 6.0;
  const V p = (odd * r + even) * s + (r + 1.0);
  const J scale = (ints8(shifted) << 52) + ((int64_t)1023 << 52);
  return bits8(~(x < -708.0) & ints8(p * bits8(scale)));
}

// log1p(u) for u in [0, 1], by the series of 2 atanh(u/(2 + u)).
inline V log1p8(V u) {
  const V s = u / (u + 2.0), q = s * s;
  const V t = q * q;
  V even = all8(2.0 / 33), odd = all8(2.0 / 35);
  for (int k = 29; k > 0; k -= 4) even = even * t + 2.0 / k, odd = odd * t + 2.0 / (k + 2);
  return s * (odd * q + even);
}

// (1 - d) log(1 - d) + d, of which nothing cancels: with s = d/(2 - d) it is
// 2 s^2 (1 - (1 - s) (s/3 + s^3/5 + ...)) / (1 + s).  Large |d| are rare and go to the C library.
inline V divergence8(V d) {
  const V s = d / (2.0 - d), q = s * s;
  const V t = q * q;
  V even = all8(1.0 / 27), odd = all8(1.0 / 29);
  for (int k = 23; k > 1; k -= 4) even = even * t + 1.0 / k, odd = odd * t + 1.0 / (k + 2);
  const V p = odd * q + even;
  V y = 2.0 * q * (1.0 - (1.0 - s) * (s * p)) / (s + 1.0);
  for (int k = 0; k < D8; k++)
    if (!(std::fabs(s[k]) <= 0.25)) y[k] = d[k] == 1 ? 1.0 : (1 - d[k]) * std::log1p(-d[k]) + d[k];
  return y;
}

// A tile: whole registers of features stand where they are; what is left of a row, a 1 for the intercept and zeros
// stand in `rest`.
struct Rows64 {
  const double* x;
  int64_t rows, stride, whole, left;
  double rest[TILE * D8];

  void at(const Odds& job, int64_t begin) {
    x = (const double*)job.x + begin * job.stride;
    rows = job.rows - begin < TILE ? job.rows - begin : TILE;
    stride = job.stride, whole = job.features / D8, left = job.features % D8;
    V one{};
    J feature{};
    one[left] = 1.0;
    for (int64_t k = 0; k < left; k++) feature[k] = -1;
    const double* end = (const double*)job.x + (job.rows - 1) * stride + job.features;
    for (int64_t i = 0; i < rows; i++) {
      const double* p = x + i * stride + whole * D8;
      if (p + D8 <= end) {  // what follows is the next row's, and is masked
        store8(rest + i * D8, where8(feature, load8(p), one));
        continue;
      }
      store8(rest + i * D8, one);
      for (int64_t k = 0; k < left; k++) rest[i * D8 + k] = p[k];
    }
  }
  // The same rows of the next tile, on their way while this one is worked on.
  void ahead(int64_t i) const {
    const char* next = (const char*)(x + (i + TILE) * stride);
    const int64_t bytes = 8 * D8 * whole;
    for (int64_t k = 0; bytes <= 1024 && k < bytes; k += 64) __builtin_prefetch(next + k);
  }
  V get(int64_t i, int64_t c) const { return load8(c < whole ? x + i * stride + c * D8 : rest + i * D8); }
};

// z_i += <row_i, a> of a tile, and of a second column where there is one.
template <bool TWO> void dots(const Rows64& tile, const double* a, const double* b, double* z, double* u) {
  for (int64_t i = 0; i < tile.rows; i++) {
    V p = load8(tile.rest + i * D8), s = p * load8(a + tile.whole * D8), t = TWO ? p * load8(b + tile.whole * D8) : V{};
    V s1{}, t1{};
    const double* row = tile.x + i * tile.stride;
    int64_t c = 0;
    for (; c + 2 <= tile.whole; c += 2) {
      const V p0 = load8(row + c * D8), p1 = load8(row + (c + 1) * D8);
      s += p0 * load8(a + c * D8), s1 += p1 * load8(a + (c + 1) * D8);
      if (TWO) t += p0 * load8(b + c * D8), t1 += p1 * load8(b + (c + 1) * D8);
    }
    for (; c < tile.whole; c++) {
      p = load8(row + c * D8);
      s += p * load8(a + c * D8);
      if (TWO) t += p * load8(b + c * D8);
    }
    z[i] += sum8(s + s1);
    if (TWO) u[i] = sum8(t + t1);
  }
}

// g += sum_i r_i row_i of a tile, and of a second column where there is one; `square` for the squares of the features.
template <bool TWO, bool SQUARE>
void sums(const Rows64& tile, const double* r, const double* q, double* g, double* h, double* square) {
  int64_t i = 0;
  for (; i + 4 <= tile.rows; i += 4) {
    for (int64_t k = 0; k < 4; k++) tile.ahead(i + k);
    for (int64_t c = 0; c <= tile.whole; c++) {
      const V x0 = tile.get(i, c), x1 = tile.get(i + 1, c), x2 = tile.get(i + 2, c), x3 = tile.get(i + 3, c);
      const V w0 = x0 * r[i], w1 = x1 * r[i + 1], w2 = x2 * r[i + 2], w3 = x3 * r[i + 3];
      store8(g + c * D8, load8(g + c * D8) + ((w0 + w1) + (w2 + w3)));
      if (TWO)
        store8(h + c * D8, load8(h + c * D8) + ((x0 * q[i] + x1 * q[i + 1]) + (x2 * q[i + 2] + x3 * q[i + 3])));
      if (SQUARE) store8(square + c * D8, load8(square + c * D8) + ((w0 * x0 + w1 * x1) + (w2 * x2 + w3 * x3)));
    }
  }
  for (; i < tile.rows; i++)
    for (int64_t c = 0; c <= tile.whole; c++) {
      const V x0 = tile.get(i, c), w0 = x0 * r[i];
      store8(g + c * D8, load8(g + c * D8) + w0);
      if (TWO) store8(h + c * D8, load8(h + c * D8) + x0 * q[i]);
      if (SQUARE) store8(square + c * D8, load8(square + c * D8) + w0 * x0);
    }
}

constexpr int SIDE = D8 < 4 ? D8 : 4;  // rows of a Gram matrix that are summed at once

// SIDE rows from `a` on and C registers from `c` on of gram += sum_i h_i row_i row_i'.
template <int C> void corner(const Rows64& tile, const double* h, double* gram, int64_t room, int64_t a, int64_t c) {
  V s[SIDE][C] = {};
  for (int64_t i = 0; i < tile.rows; i++) {
    if (a == 0 && c == 0) tile.ahead(i);
    const double* left = a / D8 < tile.whole ? tile.x + i * tile.stride + a : tile.rest + i * D8 + a % D8;
    V y[C];
    for (int k = 0; k < C; k++) y[k] = tile.get(i, c + k) * h[i];
    for (int j = 0; j < SIDE; j++)
      for (int k = 0; k < C; k++) s[j][k] += y[k] * left[j];
  }
  for (int j = 0; j < SIDE; j++)
    for (int k = 0; k < C; k++) {
      double* out = gram + (a + j) * room + (c + k) * D8;
      store8(out, load8(out) + s[j][k]);
    }
}

// gram += sum_i h_i row_i row_i', the registers that hold anything on or right of the diagonal.
void squares(const Rows64& tile, const double* h, double* gram, int64_t room) {
  const int64_t registers = tile.whole + 1;
  for (int64_t a = 0; a < registers * D8; a += SIDE)
    for (int64_t c = a / D8; c < registers; c += 4) switch (registers - c) {
        case 1: corner<1>(tile, h, gram, room, a, c); break;
        case 2: corner<2>(tile, h, gram, room, a, c); break;
        case 3: corner<3>(tile, h, gram, room, a, c); break;
        default: corner<4>(tile, h, gram, room, a, c);
      }
}

struct Sigmoid {
  V low, softplus, p, rest, least;  // log1p(exp(-|z|)), log(1 + exp(z)), its derivative, 1 less that, the smaller one
};
inline Sigmoid sigmoid(V z) {
  const J negative = z < 0;
  const V e = exp8(where8(negative, z, -z)), one = all8(1.0), low = log1p8(e), scale = 1.0 / (e + 1.0);
  const V least = e * scale, most = one * scale;
  return {low, low + where8(negative, V{}, z), where8(negative, least, most), where8(negative, most, least), least};
}

}  // namespace

#define NAMED_(name, set) name##_##set
#define NAMED(name, set) NAMED_(name, set)

extern "C" __attribute__((visibility("default"))) void NAMED(likely_odds, SET)(const Odds* given) {
  const Odds job = *given;
  double largest = -INF, divergence = 0, loss = 0, normaliser = 0, product = 0, ahead = 0;
  Rows64 tile;
  for (int64_t begin = 0; begin < job.rows; begin += TILE) {
    tile.at(job, begin);
    double z[TILE] = {}, u[TILE] = {}, w[TILE] = {}, r[TILE] = {}, q[TILE] = {}, by[TILE] = {};
    for (int64_t i = 0; i < tile.rows; i++) {
      w[i] = job.weight[begin + i];
      if (job.offset && job.pass != PRODUCT) z[i] = job.offset[begin + i];
      if (job.by) by[i] = job.by[begin + i];
    }
    if (job.pass == MOMENTS) {
      sums<true, true>(tile, w, by, job.sums, job.sums_2, job.squares);
      continue;
    }
    if (job.pass == DUAL) dots<true>(tile, job.theta, job.step, z, u);
    else if (job.theta) dots<false>(tile, job.theta, nullptr, z, nullptr);
    for (int64_t i = 0; i < TILE; i += D8) {
      const V z8 = load8(z + i), w8 = load8(w + i), by8 = load8(by + i);
      if (job.pass == PRODUCT) {
        store8(r + i, w8 * z8 * by8);
        continue;
      }
      if (job.pass == CURVATURE && !job.theta) {
        store8(r + i, job.by ? w8 * by8 * (1.0 - by8) : w8);
        continue;
      }
      const Sigmoid at = sigmoid(z8);
      if (job.pass == CURVATURE) {
        store8(r + i, w8 * at.p * at.rest);
        continue;
      }
      normaliser += sum8(w8 * at.softplus);
      if (job.pass == VALUE) {
        V r8 = at.p;
        if (job.by) {  // labels of class 1 cost softplus(-z), whose derivative is -(1 - p)
          const J one = by8 == 1.0;
          loss += sum8(w8 * where8(one, at.low + where8(z8 < 0, -z8, V{}), at.softplus));
          r8 = where8(one, -at.rest, at.p);
        }
        store8(r + i, w8 * r8);
        store8(q + i, at.least);
        continue;
      }
      const V u8 = load8(u + i), up = at.rest * u8, down = -at.p * u8;
      for (int k = 0; k < D8; k++) largest = largest > up[k] ? largest : up[k];
      for (int k = 0; k < D8; k++) largest = largest > down[k] ? largest : down[k];
      divergence += sum8(w8 * (at.p * divergence8(up) + at.rest * divergence8(down)));
      const V r8 = w8 * at.p * (1.0 - up);
      product += sum8(r8 * at.softplus);
      store8(r + i, r8);
      const Sigmoid there = sigmoid(z8 - u8);
      ahead += sum8(w8 * there.softplus);
      store8(q + i, w8 * there.p);
    }
    if (job.pass == CURVATURE) squares(tile, r, job.squares, job.room);
    else if (job.pass == DUAL) sums<true, false>(tile, r, q, job.sums, job.sums_2, nullptr);
    else sums<false, false>(tile, r, nullptr, job.sums, nullptr, nullptr);
    if (job.probability)
      for (int64_t i = 0; i < tile.rows; i++) job.probability[begin + i] = q[i];
  }
  const double numbers[6] = {loss, normaliser, largest, divergence, product, ahead};
  if (job.numbers) std::memcpy(job.numbers, numbers, sizeof numbers);
}
