#include <algorithm>
#include <cstring>
#include <memory>
#include <tuple>
#include <vector>

#include "../common/tensor.h"
#include "vector.h"

namespace agm {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::stable::Tensor;

constexpr int kMaxModalities = 16;
constexpr int64_t kTile = 256;     // columns; their sums stay in the first-level cache
constexpr int64_t kGrain = 32768;  // elements of work under which a second thread costs more than it brings
constexpr int64_t kSamples = 16;   // of a block; its sums are added up in order, those of the blocks in pairs
constexpr unsigned kSubsets = 64;  // added up in order, as one part of a longer sum

struct Modality {
  int64_t start;   // of its columns in a row of the output: all start at 0 where they are summed
  int64_t before;  // columns of the modalities before it
  int64_t width;
};

struct Layout {
  std::vector<Modality> modalities;
  int64_t batch;
  int64_t width;  // of a row of the output
  int64_t total;  // columns of all modalities

  int count() const { return static_cast<int>(modalities.size()); }
  int64_t subsets() const { return (int64_t{1} << count()) - 2; }
};

Layout layout_of(const std::vector<int64_t>& widths, int64_t batch, bool concatenate) {
  STD_TORCH_CHECK(widths.size() >= 2 && widths.size() <= kMaxModalities, "Expected 2 to ", kMaxModalities,
                  " modalities, but got ", widths.size(), ".");
  Layout layout{{}, batch, widths[0], 0};
  for (const int64_t width : widths) {
    STD_TORCH_CHECK(concatenate || width == widths[0], "Expected features of one width to sum, but got ",
                    widths[0], " and ", width, ".");
    layout.modalities.push_back({concatenate ? layout.total : 0, layout.total, width});
    layout.total += width;
  }
  if (concatenate) layout.width = layout.total;
  return layout;
}

// The tensor itself where the columns are neighbours in memory, otherwise a compact copy.
Tensor unit_column_stride(const Tensor& rows) {
  return rows.size(1) <= 1 || rows.stride(1) == 1 ? rows : torch::stable::contiguous(rows);
}

// Where the rows of the modalities are.
struct Sources {
  std::vector<Tensor> kept;  // copies live as long as the pointers to them
  std::vector<const char*> present, absent;
  std::vector<int64_t> row_bytes;  // from sample to sample

  Sources(const std::vector<Tensor>& present_rows, const std::vector<Tensor>& absent_rows) {
    for (size_t m = 0; m < present_rows.size(); ++m) {
      const Tensor& one = kept.emplace_back(unit_column_stride(present_rows[m]));
      present.push_back(static_cast<const char*>(one.const_data_ptr()));
      row_bytes.push_back(one.stride(0) * static_cast<int64_t>(one.element_size()));
      const Tensor& none = kept.emplace_back(unit_column_stride(absent_rows[m]));
      absent.push_back(static_cast<const char*>(none.const_data_ptr()));
    }
  }

  const char* row(unsigned subset, int m, int64_t sample) const {
    const auto i = static_cast<size_t>(m);
    return (subset >> m & 1) != 0 ? present[i] + sample * row_bytes[i] : absent[i];
  }
};

// Calls `write(subset, sample, row)` for every row of the output.
template <typename Write>
void for_each_row(const Layout& layout, const Write& write) {
  const int64_t grain = std::max<int64_t>(1, kGrain / (layout.width + 1));
  const int64_t rows = layout.subsets() * layout.batch;
  torch::stable::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    auto subset = static_cast<unsigned>(begin / layout.batch) + 1;
    int64_t sample = begin % layout.batch;
    for (int64_t row = begin; row < end; ++row) {
      write(subset, sample, row);
      if (++sample == layout.batch) {
        sample = 0;
        ++subset;
      }
    }
  });
}

void concatenate_rows(const Layout& layout, const Sources& sources, int64_t element_size, char* out) {
  for_each_row(layout, [&](unsigned subset, int64_t sample, int64_t row) {
    char* target = out + row * layout.width * element_size;
    for (int m = 0; m < layout.count(); ++m) {
      const int64_t bytes = layout.modalities[static_cast<size_t>(m)].width * element_size;
      std::memcpy(target, sources.row(subset, m, sample), static_cast<size_t>(bytes));
      target += bytes;
    }
  });
}

template <typename T>
AGM_HOST_DEVICE void sum_parts_body(const T* const* parts, int count, int64_t width, T* out) {
  using A = accumulate_t<T>;
  A sum[kTile];
  for (int64_t start = 0; start < width; start += kTile) {
    const int64_t size = std::min(kTile, width - start);
    const T* first = parts[0] + start;
    const T* second = parts[1] + start;
    // From 0, as the specification has it: -0 and -0 then give 0.
    for (int64_t i = 0; i < size; ++i) sum[i] = (A(0) + widen(first[i])) + widen(second[i]);
    for (int m = 2; m < count; ++m) {
      const T* part = parts[m] + start;
      for (int64_t i = 0; i < size; ++i) sum[i] += widen(part[i]);
    }
    for (int64_t i = 0; i < size; ++i) out[start + i] = narrow<T>(sum[i]);
  }
}

// The gradient, and where its sums go.
template <typename T>
struct Reduction {
  const T* grad;
  int64_t row_stride;
  const Layout& layout;
  T* present;                // (batch, width) of each modality, one after another
  accumulate_t<T>* partial;  // (blocks, total): what each block of samples adds to the absent rows
};

// Columns of a row of the gradient, which modalities `first` to `last` share.
struct Tile {
  int first, last;
  int64_t column;  // of those of the modality
  int64_t size;    // at most kTile
};

template <typename To, typename From>
AGM_HOST_DEVICE void add(const From* numbers, int64_t size, To* sum) {
  for (int64_t i = 0; i < size; ++i) sum[i] += widen(numbers[i]);
}

// Sums of a tile: those over the subsets with a modality, then those over the subsets without it.
template <typename A>
struct Sums {
  A of[kMaxModalities][2][kTile];

  void clear(const Tile& tile, int side) {
    for (int m = tile.first; m < tile.last; ++m) std::fill_n(of[m - tile.first][side], tile.size, A(0));
  }
};

template <typename T, typename A>
AGM_HOST_DEVICE void add_subsets(const Tile& tile, const T* row, int64_t stride, unsigned begin, unsigned end,
                                 Sums<A>& sums) {
  for (unsigned subset = begin; subset < end; ++subset, row += stride) {
    for (int m = tile.first; m < tile.last; ++m) {
      add(row, tile.size, sums.of[m - tile.first][(subset >> m & 1) != 0 ? 0 : 1]);
    }
  }
}

template <typename T>
AGM_HOST_DEVICE void reduce_block_body(const Reduction<T>& reduction, const Tile& tile, int64_t block) {
  using A = accumulate_t<T>;
  const Layout& layout = reduction.layout;
  const Modality* modalities = layout.modalities.data();
  const int64_t stride = layout.batch * reduction.row_stride;
  const T* columns = reduction.grad + modalities[tile.first].start + tile.column;
  const auto end = static_cast<unsigned>(layout.subsets()) + 1;
  Sums<A> sums, part;
  sums.clear(tile, 1);
  const int64_t last = std::min(layout.batch, (block + 1) * kSamples);
  for (int64_t sample = block * kSamples; sample < last; ++sample) {
    const T* row = columns + sample * reduction.row_stride;
    sums.clear(tile, 0);
    if (end <= kSubsets) {
      add_subsets(tile, row, stride, 1, end, sums);
    } else {
      for (unsigned begin = 1; begin < end; begin += kSubsets) {
        part.clear(tile, 0);
        part.clear(tile, 1);
        add_subsets(tile, row + (begin - 1) * stride, stride, begin, std::min(begin + kSubsets, end), part);
        for (int m = tile.first; m < tile.last; ++m) {
          for (int side = 0; side < 2; ++side) {
            add(part.of[m - tile.first][side], tile.size, sums.of[m - tile.first][side]);
          }
        }
      }
    }
    for (int m = tile.first; m < tile.last; ++m) {
      const Modality& own = modalities[m];
      T* out = reduction.present + layout.batch * own.before + sample * own.width + tile.column;
      const A* sum = sums.of[m - tile.first][0];
      for (int64_t i = 0; i < tile.size; ++i) out[i] = narrow<T>(sum[i]);
    }
  }
  for (int m = tile.first; m < tile.last; ++m) {
    A* out = reduction.partial + block * layout.total + modalities[m].before + tile.column;
    std::copy_n(sums.of[m - tile.first][1], tile.size, out);
  }
}

#define AGM_EXPAND_LOOPS(T)                                                                      \
  AGM_CLONES void sum_parts(const T* const* parts, int count, int64_t width, T* out) {           \
    sum_parts_body(parts, count, width, out);                                                    \
  }                                                                                              \
  AGM_CLONES void reduce_block(const Reduction<T>& reduction, const Tile& tile, int64_t block) { \
    reduce_block_body(reduction, tile, block);                                                   \
  }
AGM_EXPAND_LOOPS(float)
AGM_EXPAND_LOOPS(double)
AGM_EXPAND_LOOPS(Half)
AGM_EXPAND_LOOPS(BFloat16)

template <typename T>
void sum_rows(const Layout& layout, const Sources& sources, T* out) {
  for_each_row(layout, [&](unsigned subset, int64_t sample, int64_t row) {
    const T* parts[kMaxModalities];
    for (int m = 0; m < layout.count(); ++m) {
      parts[m] = reinterpret_cast<const T*>(sources.row(subset, m, sample));
    }
    sum_parts(parts, layout.count(), layout.width, out + row * layout.width);
  });
}

Tensor expand_subsets(const std::vector<Tensor>& present, const std::vector<Tensor>& absent,
                      bool concatenate) {
  STD_TORCH_CHECK(!present.empty() && present.size() == absent.size(),
                  "Expected an absent row for each modality, but got ", absent.size(), " for ",
                  present.size(), ".");
  std::vector<int64_t> widths;
  for (size_t m = 0; m < present.size(); ++m) {
    STD_TORCH_CHECK(present[m].dim() == 2 && absent[m].dim() == 2 && absent[m].size(0) == 1 &&
                        present[m].size(0) == present[0].size(0) && present[m].size(1) == absent[m].size(1),
                    "Expected features (B, D_m) and absent rows (1, D_m).");
    STD_TORCH_CHECK(present[m].scalar_type() == present[0].scalar_type() &&
                        absent[m].scalar_type() == present[0].scalar_type(),
                    "Expected features and absent rows of one dtype.");
    widths.push_back(present[m].size(1));
  }
  const Layout layout = layout_of(widths, present[0].size(0), concatenate);
  const Sources sources(present, absent);
  Tensor out = torch::stable::new_empty(present[0], {layout.subsets() * layout.batch, layout.width});
  if (out.numel() == 0) return out;
  if (concatenate) {  // copies only, so of numbers of any type
    concatenate_rows(layout, sources, static_cast<int64_t>(out.element_size()),
                     static_cast<char*>(out.mutable_data_ptr()));
    return out;
  }
  AGM_DISPATCH_FLOATING(out.scalar_type(), "agm::expand_subsets",
                        [&] { sum_rows(layout, sources, static_cast<scalar_t*>(out.mutable_data_ptr())); });
  return out;
}

std::vector<Tile> tiles_of(const Layout& layout, bool concatenate) {
  std::vector<Tile> tiles;
  for (int m = 0; m < (concatenate ? layout.count() : 1); ++m) {
    const int64_t width = layout.modalities[static_cast<size_t>(m)].width;
    const int last = concatenate ? m + 1 : layout.count();
    for (int64_t column = 0; column < width; column += kTile) {
      tiles.push_back({m, last, column, std::min(kTile, width - column)});
    }
  }
  return tiles;
}

// The sum of rows begin ... end, in pairs: its error grows with the logarithm of how many there are.
template <typename A>
void sum_in_pairs(const A* rows, int64_t stride, int64_t begin, int64_t end, int64_t size, A* sum) {
  if (end - begin <= kSamples) {
    std::fill_n(sum, size, A(0));
    for (int64_t row = begin; row < end; ++row) add(rows + row * stride, size, sum);
    return;
  }
  const int64_t middle = begin + (end - begin) / 2;
  A second[kTile];
  sum_in_pairs(rows, stride, begin, middle, size, sum);
  sum_in_pairs(rows, stride, middle, end, size, second);
  add(second, size, sum);
}

template <typename T>
void reduce(const Layout& layout, const Tensor& grad, bool concatenate, T* present, T* absent) {
  using A = accumulate_t<T>;
  // Blocks and tiles are the same for any number of threads, and so is the result.
  const int64_t blocks = (layout.batch + kSamples - 1) / kSamples;
  const std::unique_ptr<A[]> partial(new A[static_cast<size_t>(blocks * layout.total)]);
  const Reduction<T> reduction{static_cast<const T*>(grad.const_data_ptr()), grad.stride(0), layout, present,
                               partial.get()};
  const std::vector<Tile> tiles = tiles_of(layout, concatenate);
  const auto count = static_cast<int64_t>(tiles.size());
  const int64_t work = layout.subsets() * kSamples * (layout.total / std::max<int64_t>(1, count) + 1);
  const int64_t grain = std::max<int64_t>(1, kGrain / work);
  torch::stable::parallel_for(0, blocks * count, grain, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      reduce_block(reduction, tiles[static_cast<size_t>(task % count)], task / count);
    }
  });
  for (int64_t start = 0; start < layout.total; start += kTile) {
    const int64_t size = std::min(kTile, layout.total - start);
    A sum[kTile];
    sum_in_pairs(partial.get() + start, layout.total, 0, blocks, size, sum);
    for (int64_t i = 0; i < size; ++i) absent[start + i] = narrow<T>(sum[i]);
  }
}

std::tuple<Tensor, Tensor> expand_subsets_backward(const Tensor& grad, const std::vector<int64_t>& widths,
                                                   int64_t batch, bool concatenate) {
  const Layout layout = layout_of(widths, batch, concatenate);
  STD_TORCH_CHECK(grad.dim() == 2 && grad.size(0) == layout.subsets() * batch && grad.size(1) == layout.width,
                  "Expected a gradient of shape (", layout.subsets() * batch, ", ", layout.width, ").");
  const Tensor rows = unit_column_stride(grad);
  Tensor present = torch::stable::new_empty(grad, {batch * layout.total});
  Tensor absent = torch::stable::new_empty(grad, {layout.total});
  AGM_DISPATCH_FLOATING(grad.scalar_type(), "agm::expand_subsets_backward", [&] {
    reduce(layout, rows, concatenate, static_cast<scalar_t*>(present.mutable_data_ptr()),
           static_cast<scalar_t*>(absent.mutable_data_ptr()));
  });
  return {present, absent};
}

STABLE_TORCH_LIBRARY_IMPL(AGM_LIBRARY, CPU, m) {
  m.impl("expand_subsets", TORCH_BOX(&expand_subsets));
  m.impl("expand_subsets_backward", TORCH_BOX(&expand_subsets_backward));
}

}  // namespace
}  // namespace agm
