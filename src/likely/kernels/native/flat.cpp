// What has no rows of classes: binary losses at the speed of memory, and sums of bfloat16 products.

#include "vectors.h"

namespace {

// log1p(u) for u in [0, 1], by the series of 2 atanh(u/(2 + u)).
inline F vlog1p(F u) {
  const F s = u / (u + 2.0f), q = s * s;
  F p = all(2.0f / 15);
  p = p * q + 2.0f / 13;
  p = p * q + 2.0f / 11;
  p = p * q + 2.0f / 9;
  p = p * q + 2.0f / 7;
  p = p * q + 2.0f / 5;
  p = p * q + 2.0f / 3;
  p = p * q + 2.0f;
  return s * p;
}

constexpr int64_t CHUNK = 4096;  // elements summed in float

template <class T> double chunk(const Binary& job, int64_t begin, int64_t end) {
  const T *z_N = (const T*)job.logits, *mu1_N = (const T*)job.mu1, *mu0_N = (const T*)job.mu0;
  T* g_N = (T*)job.gradient;
  F part{};
  auto body = [&](int64_t i, auto tail) {
    const F z = take<tail>(z_N, i, end, 0), mu1 = take<tail>(mu1_N, i, end, 0);
    const F mu0 = mu0_N ? take<tail>(mu0_N, i, end, 0) : 1.0f - mu1;
    const I negative = z < 0;
    const F away = where(negative, z, -z), u = vexp(away);  // exp(-|z|); a NaN stays
    const F infinite = only(z == INF, z - z);               // NaN, as every row with +inf is
    // A class with no mass costs nothing, at an infinite logit too.
    const F below = only(~negative & (mu0 != 0), mu0 * z), above = only(negative & (mu1 != 0), -mu1 * z);
    const F loss = (mu0 + mu1) * vlog1p(u) + (below + above) + infinite;
    part += tail ? loss * inside<tail>(i, end, 1.0f) : loss;
    if (job.cross_entropy) give<tail>(job.cross_entropy, i, end, loss);
    if (g_N) {
      const F a = job.coefficients ? take<tail>(job.coefficients, i, end, 0) : all(job.coefficient);
      const F q = where(negative, u, all(1.0f)) / (u + 1.0f) + infinite;
      give<tail>(g_N, i, end, only(a != 0, a * ((mu0 + mu1) * q - mu1)));
    }
  };
  int64_t i = begin;
  for (; i + LANES <= end; i += LANES) body(i, std::false_type{});
  if (i < end) body(i, std::true_type{});
  return sum(part);
}

}  // namespace

#define NAMED_(name, set) name##_##set
#define NAMED(name, set) NAMED_(name, set)

extern "C" __attribute__((visibility("default"))) void NAMED(likely_binary, SET)(const Binary* job) {
  double total = 0;
#pragma omp parallel for num_threads(job->threads) schedule(static) reduction(+ : total) if (job->threads > 1)
  for (int64_t begin = 0; begin < job->rows; begin += CHUNK) {
    const int64_t end = begin + CHUNK < job->rows ? begin + CHUNK : job->rows;
    total += job->type == BFLOAT16 ? chunk<bf16>(*job, begin, end) : chunk<float>(*job, begin, end);
  }
  *job->sum = total;
}

namespace {

template <class Z> void tile_row(const Tile& job, int64_t i) {
  const Z* z = (const Z*)job.logits + i * job.logits_stride;
  const int64_t C = job.classes;
  const float it = job.inverse_temperature;
  int64_t j = 0;
  if (job.gradient) {
    Z* g = (Z*)job.gradient + i * job.gradient_stride;
    const float c = job.coefficient[i], A = job.normaliser[i];
    auto body = [&](int64_t j, auto tail) {
      // Never above 0 but for the rounding of A, which moves a probability of 1 by as little.
      const F e = vexp(take<tail>(z, j, C, -INF) * it - A) * c;
      give<tail>(g, j, C, c == 0 ? F{} : e);
    };
    for (; j + LANES <= C; j += LANES) body(j, std::false_type{});
    if (j < C) body(j, std::true_type{});
    return;
  }
  float m = row_max(z, C);
  m = m == -INF ? 0.0f : m;
  double total = 0;
  F part{};
  auto body = [&](int64_t j, auto tail) { part += vexp((take<tail>(z, j, C, -INF) - m) * it); };
  for (; j + LANES <= C; j += LANES) {
    body(j, std::false_type{});
    if (j % CHUNK == 0) total += sum(part), part = F{};
  }
  if (j < C) body(j, std::true_type{});
  job.normaliser[i] = (float)((double)m * it + std::log(total + sum(part)));
}

}  // namespace

extern "C" __attribute__((visibility("default"))) void NAMED(likely_tile, SET)(const Tile* job) {
#pragma omp parallel for num_threads(job->threads) schedule(static) if (job->threads > 1)
  for (int64_t i = 0; i < job->rows; i++) {
    if (job->type == BFLOAT16) tile_row<bf16>(*job, i);
    else tile_row<float>(*job, i);
  }
}

extern "C" __attribute__((visibility("default"))) void NAMED(likely_planes, SET)(const Planes* job) {
#pragma omp parallel for num_threads(job->threads) schedule(static) if (job->threads > 1)
  for (int64_t i = 0; i < job->rows; i++) {
    uint16_t* high = job->high + i * job->stride;
    uint16_t* low = job->low ? job->low + i * job->stride : nullptr;
    const uint16_t* part = job->part + i * job->columns;
    auto body = [&](int64_t j, auto tail) {
      F total = take<tail>(high, j, job->columns, 0);
      if (low) total = joined<tail>(high, low, j, job->columns);
      total += take<tail>(part, j, job->columns, 0);
      if (job->last) give<tail>(high, j, job->columns, total);
      else split<tail>(high, low, j, job->columns, total);
    };
    int64_t j = 0;
    for (; j + LANES <= job->columns; j += LANES) body(j, std::false_type{});
    if (j < job->columns) body(j, std::true_type{});
  }
}
