// Arguments and entry points of joint_critic_scores: S[i, j] = w . relu(V relu(query[i] + key[j]) + d), or without the
// second layer w . relu(query[i] + key[j]). All operands are contiguous.
#pragma once

#include <cstdint>

namespace bitlens {
namespace joint_critic_scores {

struct Sizes {
  std::int64_t batch, queries, keys, hidden;  // B, n, m, h
  std::int64_t second;                        // h2; 0: one hidden layer
};

// Which gradients a backward pass returns.
struct Wanted {
  bool query, key, weight, bias, output;
};

// Which step of a pass runs, for which batch item.
struct Stage {
  std::int64_t item, number;
};

template <class T>
struct Inputs {
  Sizes sizes;
  const T* query;                // [B, n, h]
  const T* key;                  // [B, m, h]
  const std::int64_t* positive;  // [B, n], or null: the diagonal
  const T* weight;               // V, [B, h2, h], or null: one hidden layer
  const T* bias;                 // d, [B, h2] or null
  const T* output;               // w, [B, h2], or [B, h] with one hidden layer
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
  T* query;                 // [B, n, h], or null where not wanted
  T* key;                   // [B, m, h] or null
  T* weight;                // [B, h2, h] or null
  T* bias;                  // [B, h2] or null
  T* output;                // [B, h2] or [B, h], or null
  void* workspace;
};

namespace cpu {
// Bytes of work space, aligned to 64: that of one batch item, for they run one after the other.
std::int64_t workspace_bytes(const Sizes& sizes, int value_bytes, bool backward, const Wanted& wanted);
void forward(const Forward<float>& arguments, int threads);
void forward(const Forward<double>& arguments, int threads);
void backward(const Backward<float>& arguments, int threads);
void backward(const Backward<double>& arguments, int threads);
}  // namespace cpu

}  // namespace joint_critic_scores
}  // namespace bitlens
