// One pass over the rows of a tile of logits: losses out, and gradients, which may overwrite the tile.
//
// Compiled once per instruction set (see setup.py); SET is its name and LANES the floats of a register.
// Plain C++17 with the vector extensions that GCC and Clang share: no headers of torch, one intrinsic, raw pointers.
//
// Per row, with m = max z at class `at`, s = (z - m)/T:
//     others = sum over the classes but `at` of exp(s),   log A = log1p(others),   q = exp(s)/(exp(s_at) + others)
//     gradient = sum over the terms of a (M q - mu)/T; at the class `at`, where q > 1/2 there, it is minus the sum of
//     the others, so that the small gradient of a confident row keeps its digits
// exp below -87 is 0: denormal results cost forty times as much, and are nothing beside a sum of at least 1.
// Sums run in float over 4,096 classes and in double beyond.  NaN and infinities mean what they mean: no -ffast-math.

#include "vectors.h"

namespace {

constexpr int64_t BLOCK = 4096;  // a multiple of LANES

// A row of logits: m is 0 where all are -inf; top is s at the class `at`: 0, or -inf, or NaN.
template <class Z> struct Row {
  const Z* z;
  int64_t C, at, special;  // `special` is the register that holds the class `at`, and `hit` its lane there
  I hit;
  float m, top;
  bool confident(double others) const { return others < 1; }
};

template <class Z> Row<Z> look_at(const Z* z, int64_t C) {
  const float m = row_max(z, C);
  Row<Z> r;
  r.z = z, r.C = C, r.at = first_at(z, C, m);
  r.m = m == -INF ? 0.0f : m;
  r.top = r.at < 0 ? NAN : m - r.m;
  r.special = r.at < 0 ? -1 : r.at / LANES * LANES;
  for (int64_t k = 0; k < LANES; k++) r.hit[k] = r.at >= 0 && k == r.at - r.special ? -1 : 0;
  return r;
}

// Runs body(j, tail) over the registers of a row, and done() after each block of classes.
template <class Body, class Done> inline void sweep(int64_t C, Body body, Done done) {
  int64_t j = 0;
  while (j + LANES <= C) {
    const int64_t end = j + BLOCK <= C ? j + BLOCK : C - LANES + 1;
    for (; j < end; j += LANES) body(j, std::false_type{});
    done();
  }
  if (j < C) body(j, std::true_type{}), done();
}

// A sum over a row: float within a block, double over the blocks.
struct Sum {
  F part{};
  double total = 0;
  void add(F v) { part += v; }
  void block() { total += sum(part), part = F{}; }
};

// e = exp(s), and the sum of it without the class `at`; also(j, s, e, tail) sees each register.
template <class Z, class Also, class Done>
inline double exponentials(const Row<Z>& r, float it, float* e_C, Also also, Done done) {
  Sum others;
  sweep(r.C, [&](int64_t j, auto tail) {
    const F s = (take<tail>(r.z, j, r.C, -INF) - r.m) * it;
    const F e = vexp(s);
    give<tail>(e_C, j, r.C, e);
    others.add(j == r.special ? only(~r.hit, e) : e);
    also(j, s, e, tail);
  }, [&] { others.block(), done(); });
  return others.total;
}

template <class Z> inline double log_normaliser(const Row<Z>& r, double others) {
  return r.top == -INF ? (double)-INF : std::log1p(others) + r.top;
}

// Where a term's gradient goes: nowhere; straight out, as the only term; or by way of the row g of several terms.
enum Place { NOWHERE, ONLY, FIRST, LATER, LAST };

// own(j, tail) is the term's gradient; returned is its sum over the classes but `at`.  done() follows each block.
template <class Z, class Own, class Done>
inline double place(const Row<Z>& r, Place where_to, float* g_C, Z* out_C, Own own, Done done) {
  Sum total;
  auto others = [&](int64_t j, F v) { return j == r.special ? only(~r.hit, v) : v; };
  auto block = [&] { total.block(), done(); };
  if (where_to == NOWHERE) {
    sweep(r.C, [&](int64_t j, auto tail) { own(j, tail); }, done);
  } else if (where_to == ONLY) {
    sweep(r.C, [&](int64_t j, auto tail) {
      const F v = own(j, tail);
      total.add(others(j, v));
      give<tail>(out_C, j, r.C, v);
    }, block);
  } else {
    sweep(r.C, [&](int64_t j, auto tail) {
      F v = own(j, tail);
      total.add(others(j, v));
      if (where_to != FIRST) v += take<tail>(g_C, j, r.C, 0);
      if (where_to == LAST) give<tail>(out_C, j, r.C, v);
      else give<tail>(g_C, j, r.C, v);
    }, block);
  }
  return total.total;
}

constexpr auto nothing = [] {};

struct Room { float *e, *p, *g; };

// The classes outside `index`: exp(s') in room.p, relative to their own maximum and 0 elsewhere, and the sums of it.
struct Outside {
  double others, sum, log;  // without their first largest class; in all; the logarithm of the sum, relative to m of all
};

template <class Z> Outside outside(const Row<Z>& r, float it, const int64_t* index, int64_t stored, const Room& room) {
  sweep(r.C, [&](int64_t j, auto tail) { give<tail>(room.p, j, r.C, take<tail>(r.z, j, r.C, -INF)); }, nothing);
  for (int64_t k = 0; k < stored; k++) room.p[index[k]] = -INF;
  const Row<float> o = look_at((const float*)room.p, r.C);
  const double others = exponentials(o, it, room.p, [](int64_t, F, F, auto) {}, nothing);
  return {others, others + std::exp((double)o.top), log_normaliser(o, others) + ((double)o.m - r.m) * it};
}

template <class Z>
double sparse(const Row<Z>& r, const Term& t, int64_t i, Place where_to, const Room& room, Z* out) {
  const float it = t.inverse_temperature, floor = t.floor ? t.floor[i] : 0.0f;
  const int64_t* index = t.index + i * t.stored;
  const float* value = t.value + i * t.stored;
  auto base = [&](int64_t j) { return t.base ? t.base[j] : 1.0f; };
  // A class with logit -inf costs nothing where its whole mass, value and floor together, is 0.
  double mass = 0, expected = 0, gone_stored = 0;
  bool impossible = false;
  for (int64_t k = 0; k < t.stored; k++) {
    const float s = (get(r.z + index[k]) - r.m) * it;
    mass += value[k];
    if (s == -INF) {
      impossible |= value[k] + floor * base(index[k]) != 0;
      gone_stored += base(index[k]) != 0;
    } else {
      expected += (double)value[k] * s;
    }
  }
  double others;
  if (t.floor) {
    Sum based, gone;
    others = exponentials(r, it, room.e, [&](int64_t j, F s, F, auto tail) {
      const F b = t.base ? take<tail>(t.base, j, r.C, 0) : inside<tail>(j, r.C, 1.0f);
      const I lost = s == -INF;
      based.add(b * only(~lost, s));
      gone.add(only(lost & (b != 0), all(1.0f)));
    }, [&] { based.block(), gone.block(); });
    mass += (double)floor * t.base_total;
    expected += (double)floor * based.total;
    impossible |= floor != 0 && gone.total > gone_stored;
  } else {
    others = exponentials(r, it, room.e, [](int64_t, F, F, auto) {}, nothing);
  }
  const double rest = t.rest ? t.rest[i] : 0;
  Outside out_{};
  if (rest != 0) {
    out_ = outside(r, it, index, t.stored, room);
    mass += rest;
    expected += rest * out_.log;
  }
  const double log_A = log_normaliser(r, others);
  t.cross_entropy[i] = (float)(impossible ? mass * log_A + INF : mass * log_A - expected);
  if (where_to == NOWHERE) return 0;

  const double a = (double)t.coefficient[i] * it, c = a * mass / (others + std::exp((double)r.top));
  const F c_ = all((float)c), f_ = all((float)(a * floor));
  const double d = rest != 0 ? a * rest / out_.sum : 0;  // NaN gradients where rest lies on impossible classes
  const F d_ = all((float)d);
  auto e = [&](int64_t j, auto tail) { return take<tail>(room.e, j, r.C, 0); };
  if (rest != 0) place(r, where_to, room.g, out, [&](int64_t j, auto tail) {
    return c_ * e(j, tail) - d_ * take<tail>(room.p, j, r.C, 0);
  }, nothing);
  else if (!t.floor) place(r, where_to, room.g, out, [&](int64_t j, auto tail) { return c_ * e(j, tail); }, nothing);
  else if (!t.base) place(r, where_to, room.g, out, [&](int64_t j, auto tail) { return c_ * e(j, tail) - f_; }, nothing);
  else place(r, where_to, room.g, out, [&](int64_t j, auto tail) {
    return c_ * e(j, tail) - f_ * take<tail>(t.base, j, r.C, 0);
  }, nothing);
  // At the class `at`: minus the sum of the others, and directly.
  double total = c * others, direct = r.at < 0 ? NAN : c * room.e[r.at];
  if (t.floor) {
    const double base_at = r.at < 0 ? 0 : base(r.at);
    total -= a * floor * (t.base_total - base_at);
    direct -= a * floor * base_at;
  }
  if (rest != 0) {
    bool kept = false;
    for (int64_t k = 0; k < t.stored; k++) kept |= index[k] == r.at;
    total -= kept ? a * rest : d * out_.others;  // what is not stored is the first largest outside, too
    if (r.at >= 0) direct -= d * room.p[r.at];
  }
  // The stored classes, in float before the one rounding.  A class may stand there twice.
  for (int64_t k = 0; k < t.stored; k++) {
    const int64_t j = index[k];
    if (j == r.at) {
      direct -= a * value[k];
      continue;
    }
    total -= a * value[k];
    double v = value[k];
    bool seen = false;
    for (int64_t l = 0; l < t.stored; l++) {
      seen |= l < k && index[l] == j;
      if (l > k && index[l] == j) v += value[l];
    }
    if (seen) continue;
    const double own = c * room.e[j] - a * (floor * base(j) + v);
    if (where_to == ONLY) put(out + j, (float)own);
    else if (where_to == LAST) put(out + j, (float)(room.g[j] + own));
    else room.g[j] = (float)(where_to == FIRST ? own : room.g[j] - a * v);
  }
  return r.confident(others) ? -total : direct;
}

// A measure over all classes, as given, times `class_weight`.
template <class Z, class M>
double dense(const Row<Z>& r, const Term& t, int64_t i, Place where_to, const Room& room, Z* out) {
  const float it = t.inverse_temperature;
  const M* mu_C = (const M*)t.dense + i * t.dense_stride;
  auto measure = [&](int64_t j, auto tail) {
    const F mu = take<tail>(mu_C, j, r.C, 0);
    return t.class_weight ? mu * take<tail>(t.class_weight, j, r.C, 0) : mu;
  };
  Sum mass_, expected;
  const double others = exponentials(r, it, room.e, [&](int64_t j, F s, F, auto tail) {
    const F mu = measure(j, tail);
    mass_.add(mu);
    expected.add(mu * only(~((mu == 0) & (s == -INF)), s));
  }, [&] { mass_.block(), expected.block(); });
  const double mass = mass_.total, log_A = log_normaliser(r, others);
  const double a = where_to == NOWHERE ? 0 : (double)t.coefficient[i] * it;
  const double c = a * mass / (others + std::exp((double)r.top));
  const F c_ = all((float)c), a_ = all((float)a);
  auto gradient = [&](int64_t j, F mu, auto tail) { return c_ * take<tail>(room.e, j, r.C, 0) - a_ * mu; };
  auto at_top = [&](double total) {
    if (r.at < 0 || r.confident(others)) return -total;
    const double mu = get(mu_C + r.at) * (t.class_weight ? (double)t.class_weight[r.at] : 1.0);
    return c * room.e[r.at] - a * mu;
  };
  t.cross_entropy[i] = (float)(mass * log_A - expected.total);
  if (!t.entropy) {
    if (where_to == NOWHERE) return 0;
    return at_top(
        place(r, where_to, room.g, out, [&](int64_t j, auto tail) { return gradient(j, measure(j, tail), tail); }, nothing));
  }
  // KL class by class, so that a small one keeps its digits.
  Sum negative, kl;
  const F log_A_ = all((float)log_A);
  const double total = place(r, where_to, room.g, out, [&](int64_t j, auto tail) {
    const F mu = measure(j, tail), log_mu = vlog(mu);
    const F s = (take<tail>(r.z, j, r.C, -INF) - r.m) * it;
    negative.add(mu * log_mu);
    kl.add(only(mu != 0, mu * (log_mu - (s - log_A_))));
    return gradient(j, mu, tail);
  }, [&] { negative.block(), kl.block(); });
  const double scale = mass > 0 ? mass * std::log(mass) : 0;
  t.entropy[i] = (float)(scale - negative.total);
  t.kl[i] = (float)(kl.total - scale);
  t.cross_entropy[i] = t.entropy[i] + t.kl[i];
  return at_top(total);
}

// The softmax of other logits, a distribution.
template <class Z, class M>
double teacher(const Row<Z>& r, const Term& t, int64_t i, Place where_to, const Room& room, Z* out) {
  const float it = t.inverse_temperature, jt = t.dense_inverse_temperature;
  const Row<M> o = look_at((const M*)t.dense + i * t.dense_stride, r.C);
  const double o_others = exponentials(o, jt, room.p, [](int64_t, F, F, auto) {}, nothing);
  const double log_B = log_normaliser(o, o_others), k = 1 / (o_others + std::exp((double)o.top));
  const F k_ = all((float)k);
  Sum expected;
  const double others = exponentials(r, it, room.e, [&](int64_t j, F s, F, auto tail) {
    const F p = take<tail>(room.p, j, r.C, 0);
    expected.add(p * only(~((p == 0) & (s == -INF)), s));
  }, [&] { expected.block(); });
  const double log_A = log_normaliser(r, others);
  t.cross_entropy[i] = (float)(log_A - k * expected.total);
  const double a = where_to == NOWHERE ? 0 : (double)t.coefficient[i] * it;
  const F c_ = all((float)(a / (others + std::exp((double)r.top)))), a_ = all((float)a);
  auto gradient = [&](int64_t j, F p, auto tail) { return c_ * take<tail>(room.e, j, r.C, 0) - a_ * p; };
  auto at_top = [&](double total) {
    if (r.at < 0 || r.confident(others)) return -total;
    return a * (room.e[r.at] / (others + std::exp((double)r.top)) - k * room.p[r.at]);
  };
  auto probability = [&](int64_t j, auto tail) { return k_ * take<tail>(room.p, j, r.C, 0); };
  if (!t.entropy) {
    if (where_to == NOWHERE) return 0;
    return at_top(place(r, where_to, room.g, out, [&](int64_t j, auto tail) {
      return gradient(j, probability(j, tail), tail);
    }, nothing));
  }
  Sum negative, kl;
  const F log_A_ = all((float)log_A), log_B_ = all((float)log_B);
  const double total = place(r, where_to, room.g, out, [&](int64_t j, auto tail) {
    const F p = probability(j, tail);
    const I some = p != 0;  // NaN is some
    const F log_p = (take<tail>(o.z, j, r.C, -INF) - o.m) * jt - log_B_;
    const F log_q = (take<tail>(r.z, j, r.C, -INF) - r.m) * it - log_A_;
    negative.add(only(some, p * log_p));
    kl.add(only(some, p * (log_p - log_q)));
    return gradient(j, p, tail);
  }, [&] { negative.block(), kl.block(); });
  t.entropy[i] = (float)-negative.total;
  t.kl[i] = (float)kl.total;
  t.cross_entropy[i] = t.entropy[i] + t.kl[i];
  return at_top(total);
}

// A(z) at T = 1, whose square is penalised: gradient 2 a A q, which does not sum to zero.
template <class Z>
double z_loss(const Row<Z>& r, const Term& t, int64_t i, Place where_to, const Room& room, Z* out) {
  const double others = exponentials(r, 1.0f, room.e, [](int64_t, F, F, auto) {}, nothing);
  const double A = log_normaliser(r, others) + r.m;
  t.cross_entropy[i] = (float)A;
  if (where_to == NOWHERE) return 0;
  const double c = 2 * (double)t.coefficient[i] * A / (others + std::exp((double)r.top));
  const F c_ = all((float)c);
  place(r, where_to, room.g, out, [&](int64_t j, auto tail) { return c_ * take<tail>(room.e, j, r.C, 0); }, nothing);
  return r.at < 0 ? NAN : c * room.e[r.at];
}

template <class Z> void row(const Job& job, int64_t i, const Room& room) {
  const int64_t C = job.classes;
  Z* out = job.gradient ? (Z*)job.gradient + i * job.gradient_stride : nullptr;
  const Row<Z> r = look_at((const Z*)job.logits + i * job.logits_stride, C);
  // Terms that do not count this row are left out: its gradient is 0 there even where the logits are NaN.
  auto counts = [&](const Term& t) { return t.coefficient && t.coefficient[i] != 0 && !(t.ignored && t.ignored[i]); };
  int64_t left = 0, done = 0;
  if (out) for (int64_t k = 0; k < job.terms_count; k++) left += counts(job.terms[k]);
  const int64_t wanted = left;
  double top = 0;  // the gradient at the class `at`
  for (int64_t k = 0; k < job.terms_count; k++) {
    const Term& t = job.terms[k];
    if (t.ignored && t.ignored[i]) {
      t.cross_entropy[i] = 0;
      if (t.entropy) t.entropy[i] = t.kl[i] = 0;
      continue;
    }
    Place where_to = NOWHERE;
    if (out && counts(t)) {
      where_to = wanted == 1 ? ONLY : done == 0 ? FIRST : left == 1 ? LAST : LATER;
      done++, left--;
    }
    double own = 0;
    switch (t.kind) {
      case SPARSE: own = sparse(r, t, i, where_to, room, out); break;
      case Z_LOSS: own = z_loss(r, t, i, where_to, room, out); break;
      case DENSE:
        own = t.dense_type == BFLOAT16 ? dense<Z, bf16>(r, t, i, where_to, room, out)
                                          : dense<Z, float>(r, t, i, where_to, room, out);
        break;
      default:
        own = t.dense_type == BFLOAT16 ? teacher<Z, bf16>(r, t, i, where_to, room, out)
                                          : teacher<Z, float>(r, t, i, where_to, room, out);
    }
    if (where_to != NOWHERE) top += own;
  }
  if (!out) return;
  if (wanted == 0) std::memset((void*)out, 0, C * sizeof(Z));
  else if (r.at >= 0) put(out + r.at, (float)top);
}

}  // namespace

#define NAMED_(name, set) name##_##set
#define NAMED(name, set) NAMED_(name, set)

extern "C" __attribute__((visibility("default"))) void NAMED(likely_rows, SET)(const Job* job) {
#pragma omp parallel for num_threads(job->threads) schedule(static) if (job->threads > 1)
  for (int64_t i = 0; i < job->rows; i++) {
    float* own = job->scratch + thread_number() * 3 * job->room;
    const Room room{own, own + job->room, own + 2 * job->room};
    if (job->type == BFLOAT16) row<bf16>(*job, i, room);
    else row<float>(*job, i, room);
  }
}
