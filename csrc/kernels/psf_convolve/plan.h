// Host only: the tables of one transform length, and which length serves a convolution.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <vector>

#include "math.h"

namespace bitlens {
namespace psf_convolve {

namespace fourier = ::bitlens::BITLENS_ISA::fourier;

inline bool is_smooth(std::int64_t size) {
  for (int radix : {2, 3, 5, 7}) {
    while (size % radix == 0) size /= radix;
  }
  return size == 1;
}

// Radices of a smooth size, the fewest stages: eights, and fours for what is left of the power of two.
inline std::vector<int> radices_of(std::int64_t size) {
  int twos = 0;
  for (; size % 2 == 0; size /= 2) ++twos;
  std::vector<int> radices;
  for (; twos >= 5 || twos == 3; twos -= 3) radices.push_back(8);
  for (; twos >= 2; twos -= 2) radices.push_back(4);
  if (twos == 1) radices.push_back(2);
  for (int radix : {3, 5, 7}) {
    for (; size % radix == 0; size /= radix) radices.push_back(radix);
  }
  return radices;
}

// The cheapest smooth size of at least `least`, by arithmetic per point.
inline std::int64_t good_size(std::int64_t least) {
  std::int64_t best = 0;
  double best_cost = 0;
  for (std::int64_t size = least; best == 0 || size <= least + least / 8; ++size) {
    if (!is_smooth(size)) continue;
    double cost = 2;  // loads and stores that do not depend on the stages
    for (int radix : radices_of(size)) {
      cost += radix == 8 ? 2.6 : radix == 4 ? 2 : radix == 2 ? 1.5 : radix == 3 ? 2.2 : radix == 5 ? 3.4 : 4.8;
    }
    cost *= static_cast<double>(size);
    if (best == 0 || cost < best_cost) best = size, best_cost = cost;
  }
  return best;
}

// exp(-2 pi i index / size), exact to rounding: the angle is reduced to an eighth of a turn in integers.
inline fourier::Complex<double> root_of_unity(std::int64_t index, std::int64_t size) {
  index %= size;
  const std::int64_t octant = 8 * index / size;
  const std::int64_t quarter = (octant + 1) / 2;  // nearest multiple of a quarter turn
  const double angle = 2 * M_PI * (static_cast<double>(4 * index - quarter * size) / (4 * static_cast<double>(size)));
  const double c = std::cos(angle), s = std::sin(angle);
  switch (quarter % 4) {
    case 0: return {c, -s};
    case 1: return {-s, -c};
    case 2: return {-c, s};
    default: return {s, c};
  }
}

// Owns the tables of one transform.
template <class T>
class Plan {
 public:
  explicit Plan(std::int64_t size) {
    if (size < 1) throw std::invalid_argument("transform size: need at least 1");
    transform_.size = size;
    const bool smooth = is_smooth(size);
    transform_.inner = smooth ? size : good_size(2 * size - 1);
    const std::vector<int> radices = radices_of(transform_.inner);
    transform_.stages = static_cast<int>(radices.size());
    std::copy(radices.begin(), radices.end(), transform_.radix);

    std::vector<double> twiddles;
    std::int64_t length = transform_.inner;
    for (int radix : radices) {
      for (std::int64_t j = 0; j < length / radix; ++j) {
        for (int q = 1; q < radix; ++q) append(twiddles, root_of_unity(j * q, length));
      }
      length /= radix;
    }
    twiddles_.assign(twiddles.begin(), twiddles.end());

    frequency_.resize(size);
    position_.resize(size);
    for (std::int64_t p = 0; p < size; ++p) {
      frequency_[p] = smooth ? frequency_at(p, radices) : p;
      position_[frequency_[p]] = p;
    }
    if (!smooth) make_chirp(twiddles);

    transform_.twiddles = twiddles_.data();
    transform_.twiddle_count = static_cast<std::int64_t>(twiddles_.size());
    transform_.frequency = frequency_.data();
    transform_.position = position_.data();
    transform_.chirp = smooth ? nullptr : chirp_.data();
    transform_.chirp_spectrum = smooth ? nullptr : chirp_spectrum_.data();
  }
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;

  const Transform<T>& transform() const { return transform_; }

 private:
  static void append(std::vector<double>& list, fourier::Complex<double> value) {
    list.push_back(value.re);
    list.push_back(value.im);
  }

  std::int64_t frequency_at(std::int64_t position, const std::vector<int>& radices) const {
    std::int64_t frequency = 0, weight = 1, length = transform_.inner;
    for (int radix : radices) {
      length /= radix;
      frequency += weight * (position / length);
      position %= length;
      weight *= radix;
    }
    return frequency;
  }

  void make_chirp(const std::vector<double>& twiddles) {
    const std::int64_t size = transform_.size, inner = transform_.inner;
    std::vector<fourier::Complex<double>> filter(inner, {0.0, 0.0});
    for (std::int64_t k = 0; k < size; ++k) {
      // k^2 / (2 size) of a turn; k^2 modulo 2 size without overflow for any size that fits in memory.
      const auto square = static_cast<std::int64_t>(static_cast<unsigned __int128>(k) * k % (2 * size));
      const fourier::Complex<double> value = root_of_unity(square, 2 * size);
      chirp_.push_back(static_cast<T>(value.re));
      chirp_.push_back(static_cast<T>(value.im));
      filter[k] = filter[k == 0 ? 0 : inner - k] = {value.re, -value.im};
    }
    Transform<double> exact{};
    exact.size = exact.inner = inner;
    exact.stages = transform_.stages;
    std::copy(transform_.radix, transform_.radix + kMaxStages, exact.radix);
    exact.twiddles = twiddles.data();
    const std::vector<fourier::Complex<double>> natural = filter;
    fourier::split(exact, filter.data(), [&](std::int64_t k) { return natural[k]; });
    for (const auto& value : filter) {
      chirp_spectrum_.push_back(static_cast<T>(value.re / inner));
      chirp_spectrum_.push_back(static_cast<T>(value.im / inner));
    }
  }

  Transform<T> transform_{};
  std::vector<T> twiddles_, chirp_, chirp_spectrum_;
  std::vector<std::int64_t> frequency_, position_;
};

// The tables of a length, made once: sines of a few hundred points cost as much as a small image. Never waits for the
// lock, which a fork may have left with a thread that the child does not have.
template <class T>
std::shared_ptr<const Plan<T>> plan_of(std::int64_t size) {
  static std::mutex mutex;
  static std::map<std::int64_t, std::shared_ptr<const Plan<T>>> kept;
  constexpr std::size_t kMaxKept = 64;
  if (const std::unique_lock<std::mutex> lock(mutex, std::try_to_lock); lock) {
    const auto found = kept.find(size);
    if (found != kept.end()) return found->second;
  }
  auto made = std::make_shared<const Plan<T>>(size);
  if (const std::unique_lock<std::mutex> lock(mutex, std::try_to_lock); lock) {
    if (kept.size() > kMaxKept) kept.clear();
    kept[size] = made;
  }
  return made;
}

}  // namespace psf_convolve
}  // namespace bitlens
