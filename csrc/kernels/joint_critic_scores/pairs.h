// Activations of a tile of pairs, kept in registers or in a cache: the one place where hidden units are looped over.
#pragma once

#include <type_traits>

#include "../infonce_scores/tile.h"
#include "converting.h"
#include "math.h"

namespace bitlens {
namespace BITLENS_ISA {
namespace joint_critic {

using infonce::kDepth;
using infonce::kRegisterRows;
using infonce::kTile;
using infonce::Lanes;
using infonce::multiply;
using infonce::panel_width;
using infonce::round_up;
using score_sums::load;
using score_sums::rounded;
using score_sums::store;

// Rows of the blocks below: each is a divisor of kPadding, and leaves registers for the operands.
#if defined(__AVX512F__)
constexpr int kScoreRows = 8, kGateRows = 4;
#else
constexpr int kScoreRows = 4, kGateRows = 2;
#endif

template <class T>
BITLENS_FUNCTION typename Lanes<T>::Vector vector_at(const T* source) {
  return *(const typename Lanes<T>::Vector*)source;
}

template <class T>
BITLENS_FUNCTION void put(T* target, typename Lanes<T>::Vector value) {
  *(typename Lanes<T>::Vector*)target = value;
}

template <class T>
BITLENS_FUNCTION typename Lanes<T>::Vector all_lanes(T value) {
  return value - typename Lanes<T>::Vector{};
}

// target += values, in double.
template <class T>
BITLENS_FUNCTION void add_line(double* target, const T* values, int64_t count) {
  for (int64_t k = 0; k < count; k += BITLENS_PACK_WIDTH) store(target + k, load(target + k) + load(values + k));
}

// ---- One hidden layer ----

// scores[i * kTile + j] = sum over c of w[c] relu(queries[i][c] + keys[j][c]); `partial` is of the same shape.
// Scores have the precision of T: the totals that the gradient takes from them do, and of a large score and its total
// only what rounds alike cancels.
template <class T>
BITLENS_FUNCTION void one_layer_scores(double* scores, T* partial, const T* queries, int64_t step, const T* panels,
                                       const T* output, int64_t hidden, int64_t rows, int64_t columns) {
  using Vector = typename Lanes<T>::Vector;
  constexpr int64_t width = panel_width<T>();
  const int64_t padded_columns = round_up(columns, BITLENS_PACK_WIDTH);
  int64_t done = 0;
  do {
    const int64_t depth = hidden - done < kDepth ? hidden - done : kDepth;
    for (int64_t j = 0; j < columns; j += width) {
      const T* const panel = panels + j * hidden + done * width;
      for (int64_t i = 0; i < rows; i += kScoreRows) {
        Vector sums[kScoreRows][2] = {};
        const T* const left = queries + i * step + done;
        for (int64_t c = 0; c < depth; ++c) {
          const Vector first = vector_at(panel + c * width), second = vector_at(panel + c * width + Lanes<T>::width);
          const Vector weight = all_lanes(output[done + c]);
          for (int r = 0; r < kScoreRows; ++r) {
            const T query = left[r * step + c];
            sums[r][0] += weight * rectified(query + first);
            sums[r][1] += weight * rectified(query + second);
          }
        }
        for (int r = 0; r < kScoreRows; ++r) {
          for (int v = 0; v < 2; ++v) put(partial + (i + r) * kTile + j + v * Lanes<T>::width, sums[r][v]);
        }
      }
    }
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = i * kTile; j < i * kTile + padded_columns; j += BITLENS_PACK_WIDTH) {
        const Pack part = load(partial + j), sum = done == 0 ? part : load(scores + j) + part;
        store(scores + j, done + depth < hidden ? sum : rounded<T>(sum));
      }
    }
    done += depth;
  } while (done < hidden);
}

// query_sums[i][c] += sum over j of gradient[i][j] [queries[i][c] + keys[j][c] > 0] and key_sums[j][c] the same over i,
// for `Vectors` vectors of c; both `sums` may be null.
template <int Vectors, class T>
BITLENS_FUNCTION void add_gated_panel(double* query_sums, double* key_sums, const T* queries, const T* keys,
                                      int64_t step, const T* gradient, int64_t rows, int64_t columns) {
  using Vector = typename Lanes<T>::Vector;
  constexpr int64_t width = Lanes<T>::width;
  alignas(64) T key_part[kTile * Vectors * width];
  if (key_sums != nullptr) {
    for (int64_t k = 0; k < columns * Vectors * width; ++k) key_part[k] = T(0);
  }
  const auto visit = [&](auto with_keys) {
    for (int64_t i = 0; i < rows; i += kGateRows) {
      Vector threshold[kGateRows][Vectors], sums[kGateRows][Vectors] = {};
      for (int r = 0; r < kGateRows; ++r) {
        for (int v = 0; v < Vectors; ++v) threshold[r][v] = -vector_at(queries + (i + r) * step + v * width);
      }
      for (int64_t j = 0; j < columns; ++j) {
        Vector key[Vectors], part[Vectors] = {};
        for (int v = 0; v < Vectors; ++v) {
          key[v] = vector_at(keys + j * step + v * width);
          if (with_keys) part[v] = vector_at(key_part + (j * Vectors + v) * width);
        }
        for (int r = 0; r < kGateRows; ++r) {
          const Vector value = all_lanes(gradient[(i + r) * kTile + j]);
          for (int v = 0; v < Vectors; ++v) {
            const Vector open = gated(value, key[v], threshold[r][v]);
            sums[r][v] += open;
            if (with_keys) part[v] += open;
          }
        }
        if (with_keys) {
          for (int v = 0; v < Vectors; ++v) put(key_part + (j * Vectors + v) * width, part[v]);
        }
      }
      if (query_sums == nullptr) continue;
      for (int r = 0; r < kGateRows; ++r) {
        alignas(64) T line[Vectors * width];
        for (int v = 0; v < Vectors; ++v) put(line + v * width, sums[r][v]);
        add_line(query_sums + (i + r) * step, line, Vectors * width);
      }
    }
  };
  if (key_sums == nullptr) {
    visit(std::false_type());
    return;
  }
  visit(std::true_type());
  for (int64_t j = 0; j < columns; ++j) add_line(key_sums + j * step, key_part + j * Vectors * width, Vectors * width);
}

template <class T>
BITLENS_FUNCTION void add_gated(double* query_sums, double* key_sums, const T* queries, const T* keys, int64_t step,
                                int64_t hidden, const T* gradient, int64_t rows, int64_t columns) {
  constexpr int64_t width = Lanes<T>::width;
  const auto at = [](double* sums, int64_t c) { return sums == nullptr ? nullptr : sums + c; };
  int64_t c = 0;
  for (; c + width < hidden; c += 2 * width) {
    add_gated_panel<2>(at(query_sums, c), at(key_sums, c), queries + c, keys + c, step, gradient, rows, columns);
  }
  if (c < hidden) {
    add_gated_panel<1>(at(query_sums, c), at(key_sums, c), queries + c, keys + c, step, gradient, rows, columns);
  }
}

// ---- Two hidden layers, one row of a tile at a time ----

// line[j] = w . relu(V relu(query + keys[j]) + d) for the columns of a tile. `activations` [h][kTile] receives
// relu(query + keys[j]); `second` [h2][kTile], unless null, what the second layer's ReLU gets.
template <class T>
BITLENS_FUNCTION void two_layer_line(T* line, T* activations, T* second, const T* query, const T* panels,
                                     const T* weight, int64_t step, const T* bias, const T* output, int64_t hidden,
                                     int64_t units, int64_t columns) {
  using Vector = typename Lanes<T>::Vector;
  constexpr int64_t width = panel_width<T>();
  for (int64_t j = 0; j < columns; j += width) {
    const T* const panel = panels + j * hidden;
    for (int64_t c = 0; c < hidden; ++c) {
      for (int v = 0; v < 2; ++v) {
        put(activations + c * kTile + j + v * Lanes<T>::width,
            rectified(query[c] + vector_at(panel + c * width + v * Lanes<T>::width)));
      }
    }
    Vector scores[2] = {};
    for (int64_t k = 0; k < units; k += kRegisterRows) {
      Vector sums[kRegisterRows][2];
      multiply<2>(sums, hidden < kDepth ? hidden : kDepth, weight + k * step, step, int64_t{1}, activations + j, kTile);
      for (int64_t done = kDepth; done < hidden; done += kDepth) {
        Vector more[kRegisterRows][2];
        multiply<2>(more, hidden - done < kDepth ? hidden - done : kDepth, weight + k * step + done, step, int64_t{1},
                    activations + done * kTile + j, kTile);
        for (int r = 0; r < kRegisterRows; ++r) {
          for (int v = 0; v < 2; ++v) sums[r][v] += more[r][v];
        }
      }
      // Units are padded with w = 0, which adds nothing. Sums of block sums round less than one long sum.
      Vector block[2] = {};
      for (int r = 0; r < kRegisterRows; ++r) {
        for (int v = 0; v < 2; ++v) {
          const Vector value = sums[r][v] + bias[k + r];
          block[v] += output[k + r] * rectified(value);
          if (second != nullptr) put(second + (k + r) * kTile + j + v * Lanes<T>::width, value);
        }
      }
      for (int v = 0; v < 2; ++v) scores[v] += block[v];
    }
    for (int v = 0; v < 2; ++v) put(line + j + v * Lanes<T>::width, scores[v]);
  }
}

// From the gradient in a row's scores to that in the second layer, in place of what its ReLU got; adds the gradients
// in w and d to sums by lane, [h2][lanes].
template <class T>
BITLENS_FUNCTION void second_layer_gradient(T* second, double* output_sums, double* bias_sums, int64_t lanes,
                                            const T* gradient, const T* output, int64_t units, int64_t columns) {
  using Vector = typename Lanes<T>::Vector;
  constexpr int64_t width = Lanes<T>::width;
  const int64_t visited = round_up(columns, width);
  for (int64_t k = 0; k < units; ++k) {
    const Vector weight = all_lanes(output[k]);
    Vector in_output = {}, in_bias = {};
    for (int64_t j = 0; j < visited; j += width) {
      const Vector value = vector_at(second + k * kTile + j), pull = vector_at(gradient + j);
      const Vector open = gated(pull * weight, value, Vector{});
      in_output += pull * rectified(value);
      in_bias += open;
      put(second + k * kTile + j, open);
    }
    for (int64_t j = visited; j < kTile; ++j) second[k * kTile + j] = T(0);
    alignas(64) T part[2 * width];
    put(part, in_output);
    put(part + width, in_bias);
    add_line(output_sums + k * lanes, part, width);
    add_line(bias_sums + k * lanes, part + width, width);
  }
}

// query_sums[c] += sum over j of gradient[j][c] and key_part[j][c] += gradient[j][c], where gradient[j] is that in
// query + keys[j]: V^T second[:, j] where the activation is positive.
template <int Vectors, class T>
BITLENS_FUNCTION void first_layer_gradient_panel(double* query_sums, T* key_part, const T* second, const T* weight,
                                                 const T* activations_by_key, int64_t step, int64_t units,
                                                 int64_t columns) {
  using Vector = typename Lanes<T>::Vector;
  constexpr int64_t width = Lanes<T>::width;
  Vector total[Vectors] = {};
  for (int64_t j = 0; j < columns; j += kRegisterRows) {
    Vector sums[kRegisterRows][Vectors];
    multiply<Vectors>(sums, units, second + j, int64_t{1}, kTile, weight, step);
    for (int r = 0; r < kRegisterRows; ++r) {
      for (int v = 0; v < Vectors; ++v) {
        const int64_t at = (j + r) * step + v * width;
        const Vector open = gated(sums[r][v], vector_at(activations_by_key + at), Vector{});
        total[v] += open;
        if (key_part != nullptr) put(key_part + at, vector_at(key_part + at) + open);
      }
    }
  }
  if (query_sums == nullptr) return;
  alignas(64) T line[Vectors * width];
  for (int v = 0; v < Vectors; ++v) put(line + v * width, total[v]);
  add_line(query_sums, line, Vectors * width);
}

template <class T>
BITLENS_FUNCTION void first_layer_gradient(double* query_sums, T* key_part, const T* second, const T* weight,
                                           const T* activations_by_key, int64_t step, int64_t hidden, int64_t units,
                                           int64_t columns) {
  constexpr int64_t width = Lanes<T>::width;
  int64_t c = 0;
  for (; c < hidden; c += 2 * width) {
    double* const query_at = query_sums == nullptr ? nullptr : query_sums + c;
    T* const key_at = key_part == nullptr ? nullptr : key_part + c;
    if (c + width < hidden) {
      first_layer_gradient_panel<2>(query_at, key_at, second, weight + c, activations_by_key + c, step, units, columns);
    } else {
      first_layer_gradient_panel<1>(query_at, key_at, second, weight + c, activations_by_key + c, step, units, columns);
    }
  }
}

}  // namespace joint_critic
}  // namespace BITLENS_ISA
}  // namespace bitlens
