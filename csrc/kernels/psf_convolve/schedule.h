// Host only: which images and filters are transformed when, and by which thread.
#pragma once

#include <algorithm>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "../../common/parallel.h"
#include "../../common/workspace.h"
#include "passes.h"
#include "plan.h"

namespace bitlens {
namespace psf_convolve {

// What the outputs of one axis need of its transform.
struct Placement {
  std::int64_t size;
  std::vector<std::int64_t> target, source, alias;  // as in Axis; no target where an output is a sum or zero
};

// Positions of the outputs of one axis in the full convolution. A correlation is one with the second operand flipped,
// whose result lies `second - 1` further on.
struct Span {
  std::int64_t full, shift, start, begin, end, period;  // begin .. end: outputs within it
  bool exact;                                           // the transform's length is the period
};

inline Span span_of(const Window& window, std::int64_t first, std::int64_t second, bool correlation) {
  const std::int64_t full = first + second - 1, shift = correlation ? second - 1 : 0, start = window.start + shift;
  return {full, shift, start, std::max<std::int64_t>(start, 0), std::min(start + window.count, full), window.period,
          window.period > 0 && is_smooth(window.period)};
}

// Points of a transform in which no alias falls on a wanted output.
inline std::int64_t least_points(const Span& span, std::int64_t first, std::int64_t second) {
  return span.period > 0 ? span.full : std::max({first, second, span.end, span.full - span.begin});
}

// The shortest good transform of at least that many points.
inline Placement place(const Window& window, const Span& span, std::int64_t points) {
  const std::int64_t full = span.full, period = span.period, shift = span.shift, start = span.start;
  const bool exact = span.exact;
  Placement placement{};
  placement.size = exact ? period : good_size(points);
  const auto index_of = [&](std::int64_t position) {
    return ((position - shift) % placement.size + placement.size) % placement.size;
  };
  placement.source.assign(window.count, -1);
  placement.alias.assign(window.count, -1);
  bool simple = true;
  for (std::int64_t output = 0; output < window.count; ++output) {
    std::int64_t position = start + output;
    if (period > 0) position = (position % period + period) % period;
    if (exact) {
      placement.source[output] = index_of(position);
      continue;
    }
    if (position >= 0 && position < full) placement.source[output] = index_of(position);
    if (period > 0 && position + period < full) placement.alias[output] = index_of(position + period);
    simple = simple && placement.source[output] >= 0 && placement.alias[output] < 0;
  }
  if (simple) {
    placement.target.assign(placement.size, -1);
    for (std::int64_t output = 0; output < window.count; ++output) placement.target[placement.source[output]] = output;
  }
  return placement;
}

// Memory for the widest vectors, not initialised.
template <class T>
struct Aligned {
  explicit Aligned(std::int64_t count)
      : bytes(sizeof(T) * static_cast<std::size_t>(count)), memory(static_cast<T*>(take_workspace(bytes))) {}
  ~Aligned() { return_workspace(memory, bytes); }
  Aligned(const Aligned&) = delete;
  Aligned& operator=(const Aligned&) = delete;
  const std::size_t bytes;
  T* const memory;
};

template <class T>
class Schedule {
 public:
  using RunStep = void (*)(const Problem<T>&, const Job<T>&, Step, std::int64_t, std::int64_t);

  Schedule(const Arguments<T>& given, int threads, RunStep step)
      : arguments_(given), threads_(std::max(threads, 1)), step_(step) {
    choose_roles();
    make_problem();
    offsets_of(arguments_.batch, images_, filters_);
    offsets_of(arguments_.terms, image_terms_, filter_terms_);
    if (!has_companion() && !planned()) find_filters();
  }

  void run() {
    if (has_companion()) return run_with_companion();
    if (arguments_.terms.count == 1 && arguments_.kind != Kind::cross_spectrum) {
      run_products();
    } else {
      run_sums();
    }
  }

  std::int64_t spectrum_size() const { return spectrum_size_; }

  // The spectrum of each output's filter.
  void make_planned(T* spectra) const {
    const Aligned<T> memory(threads_ * (buffer_size_ + plane_size_));
    make_each(0, arguments_.batch.count, memory.memory, [&](const Job<T>& job, std::int64_t b, const auto& run) {
      make_spectrum(job, filters_[b], spectra + b * spectrum_size_, run);
    });
  }

 private:
  static constexpr std::int64_t kMaxLanes = kMaxVectorBytes / sizeof(T);
  static constexpr std::int64_t kHeldBytes = std::int64_t{64} << 20;  // of spectra of filters at a time
  static constexpr std::int64_t kLeastPiece = 1 << 16;  // numbers of spectrum for each piece of work, some 20 us
  static constexpr std::int64_t kSumPieces = 8;  // partial sums of one output: a fixed number, for a fixed order

  bool has_companion() const { return arguments_.companion.factor != nullptr; }
  bool real() const { return arguments_.kind == Kind::convolve; }

  static std::int64_t distinct(const Broadcast<2>& layout, int operand) {
    std::int64_t count = 1;
    for (int dim = 0; dim < layout.ndim; ++dim) count *= layout.strides[operand][dim] != 0 ? layout.shape[dim] : 1;
    return count;
  }

  // A convolution is symmetric: the operand that repeats is the filter, transformed once.
  void choose_roles() {
    if (!real() || arguments_.conjugate || arguments_.spectra) return;
    const auto count = [&](int operand) {
      return distinct(arguments_.batch, operand) * distinct(arguments_.terms, operand);
    };
    if (count(0) >= count(1)) return;
    std::swap(arguments_.first, arguments_.second);
    for (Broadcast<2>* layout : {&arguments_.batch, &arguments_.terms}) {
      for (int dim = 0; dim < layout->ndim; ++dim) std::swap(layout->strides[0][dim], layout->strides[1][dim]);
    }
  }

  void make_problem() {
    const Arguments<T>& a = arguments_;
    const auto axis_of = [](const std::shared_ptr<const Plan<T>>& plan, const Placement& place, std::int64_t outputs) {
      return Axis<T>{plan->transform(), outputs, place.target.empty() ? nullptr : place.target.data(),
                     place.source.data(), place.alias.data()};
    };
    const Window rows = real() ? a.row : Window{0, a.first.rows, a.first.rows};
    const Window columns = real() ? a.column : Window{0, a.first.columns, a.first.columns};
    if (real()) {
      place_both(rows, a.first.rows, a.second.rows, row_, companion_row_);
      place_both(columns, a.first.columns, a.second.columns, column_, companion_column_);
    } else {
      row_ = companion_row_ = whole_axis(a.first.rows);
      column_ = companion_column_ = whole_axis(a.first.columns);
    }
    vertical_ = plan_of<T>(row_.size);
    horizontal_ = plan_of<T>(column_.size);
    const Transform<T>& horizontal = horizontal_->transform();
    mirrored_.resize(column_.size);
    for (std::int64_t q = 0; q < column_.size; ++q) {
      mirrored_[q] = horizontal.position[(column_.size - horizontal.frequency[q]) % column_.size];
    }
    problem_ = {a.kind,
                a.conjugate || a.kind == Kind::cross_spectrum,
                a.first,
                a.second,
                axis_of(vertical_, row_, rows.count),
                axis_of(horizontal_, column_, columns.count),
                {nullptr, rows.count, columns.count, columns.count * (real() ? 1 : 2)},
                axis_of(vertical_, companion_row_, a.second.rows),
                axis_of(horizontal_, companion_column_, a.second.columns),
                real() ? (row_.size + 1) / 2 : row_.size,
                // An odd stride: groups of rows then spread over all sets of the caches.
                std::max({a.first.columns, a.second.columns, columns.count}) | 1,
                mirrored_.data(),
                real() && row_.size % 2 == 0,
                a.centered};
    const std::int64_t rows_padded = (problem_.plane_rows + kMaxLanes - 1) / kMaxLanes * kMaxLanes;
    row_groups_ = rows_padded / kMaxLanes;
    spectrum_size_ = 2 * (rows_padded + kMaxLanes) * column_.size;
    plane_size_ = 2 * rows_padded * problem_.plane_width;
    buffer_size_ = 4 * kMaxLanes * std::max(problem_.row.transform.inner, problem_.column.transform.inner);
    output_size_ = (real() ? 1 : 2) * rows.count * columns.count;
  }

  // The main result's axis and its companion's, in a transform long enough for both.
  void place_both(const Window& window, std::int64_t first, std::int64_t second, Placement& main,
                  Placement& companion) const {
    const bool conjugate = arguments_.conjugate;
    const Span span = span_of(window, first, second, conjugate);
    std::int64_t points = least_points(span, first, second);
    if (has_companion()) {
      const Window other{window.start, second, window.period};
      const Span other_span = span_of(other, first, window.count, conjugate);
      points = std::max(points, least_points(other_span, first, window.count));
      companion = place(other, other_span, points);
    }
    main = place(window, span, points);
  }

  static Placement whole_axis(std::int64_t size) {
    Placement placement{};
    placement.size = size;
    placement.alias.assign(size, -1);
    for (std::int64_t i = 0; i < size; ++i) placement.source.push_back(i);
    placement.target = placement.source;
    return placement;
  }

  static void offsets_of(const Broadcast<2>& layout, std::vector<std::int64_t>& first,
                         std::vector<std::int64_t>& second) {
    first.resize(layout.count);
    second.resize(layout.count);
    for (std::int64_t i = 0; i < layout.count; ++i) {
      std::int64_t offsets[2];
      operand_offsets(layout, i, offsets);
      first[i] = offsets[0];
      second[i] = offsets[1];
    }
  }

  // Filters of all terms of all outputs, each once, in the order of their addresses.
  void find_filters() {
    const std::int64_t outputs = arguments_.batch.count, terms = arguments_.terms.count;
    if (terms == 1) {
      distinct_ = filters_;
    } else if (distinct(arguments_.batch, 1) * distinct(arguments_.terms, 1) < outputs * terms) {
      for (std::int64_t output : filters_) {
        for (std::int64_t term : filter_terms_) distinct_.push_back(output + term);
        if (static_cast<std::int64_t>(distinct_.size()) > (std::int64_t{1} << 20)) break;
      }
    } else {
      reused_ = false;
      return;
    }
    std::sort(distinct_.begin(), distinct_.end());
    distinct_.erase(std::unique(distinct_.begin(), distinct_.end()), distinct_.end());
    reused_ = static_cast<std::int64_t>(distinct_.size()) < outputs * terms;
  }

  std::int64_t slot_of(std::int64_t filter) const {
    return std::lower_bound(distinct_.begin(), distinct_.end(), filter) - distinct_.begin();
  }

  bool planned() const { return arguments_.spectra != nullptr; }

  T* planned_spectrum(std::int64_t filter) const {
    const std::int64_t index = filter / (arguments_.second.rows * arguments_.second.columns);
    return const_cast<T*>(arguments_.spectra) + index * spectrum_size_;
  }

  // ---- steps over a whole image ----

  std::int64_t length_of(const Job<T>& job, Step step) const {
    const auto blocks = [&](std::int64_t columns) {
      const std::int64_t lanes = real() ? (columns + 1) / 2 : columns;
      return (lanes + kMaxLanes - 1) / kMaxLanes;
    };
    switch (step) {
      case Step::image_columns: return blocks(problem_.image.columns);
      case Step::filter_columns: return blocks((job.companion ? problem_.factor : problem_.filter).columns);
      case Step::inverse_columns:
        return blocks((job.companion ? problem_.companion_column : problem_.column).outputs);
      default: return row_groups_;
    }
  }

  void whole(const Job<T>& job, Step step) const { step_(problem_, job, step, 0, length_of(job, step)); }

  // One step by all threads, each with a buffer of its own.
  void together(const Job<T>& job, Step step, T* buffers) const {
    const std::int64_t length = length_of(job, step);
    const std::int64_t pieces = std::min<std::int64_t>(threads_, length);
    const std::int64_t grain = (length + pieces - 1) / pieces;
    parallel_for(length, grain, threads_, [&](std::int64_t begin, std::int64_t end) {
      Job<T> part = job;
      part.buffer = buffers + begin / grain * buffer_size_;
      step_(problem_, part, step, begin, end);
    });
  }

  template <class Run>
  void make_spectrum(Job<T> job, std::int64_t filter, T* spectrum, const Run& run) const {
    job.data = arguments_.second.data + filter;
    job.spectrum = spectrum;
    if (arguments_.kind == Kind::filter) return run(job, Step::transfer);
    run(job, Step::filter_columns);
    run(job, Step::spectrum_rows);
  }

  // The factor of output b.
  template <class Run>
  void make_factor(Job<T> job, std::int64_t b, T* spectrum, const Run& run) const {
    job.data = arguments_.companion.factor + b * output_size_;
    job.spectrum = spectrum;
    job.companion = true;
    if (!real()) return run(job, Step::transfer);
    run(job, Step::filter_columns);
    run(job, Step::spectrum_rows);
  }

  template <class Run>
  void apply(Job<T> job, std::int64_t b, T* spectrum, const Run& run) const {
    job.data = arguments_.first.data + images_[b];
    job.output = arguments_.output + b * output_size_;
    job.spectrum = spectrum;
    run(job, Step::image_columns);
    run(job, Step::product_rows);
    run(job, Step::inverse_columns);
  }

  // ---- one product for each output ----

  // Memory of a piece of work: buffer, plane, and what else it asks for.
  Job<T> job_in(T* memory) const {
    Job<T> job{};
    job.buffer = memory;
    job.plane = memory + buffer_size_;
    return job;
  }

  std::int64_t grain_of(std::int64_t items, std::int64_t pieces) const {
    return std::max((items + pieces - 1) / pieces, (kLeastPiece + spectrum_size_ - 1) / spectrum_size_);
  }

  void run_products() {
    const std::int64_t count = arguments_.batch.count;
    if (count < threads_) return run_products_together();
    const std::int64_t pieces = std::min<std::int64_t>(threads_, count);
    if (!reused_ || planned()) {
      const std::int64_t each = buffer_size_ + plane_size_ + (planned() ? 0 : spectrum_size_);
      const Aligned<T> memory(pieces * each);
      const std::int64_t grain = grain_of(count, pieces);
      parallel_for(count, grain, threads_, [&](std::int64_t from, std::int64_t to) {
        T* const own = memory.memory + from / grain * each;
        const Job<T> job = job_in(own);
        const auto run = [&](const Job<T>& part, Step step) { whole(part, step); };
        for (std::int64_t b = from; b < to; ++b) {
          T* const spectrum = planned() ? planned_spectrum(filters_[b]) : own + buffer_size_ + plane_size_;
          if (!planned()) make_spectrum(job, filters_[b], spectrum, run);
          apply(job, b, spectrum, run);
        }
      });
      return;
    }
    // Outputs in the order of their filters; each is written by one thread, whatever the order.
    std::vector<std::int64_t> order(count);
    for (std::int64_t b = 0; b < count; ++b) order[b] = b;
    std::stable_sort(order.begin(), order.end(),
                     [&](std::int64_t a, std::int64_t b) { return filters_[a] < filters_[b]; });
    const std::int64_t filters = static_cast<std::int64_t>(distinct_.size());
    const std::int64_t held = std::min(filters, held_filters());
    const Aligned<T> spectra(held * spectrum_size_);
    // One piece and one workspace per thread, made before the parallel region, out of which nothing may throw.
    const std::int64_t each = buffer_size_ + plane_size_;
    const Aligned<T> memory(std::max<std::int64_t>(pieces * each, threads_ * buffer_size_ + plane_size_));
    std::int64_t next = 0;
    for (std::int64_t begin = 0; begin < filters; begin += held) {
      const std::int64_t end = std::min(begin + held, filters);
      make_spectra(begin, end, spectra.memory, memory.memory);
      std::int64_t last = next;
      while (last < count && (end == filters || filters_[order[last]] < distinct_[end])) ++last;
      const std::int64_t grain = grain_of(last - next, pieces);
      parallel_for(last - next, grain, threads_, [&](std::int64_t from, std::int64_t to) {
        const Job<T> job = job_in(memory.memory + from / grain * each);
        for (std::int64_t i = next + from; i < next + to; ++i) {
          apply(job, order[i], spectra.memory + (slot_of(filters_[order[i]]) - begin) * spectrum_size_,
                [&](const Job<T>& part, Step step) { whole(part, step); });
        }
      });
      next = last;
    }
  }

  std::int64_t held_filters() const {
    return std::max<std::int64_t>(threads_, kHeldBytes / (spectrum_size_ * static_cast<std::int64_t>(sizeof(T))));
  }

  // make(job, i, run) for every i in begin .. end, each a spectrum; few of them by all threads together. `memory` holds
  // buffer and plane for each thread, or all buffers and one plane.
  template <class Make>
  void make_each(std::int64_t begin, std::int64_t end, T* memory, const Make& make) const {
    if (end - begin < threads_) {
      Job<T> job{};
      job.plane = memory + threads_ * buffer_size_;
      for (std::int64_t i = begin; i < end; ++i) {
        make(job, i, [&](const Job<T>& part, Step step) { together(part, step, memory); });
      }
      return;
    }
    const std::int64_t grain = grain_of(end - begin, std::min<std::int64_t>(threads_, end - begin));
    parallel_for(end - begin, grain, threads_, [&](std::int64_t from, std::int64_t to) {
      const Job<T> job = job_in(memory + from / grain * (buffer_size_ + plane_size_));
      for (std::int64_t i = begin + from; i < begin + to; ++i) {
        make(job, i, [&](const Job<T>& part, Step step) { whole(part, step); });
      }
    });
  }

  // Spectra of the distinct filters begin .. end.
  void make_spectra(std::int64_t begin, std::int64_t end, T* spectra, T* memory) const {
    make_each(begin, end, memory, [&](const Job<T>& job, std::int64_t i, const auto& run) {
      make_spectrum(job, distinct_[i], spectra + (i - begin) * spectrum_size_, run);
    });
  }

  // Fewer outputs than threads: all threads work on one image.
  void run_products_together() {
    // They meet after each pass, which small images do not repay.
    if (spectrum_size_ < kLeastPiece) threads_ = 1;
    const Aligned<T> memory(threads_ * buffer_size_ + plane_size_ + (planned() ? 0 : spectrum_size_));
    Job<T> job{};
    job.plane = memory.memory + threads_ * buffer_size_;
    const auto run = [&](const Job<T>& part, Step step) { together(part, step, memory.memory); };
    for (std::int64_t b = 0; b < arguments_.batch.count; ++b) {
      T* const spectrum = planned() ? planned_spectrum(filters_[b]) : job.plane + plane_size_;
      if (!planned() && (b == 0 || filters_[b] != filters_[b - 1])) make_spectrum(job, filters_[b], spectrum, run);
      apply(job, b, spectrum, run);
    }
  }

  // ---- sums of products ----

  // Outputs whose images are the same, one after the other, share the images' spectra; a single output of many terms
  // is cut into a fixed number of partial sums.
  void run_sums() {
    const std::int64_t count = arguments_.batch.count, terms = arguments_.terms.count;
    const std::int64_t filters = static_cast<std::int64_t>(distinct_.size());
    const bool made = !planned() && reused_ && filters <= held_filters(), held = planned() || made;
    const Aligned<T> spectra(made ? filters * spectrum_size_ : 0);
    const auto held_spectrum = [&](std::int64_t filter) {
      return planned() ? planned_spectrum(filter) : spectra.memory + slot_of(filter) * spectrum_size_;
    };
    const std::int64_t each = buffer_size_ + plane_size_ + spectrum_size_;
    const std::int64_t pieces = count >= kSumPieces ? 1 : std::min(kSumPieces, terms);
    const std::int64_t workers = std::min<std::int64_t>(threads_, count * pieces);
    {
      const Aligned<T> memory(made ? threads_ * (buffer_size_ + plane_size_) : 0);
      if (made) make_spectra(0, filters, spectra.memory, memory.memory);
    }
    if (pieces == 1 && images_shared()) return run_shared_sums(held, held_spectrum);
    const Aligned<T> sums(pieces > 1 ? count * pieces * spectrum_size_ : workers * spectrum_size_);
    const Aligned<T> memory(workers * each);
    const std::int64_t tasks = count * pieces, grain = (tasks + workers - 1) / workers;
    parallel_for(tasks, grain, threads_, [&](std::int64_t from, std::int64_t to) {
      const std::int64_t worker = from / grain;
      T* const own = memory.memory + worker * each;
      for (std::int64_t task = from; task < to; ++task) {
        const std::int64_t b = task / pieces, piece = task % pieces;
        Job<T> job = job_in(own);
        job.sums = sums.memory + (pieces > 1 ? task : worker) * spectrum_size_;
        const std::int64_t begin = terms * piece / pieces, end = terms * (piece + 1) / pieces;
        for (std::int64_t term = begin; term < end; ++term) {
          const std::int64_t filter = filters_[b] + filter_terms_[term];
          T* const live = own + buffer_size_ + plane_size_;
          if (!held) make_spectrum(job, filter, live, [&](const Job<T>& part, Step step) { whole(part, step); });
          job.spectrum = held ? held_spectrum(filter) : live;
          job.data = arguments_.first.data + images_[b] + image_terms_[term];
          job.first = term == begin;
          whole(job, Step::image_columns);
          whole(job, Step::sum_rows);
        }
        if (pieces == 1) finish(job, b, [&](const Job<T>& part, Step step) { whole(part, step); });
      }
    });
    if (pieces > 1) add_pieces(pieces, sums.memory, memory.memory);
  }

  // Outputs from their partial sums.
  void add_pieces(std::int64_t pieces, T* sums, T* memory) const {
    for (std::int64_t b = 0; b < arguments_.batch.count; ++b) {
      T* const total = sums + b * pieces * spectrum_size_;
      for (std::int64_t piece = 1; piece < pieces; ++piece) {
        const T* const part = total + piece * spectrum_size_;
        for (std::int64_t i = 0; i < row_groups_ * 2 * kMaxLanes * column_.size; ++i) total[i] += part[i];
      }
      Job<T> job = job_in(memory);
      job.sums = total;
      finish(job, b, [&](const Job<T>& whole_image, Step step) { whole(whole_image, step); });
    }
  }

  template <class Run>
  void finish(Job<T> job, std::int64_t b, const Run& run) const {
    job.output = arguments_.output + b * output_size_;
    if (arguments_.kind == Kind::cross_spectrum) return run(job, Step::write_spectrum);
    run(job, Step::inverse_rows);
    run(job, Step::inverse_columns);
  }

  // Both results. Few images are shared among all threads, with the same sums in the same order.
  void run_with_companion() {
    const std::int64_t count = arguments_.batch.count, terms = arguments_.terms.count;
    const std::int64_t pieces = count >= kSumPieces ? 1 : std::min(kSumPieces, terms), tasks = count * pieces;
    if (tasks < threads_ && spectrum_size_ < kLeastPiece) threads_ = 1;  // too small to meet after each pass
    const bool held = count <= held_filters(), alone = tasks >= threads_;
    const std::int64_t workers = alone ? threads_ : 1, buffers = alone ? 1 : threads_;
    const Aligned<T> factors(held ? count * spectrum_size_ : 0);
    const std::int64_t each = buffers * buffer_size_ + plane_size_ + (held ? 1 : 2) * spectrum_size_;
    const Aligned<T> memory(std::max(workers * each, threads_ * (buffer_size_ + plane_size_)));
    // A single product may take the place of the spectrum that it was made with.
    const bool in_place = terms == 1;
    const Aligned<T> sums(in_place ? 0 : (pieces > 1 ? tasks : workers) * spectrum_size_);
    if (held) {
      make_each(0, count, memory.memory, [&](const Job<T>& job, std::int64_t b, const auto& run) {
        make_factor(job, b, factors.memory + b * spectrum_size_, run);
      });
    }
    const auto one = [&](std::int64_t task, std::int64_t worker, const auto& run) {
      const std::int64_t b = task / pieces, piece = task % pieces;
      T* const own = memory.memory + worker * each;
      Job<T> job{};
      job.buffer = own;
      job.plane = own + buffers * buffer_size_;
      job.spectrum = job.plane + plane_size_;
      job.factor = held ? factors.memory + b * spectrum_size_ : job.spectrum + spectrum_size_;
      job.sums = in_place ? job.spectrum : sums.memory + (pieces > 1 ? task : worker) * spectrum_size_;
      if (!held) make_factor(job, b, job.factor, run);
      const std::int64_t begin = terms * piece / pieces, end = terms * (piece + 1) / pieces;
      for (std::int64_t term = begin; term < end; ++term) {
        const std::int64_t image = filters_[b] + filter_terms_[term];
        make_spectrum(job, image, job.spectrum, run);
        job.data = arguments_.first.data + images_[b] + image_terms_[term];
        job.first = term == begin;
        run(job, Step::image_columns);
        run(job, Step::companion_rows);
        Job<T> companion = job;
        companion.companion = true;
        companion.output = arguments_.companion.output + image;
        run(companion, Step::inverse_columns);
      }
      if (pieces == 1) finish(job, b, run);
    };
    if (alone) {
      const std::int64_t grain = (tasks + workers - 1) / workers;
      parallel_for(tasks, grain, threads_, [&](std::int64_t from, std::int64_t to) {
        for (std::int64_t task = from; task < to; ++task) {
          one(task, from / grain, [&](const Job<T>& part, Step step) { whole(part, step); });
        }
      });
    } else {
      for (std::int64_t task = 0; task < tasks; ++task) {
        one(task, 0, [&](const Job<T>& part, Step step) { together(part, step, memory.memory); });
      }
    }
    if (pieces > 1) add_pieces(pieces, sums.memory, memory.memory);
  }

  // Whether neighbouring outputs are made of the same images.
  bool images_shared() const {
    return arguments_.batch.count > 1 && images_[0] == images_[1] && arguments_.terms.count > 1;
  }

  template <class Held>
  void run_shared_sums(bool held, const Held& held_spectrum) {
    const std::int64_t count = arguments_.batch.count, terms = arguments_.terms.count;
    std::vector<std::int64_t> groups;  // first outputs of runs with the same images
    for (std::int64_t b = 0; b < count; ++b) {
      if (b == 0 || images_[b] != images_[b - 1]) groups.push_back(b);
    }
    groups.push_back(count);
    const std::int64_t n_groups = static_cast<std::int64_t>(groups.size()) - 1;
    const std::int64_t workers = std::min<std::int64_t>(threads_, n_groups);
    const std::int64_t each = buffer_size_ + plane_size_ + (2 + terms) * spectrum_size_;
    const Aligned<T> memory(workers * each);
    const std::int64_t grain = (n_groups + workers - 1) / workers;
    parallel_for(n_groups, grain, threads_, [&](std::int64_t from, std::int64_t to) {
      T* const own = memory.memory + from / grain * each;
      Job<T> job = job_in(own);
      job.sums = own + buffer_size_ + plane_size_;
      T* const live = job.sums + spectrum_size_;
      T* const kept = live + spectrum_size_;
      for (std::int64_t group = from; group < to; ++group) {
        for (std::int64_t term = 0; term < terms; ++term) {
          job.data = arguments_.first.data + images_[groups[group]] + image_terms_[term];
          job.kept = kept + term * spectrum_size_;
          whole(job, Step::image_columns);
          whole(job, Step::keep_rows);
        }
        for (std::int64_t b = groups[group]; b < groups[group + 1]; ++b) {
          for (std::int64_t term = 0; term < terms; ++term) {
            const std::int64_t filter = filters_[b] + filter_terms_[term];
            if (!held) make_spectrum(job, filter, live, [&](const Job<T>& part, Step step) { whole(part, step); });
            job.spectrum = held ? held_spectrum(filter) : live;
            job.kept = kept + term * spectrum_size_;
            job.first = term == 0;
            whole(job, Step::sum_kept);
          }
          finish(job, b, [&](const Job<T>& part, Step step) { whole(part, step); });
        }
      }
    });
  }

  Arguments<T> arguments_;
  int threads_;
  const RunStep step_;
  Placement row_, column_, companion_row_, companion_column_;
  std::shared_ptr<const Plan<T>> vertical_, horizontal_;
  std::vector<std::int64_t> mirrored_;
  Problem<T> problem_{};
  std::int64_t row_groups_ = 0, spectrum_size_ = 0, plane_size_ = 0, buffer_size_ = 0, output_size_ = 0;
  std::vector<std::int64_t> images_, filters_, image_terms_, filter_terms_;  // offsets of outputs and of terms
  std::vector<std::int64_t> distinct_;  // offsets of filters
  bool reused_ = true;                  // whether some filter serves more than one product
};

}  // namespace psf_convolve
}  // namespace bitlens
