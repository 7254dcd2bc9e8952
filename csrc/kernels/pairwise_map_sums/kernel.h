// Arguments and entry points of pairwise_map_sums: sum over j != positive_i of map(S[i, j]), S as in infonce_scores.
#pragma once

#include "../infonce_scores/kernel.h"

namespace bitlens {
namespace pairwise_map_sums {

using infonce_scores::Inputs;
using infonce_scores::Sizes;
using infonce_scores::Stage;

struct Map {
  enum Kind { kSoftplus, kClippedExp };
  int kind;
  double limit;  // of clipped_exp: exp(clip(S, -limit, limit))
};

template <class T>
struct Forward {
  Inputs<T> inputs;
  Map map;
  T* positive;  // [B, n]
  T* sum;       // [B, n], over the keys that are not the row's positive
  void* workspace;
};

template <class T>
struct Backward {
  Inputs<T> inputs;
  Map map;
  const T* grad_positive;  // [B, n], or null: zero
  const T* grad_sum;       // [B, n] or null
  T* query;                // [B, n, d], or null where not wanted
  T* key;                  // [B, m, d] or null
  T* scale;                // [B] or null
  T* query_bias;           // [B, n] or null
  T* key_bias;             // [B, m] or null
  void* workspace;
};

namespace cpu {
// Bytes of work space, aligned to 64; a gradient in the queries or the keys needs more.
std::int64_t workspace_bytes(const Sizes& sizes, int value_bytes, bool backward, bool query, bool key);
void forward(const Forward<float>& arguments, int threads);
void forward(const Forward<double>& arguments, int threads);
void backward(const Backward<float>& arguments, int threads);
void backward(const Backward<double>& arguments, int threads);
}  // namespace cpu

}  // namespace pairwise_map_sums
}  // namespace bitlens
