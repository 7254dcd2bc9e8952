// Arguments and entry points of infonce_scores: S[i, j] = scale query[i] . key[j] + query_bias[i] + key_bias[j].
#pragma once

#include <cstdint>

#include "../../common/broadcast.h"

namespace bitlens {
namespace infonce_scores {

struct Sizes {
  std::int64_t batch, queries, keys, features;  // B, n, m, d
};

// What the products of float matrices may be rounded to. The caller has rounded query and key, so that an
// implementation without such products ignores it.
enum Precision { kFull, kTf32, kBfloat16 };

// Which step of a pass runs, for the batch items from `first_item` on.
struct Stage {
  std::int64_t first_item, number;
};

template <class T>
struct Inputs {
  Sizes sizes;
  Broadcast<2> layout;           // the batch axes of query and of key
  const T* query;                // (b, i, k) at offset(b) + i query_strides[0] + k query_strides[1]
  const T* key;                  // (b, j, k) at offset(b) + j key_strides[0] + k key_strides[1]
  std::int64_t query_strides[2];
  std::int64_t key_strides[2];
  const std::int64_t* positive;  // [B, n], or null: the diagonal
  const T* scale;                // [B]
  const T* query_bias;           // [B, n] or null
  const T* key_bias;             // [B, m] or null
  int precision;                 // one of Precision
};

template <class T>
struct Forward {
  Inputs<T> inputs;
  T* positive;   // [B, n]
  T* row;        // [B, n], over all keys
  T* negatives;  // [B, n], over the keys that are not the row's positive
  T* column;     // [B, m]
  void* workspace;
};

template <class T>
struct Backward {
  Inputs<T> inputs;
  const T* row;             // [B, n], what the forward pass returned
  const T* negatives;       // [B, n]
  const T* column;          // [B, m]
  const T* grad_positive;   // [B, n], or null: zero
  const T* grad_row;        // [B, n] or null
  const T* grad_negatives;  // [B, n] or null
  const T* grad_column;     // [B, m] or null
  T* query;                 // [B, n, d], or null where not wanted
  T* key;                   // [B, m, d] or null
  T* scale;                 // [B] or null
  T* query_bias;            // [B, n] or null
  T* key_bias;              // [B, m] or null
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

namespace cuda {
std::int64_t workspace_bytes(const Sizes& sizes, int value_bytes, bool backward, bool query, bool key);
void forward(const Forward<float>& arguments, std::uintptr_t stream);
void forward(const Forward<double>& arguments, std::uintptr_t stream);
void backward(const Backward<float>& arguments, std::uintptr_t stream);
void backward(const Backward<double>& arguments, std::uintptr_t stream);
}  // namespace cuda

}  // namespace infonce_scores
}  // namespace bitlens
