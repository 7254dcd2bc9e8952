// The pass over all tiles behind `statistics`, part of the baseline copy of cpu.cpp.
namespace cpu {
namespace {

// Slabs of rows, each worked on by one thread with sums of its own over the columns, joined in the order of the slabs:
// the order of all sums depends on the sizes alone. Their number follows the pixels, so that these sums need no more
// memory than the means do.
constexpr std::int64_t kFewestSlabs = 8, kMostSlabs = 32;

// [kRows] or [columns] of (largest, sum), and the same of the excluded pairs.
struct OwnedSums {
  explicit OwnedSums(std::int64_t count) : values(4 * count, 0.0), count(count) {
    std::fill_n(values.begin(), count, -INFINITY);
    std::fill_n(values.begin() + 2 * count, count, -INFINITY);
  }
  LogSums sums(std::int64_t from = 0) { return {values.data() + from, values.data() + count + from}; }
  LogSums excluded(std::int64_t from = 0) {
    return {values.data() + 2 * count + from, values.data() + 3 * count + from};
  }
  std::vector<double> values;
  std::int64_t count;
};

void join(const LogSums& to, const LogSums& from, std::int64_t at) {
  baseline::infonce_merge(to.largest[at], to.sum[at], from.largest[at], from.sum[at]);
}

template <class T>
void all_statistics(const Arguments<T>& arguments, const Statistics<T>& wanted, int threads) {
  const OwnedPlan<T> owned = make_plan(arguments, false, threads);
  const Plan<T> plan = owned.view();
  const auto tile = score_tile_for(static_cast<T*>(nullptr));
  const auto reduce = BITLENS_FOR_THIS_PROCESSOR(reduce_tile);
  const std::int64_t n = arguments.rows, m = arguments.columns;
  const std::int64_t scratch_size =
      Interpolation<T>::kGroup * (Interpolation<T>::kTaps * kColumns + (owned.most_nodes() + 1) * kRows);
  const std::int64_t most_slabs = std::min(kMostSlabs, std::max(kFewestSlabs, arguments.pixels));
  const std::int64_t tiles = (n + kRows - 1) / kRows, tiles_per_slab = (tiles + most_slabs - 1) / most_slabs;
  const std::int64_t slabs = tiles == 0 ? 0 : (tiles + tiles_per_slab - 1) / tiles_per_slab;
  std::vector<OwnedSums> by_slab;
  for (std::int64_t slab = 0; slab < std::max<std::int64_t>(slabs, 1); ++slab) by_slab.emplace_back(m);

  parallel_for(slabs, 1, threads, [&](std::int64_t slab_begin, std::int64_t slab_end) {
    std::vector<T> scratch(scratch_size);
    std::vector<double> scores(kRows * std::min(kColumnBlock, m));
    for (std::int64_t slab = slab_begin; slab < slab_end; ++slab) {
      const std::int64_t last = std::min(n, (slab + 1) * tiles_per_slab * kRows);
      for (std::int64_t row = slab * tiles_per_slab * kRows; row < last; row += kRows) {
        const std::int64_t row_end = std::min(row + kRows, n);
        OwnedSums rows(kRows);
        for (std::int64_t column = 0; column < m; column += kColumnBlock) {
          const std::int64_t column_end = std::min(column + kColumnBlock, m);
          tile(arguments, plan, row, row_end, column, column_end, scratch.data(), scores.data());
          const TileMasks masks = {wanted.positive + row, wanted.row_group ? wanted.row_group + row : nullptr,
                                   wanted.column_group ? wanted.column_group + column : nullptr,
                                   wanted.row_bias ? wanted.row_bias + row : nullptr};
          double positives[kRows];
          std::fill_n(positives, kRows, NAN);
          reduce(masks, row_end - row, column_end - column, column, scores.data(),
                 TileSums{positives, rows.sums(), rows.excluded(), by_slab[slab].sums(column),
                          by_slab[slab].excluded(column)});
          for (std::int64_t i = row; i < row_end; ++i) {
            const bool here = wanted.positive[i] >= column && wanted.positive[i] < column_end;
            if (here) wanted.positive_score[i] = static_cast<T>(positives[i - row]);
          }
        }
        for (std::int64_t i = row; i < row_end; ++i) {
          const LogSums negatives = rows.sums(i - row);
          wanted.negatives[i] = static_cast<T>(baseline::infonce_log_sum(*negatives.largest, *negatives.sum));
          join(negatives, rows.excluded(i - row), 0);
          wanted.row[i] = static_cast<T>(baseline::infonce_log_sum(*negatives.largest, *negatives.sum));
        }
      }
    }
  });
  parallel_for(m, 256, threads, [&](std::int64_t begin, std::int64_t end) {
    const LogSums sums = by_slab[0].sums(), excluded = by_slab[0].excluded();
    for (std::int64_t j = begin; j < end; ++j) {
      for (std::int64_t slab = 1; slab < slabs; ++slab) {
        join(sums, by_slab[slab].sums(), j);
        join(excluded, by_slab[slab].excluded(), j);
      }
      wanted.column_negatives[j] = static_cast<T>(baseline::infonce_log_sum(sums.largest[j], sums.sum[j]));
      join(sums, excluded, j);
      wanted.column[j] = static_cast<T>(baseline::infonce_log_sum(sums.largest[j], sums.sum[j]));
    }
  });
}

}  // namespace

void statistics(const Arguments<float>& arguments, const Statistics<float>& wanted, int threads) {
  all_statistics(arguments, wanted, threads);
}
void statistics(const Arguments<double>& arguments, const Statistics<double>& wanted, int threads) {
  all_statistics(arguments, wanted, threads);
}

}  // namespace cpu
