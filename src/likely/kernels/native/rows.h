// The plain C interface of the row pass; likely/kernels/native/__init__.py mirrors these structures.
#pragma once
#include <cstdint>

extern "C" {

enum Kind : int32_t { SPARSE, DENSE, TEACHER, Z_LOSS };
enum Type : int32_t { FLOAT32, BFLOAT16 };

// One term over the n rows of a tile.  Pointers may be null where "or null" is said.
struct Term {
  int32_t kind;
  int32_t dense_type;          // of `dense`
  float inverse_temperature;   // of the student
  float dense_inverse_temperature;
  const float* coefficient;    // (n) or null: no gradient is wanted
  const uint8_t* ignored;      // (n) or null
  // SPARSE: value at index + floor * base; the mass `rest`, without a floor, lies anywhere outside `index`
  int64_t stored;              // K
  const int64_t* index;        // (n, K)
  const float* value;          // (n, K)
  const float* floor;          // (n) or null
  const float* base;           // (C) or null: ones
  const float* rest;           // (n) or null
  double base_total;
  // DENSE: a measure; TEACHER: logits
  const void* dense;           // (n, C), rows `dense_stride` apart
  int64_t dense_stride;
  const float* class_weight;   // (C) or null
  // results, (n)
  float* cross_entropy;        // of Z_LOSS: the log-normaliser A
  float* entropy;              // or null: not wanted, nor is kl
  float* kl;
};

struct Job {
  int32_t type;                // of `logits` and `gradient`
  int32_t threads;
  int64_t rows, classes;
  const void* logits;
  int64_t logits_stride;
  void* gradient;              // may be `logits`; null: no gradient is wanted
  int64_t gradient_stride;
  const Term* terms;
  int64_t terms_count;
  float* scratch;              // threads * 3 * room floats, where room >= classes + 64
  int64_t room;
};

// Binary rows: each logit z is the log odds of class 1, of which the target holds the mass mu1, of class 0 mu0.
//     loss = (mu0 + mu1) log1p(exp(-|z|)) + mu0 max(z, 0) + mu1 max(-z, 0)
//     gradient = coefficient ((mu0 + mu1) sigmoid(z) - mu1)
struct Binary {
  int32_t type;                // of logits, masses and gradient
  int32_t threads;
  int64_t rows;
  const void* logits;
  const void* mu1;
  const void* mu0;             // or null: 1 - mu1
  void* gradient;              // or null
  const float* coefficients;   // (rows), or null: `coefficient` for every row
  float coefficient;
  float* cross_entropy;        // (rows), or null
  double* sum;                 // (1): of the losses
};

// A tile of some of the classes, whose rows' log-normalisers A are known or wanted.
//     with `gradient`:  gradient = coefficient exp(z/T - A)        else:  A = logsumexp(z/T) of this tile
struct Tile {
  int32_t type;                // of logits and gradient
  int32_t threads;
  int64_t rows, classes;
  const void* logits;
  int64_t logits_stride;
  void* gradient;              // may be `logits`, or null
  int64_t gradient_stride;
  float inverse_temperature;
  const float* coefficient;    // (rows), with `gradient`
  float* normaliser;           // (rows)
};

// total += part for a sum that is kept in float32 but held as two planes of 16 bits: `high`, which is where the bfloat16
// result will stand, and `low`.  With `low` null the sum so far is `high` alone; `last` rounds the sum into `high`.
struct Planes {
  int32_t last;
  int32_t threads;
  int64_t rows, columns;
  uint16_t* high;              // rows `stride` apart
  uint16_t* low;               // or null
  int64_t stride;
  const uint16_t* part;        // (rows, columns), contiguous
};

// A pass over rows of D features for a binary model, all in float64. A vector of D + 1 numbers has the intercept's last
// and is followed by zeros up to `room`, a multiple of 8 above D; so are the sums, to which is added.
//     MOMENTS    sums += X' weight, sums_2 += X' by, squares += (X o X)' weight
//     VALUE      z = X theta + offset: sums += X' (weight p), or with labels `by` in {0, 1} X' (weight (p - by));
//                `probability`: the smaller of p and 1 - p; numbers: [0] the loss of those labels, [1] weight . softplus(z)
//     PRODUCT    sums += X' (weight by (X theta))
//     CURVATURE  squares += X' diag(weight p (1 - p)) X, (room, room) on and above the diagonal; without theta
//                p is `by`, and without that it is X' diag(weight) X
//     DUAL       of p' = p (1 - d), d = (1 - p) s for class 1 and -p s for class 0, s = X step: sums += X' (weight p');
//                numbers: [1] as above, [2] the largest d, [3] weight . KL(p' | p), [4] (weight p') . softplus(z); and
//                with p at z - s: sums_2 += X' (weight p), [5] weight . softplus
enum Pass : int32_t { MOMENTS, VALUE, PRODUCT, CURVATURE, DUAL };

struct Odds {
  int32_t pass;
  int64_t rows, features, room;
  const double* x;
  int64_t stride;              // of the rows of x
  const double* weight;        // (rows)
  const double* by;            // (rows), or null
  const double* offset;        // (rows), or null
  const double* theta;         // (room), or null
  const double* step;          // (room), or null
  double* probability;         // (rows), or null
  double* sums;                // (room), or null
  double* sums_2;              // (room), or null
  double* squares;             // (room) or (room, room), or null
  double* numbers;             // (6), or null
};

}
