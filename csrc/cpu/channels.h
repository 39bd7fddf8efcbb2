// Loops over the rows of a batch whose columns belong to channels: sums of every channel, and what is
// elementwise.
#pragma once

#include <memory>
#include <vector>

#include "vector.h"

namespace agm {
namespace channels {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// The input as a matrix. Channels last, a row is a position of a sample and a column a channel; otherwise a
// row is a sample and `group` neighbouring columns, its positions, are of one channel.
struct Matrix {
  int64_t rows, train_rows, columns, group;

  int64_t channels() const { return columns / group; }
  // Values of a channel in the train rows, or in the others.
  int64_t values(bool train) const { return (train ? train_rows : rows - train_rows) * group; }
};

constexpr int64_t kTile = 512;     // columns that a task works on, at most
constexpr int64_t kRows = 256;     // rows that a task works on, at most
constexpr int64_t kGrain = 32768;  // numbers that are worth a thread

// Columns of whole channels, or of a part of one.
struct Tile {
  int64_t begin, end;
  bool of_one_channel;
};

inline std::vector<Tile> tiles_of(const Matrix& matrix) {
  std::vector<Tile> tiles;
  const int64_t group = matrix.group;
  const int64_t unit = group >= kTile ? group : kTile / group * group;
  for (int64_t start = 0; start < matrix.columns; start += unit) {
    const int64_t end = std::min(start + unit, matrix.columns);
    for (int64_t begin = start; begin < end; begin += kTile) {
      tiles.push_back({begin, std::min(begin + kTile, end), end - start == group});
    }
  }
  return tiles;
}

// Train rows and eval rows in blocks, none of which holds both.
struct Block {
  int64_t begin, end;
  bool train;
};

inline std::vector<Block> blocks_of(const Matrix& matrix) {
  std::vector<Block> blocks;
  const int64_t ends[] = {matrix.train_rows, matrix.rows};
  int64_t begin = 0;
  for (const int64_t last : ends) {
    for (; begin < last; begin = std::min(begin + kRows, last)) {
      blocks.push_back({begin, std::min(begin + kRows, last), last == matrix.train_rows && begin < last});
    }
  }
  return blocks;
}

// Calls `f` with every pair of a block and a tile, in parallel. Both are the same for any number of threads.
template <typename F>
void for_each_task(const std::vector<Block>& blocks, const std::vector<Tile>& tiles, const F& f) {
  if (blocks.empty() || tiles.empty()) return;
  const auto count = static_cast<int64_t>(tiles.size());
  const int64_t work = (blocks[0].end - blocks[0].begin) * (tiles[0].end - tiles[0].begin);
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, work));
  torch::stable::parallel_for(0, static_cast<int64_t>(blocks.size()) * count, grain,
                              [&](int64_t begin, int64_t end) {
                                for (int64_t task = begin; task < end; ++task) {
                                  f(task / count, task % count);
                                }
                              });
}

// A number for each column of a tile, taken from one for each channel; one alone where the tile has one
// channel.
template <typename A>
struct Columns {
  A of[kTile];

  template <typename F>
  void fill(const Matrix& matrix, const Tile& tile, const F& number) {
    if (tile.of_one_channel) {
      of[0] = static_cast<A>(number(tile.begin / matrix.group));
      return;
    }
    if (matrix.group == 1) {
      for (int64_t column = tile.begin; column < tile.end; ++column) {
        of[column - tile.begin] = static_cast<A>(number(column));
      }
      return;
    }
    A* next = of;
    for (int64_t channel = tile.begin / matrix.group; channel * matrix.group < tile.end; ++channel) {
      next = std::fill_n(next, matrix.group, static_cast<A>(number(channel)));
    }
  }
};

// Two sums of each column over some rows, in float64: of x and of (x - shift)^2 about a shift, or of g and of
// g (x - shift). A `Step` of 0 takes the first shift for all columns.
struct Sums {
  double first[kTile], second[kTile];
};

// Rows that are added up before the sums in memory are touched.
constexpr int kAtOnce = 4;

template <int Rows, int Step, typename T>
AGM_HOST_DEVICE void add_squares_of(const T* x, int64_t stride, int64_t width, const double* shift,
                                    Sums& sums) {
  for (int64_t i = 0; i < width; ++i) {
    double first = 0, second = 0;
    for (int row = 0; row < Rows; ++row) {
      const double difference = static_cast<double>(widen(x[row * stride + i])) - shift[i * Step];
      first += difference;
      second += difference * difference;
    }
    sums.first[i] += first;
    sums.second[i] += second;
  }
}

template <int Step, typename T>
AGM_HOST_DEVICE void add_squares_body(const T* x, int64_t stride, int64_t rows, int64_t width,
                                      const double* shift, Sums& sums) {
  int64_t row = 0;
  for (; row + kAtOnce <= rows; row += kAtOnce, x += kAtOnce * stride) {
    add_squares_of<kAtOnce, Step>(x, stride, width, shift, sums);
  }
  for (; row < rows; ++row, x += stride) add_squares_of<1, Step>(x, stride, width, shift, sums);
}

template <int Rows, int Step, typename T>
AGM_HOST_DEVICE void add_products_of(const T* g, const T* x, int64_t stride, int64_t width,
                                     const double* shift, Sums& sums) {
  for (int64_t i = 0; i < width; ++i) {
    double first = 0, second = 0;
    for (int row = 0; row < Rows; ++row) {
      const auto gradient = static_cast<double>(widen(g[row * stride + i]));
      first += gradient;
      second += gradient * (static_cast<double>(widen(x[row * stride + i])) - shift[i * Step]);
    }
    sums.first[i] += first;
    sums.second[i] += second;
  }
}

template <int Step, typename T>
AGM_HOST_DEVICE void add_products_body(const T* g, const T* x, int64_t stride, int64_t rows, int64_t width,
                                       const double* shift, Sums& sums) {
  int64_t row = 0;
  for (; row + kAtOnce <= rows; row += kAtOnce, g += kAtOnce * stride, x += kAtOnce * stride) {
    add_products_of<kAtOnce, Step>(g, x, stride, width, shift, sums);
  }
  for (; row < rows; ++row, g += stride, x += stride)
    add_products_of<1, Step>(g, x, stride, width, shift, sums);
}

// (x - shift) * scale + bias
template <int Step, typename T, typename A>
AGM_HOST_DEVICE void normalise_body(const T* x, int64_t stride, int64_t rows, int64_t width, const A* shift,
                                    const A* scale, const A* bias, T* out) {
  for (int64_t row = 0; row < rows; ++row, x += stride, out += stride) {
    for (int64_t i = 0; i < width; ++i) {
      out[i] = narrow<T>((widen(x[i]) - shift[i * Step]) * scale[i * Step] + bias[i * Step]);
    }
  }
}

// (g - mean_g - (x - shift) * slope) * scale
template <int Step, typename T, typename A>
AGM_HOST_DEVICE void pull_back_body(const T* g, const T* x, int64_t stride, int64_t rows, int64_t width,
                                    const A* mean_g, const A* shift, const A* slope, const A* scale, T* out) {
  for (int64_t row = 0; row < rows; ++row, g += stride, x += stride, out += stride) {
    for (int64_t i = 0; i < width; ++i) {
      const A difference = widen(x[i]) - shift[i * Step];
      out[i] = narrow<T>((widen(g[i]) - mean_g[i * Step] - difference * slope[i * Step]) * scale[i * Step]);
    }
  }
}

// `one` takes the first number of a channel for all columns.
#define AGM_CHANNEL_LOOPS(T)                                                                            \
  AGM_CLONES inline void add_squares(bool one, const T* x, int64_t stride, int64_t rows, int64_t width, \
                                     const double* shift, Sums& sums) {                                 \
    one ? add_squares_body<0>(x, stride, rows, width, shift, sums)                                      \
        : add_squares_body<1>(x, stride, rows, width, shift, sums);                                     \
  }                                                                                                     \
  AGM_CLONES inline void add_products(bool one, const T* g, const T* x, int64_t stride, int64_t rows,   \
                                      int64_t width, const double* shift, Sums& sums) {                 \
    one ? add_products_body<0>(g, x, stride, rows, width, shift, sums)                                  \
        : add_products_body<1>(g, x, stride, rows, width, shift, sums);                                 \
  }                                                                                                     \
  AGM_CLONES inline void normalise(bool one, const T* x, int64_t stride, int64_t rows, int64_t width,   \
                                   const accumulate_t<T>* shift, const accumulate_t<T>* scale,          \
                                   const accumulate_t<T>* bias, T* out) {                               \
    one ? normalise_body<0>(x, stride, rows, width, shift, scale, bias, out)                            \
        : normalise_body<1>(x, stride, rows, width, shift, scale, bias, out);                           \
  }                                                                                                     \
  AGM_CLONES inline void pull_back(bool one, const T* g, const T* x, int64_t stride, int64_t rows,      \
                                   int64_t width, const accumulate_t<T>* mean_g,                        \
                                   const accumulate_t<T>* shift, const accumulate_t<T>* slope,          \
                                   const accumulate_t<T>* scale, T* out) {                              \
    one ? pull_back_body<0>(g, x, stride, rows, width, mean_g, shift, slope, scale, out)                \
        : pull_back_body<1>(g, x, stride, rows, width, mean_g, shift, slope, scale, out);               \
  }
AGM_CHANNEL_LOOPS(float)
AGM_CHANNEL_LOOPS(double)
AGM_CHANNEL_LOOPS(Half)
AGM_CHANNEL_LOOPS(BFloat16)

// Sums of the channels over blocks of rows.
struct ChannelSums {
  std::vector<double> first, second;
};

// `add(block, tile, sums)` adds up a task's columns; the columns of a channel and then the blocks are added
// here, in order.
template <typename F>
void sum_channels(const Matrix& matrix, const std::vector<Block>& blocks, const std::vector<Tile>& tiles,
                  ChannelSums& train, ChannelSums& rest, const F& add) {
  // A channel's sums go where the first of its columns in the tile is, relative to a tile.
  const auto channels = static_cast<size_t>(matrix.channels());
  const auto tile_count = tiles.size();
  // A tile holds at most as many channels as columns, and all of a channel or none of another.
  std::vector<size_t> start(tile_count + 1, 0);
  for (size_t t = 0; t < tile_count; ++t) {
    const Tile& tile = tiles[t];
    start[t + 1] =
        start[t] + (tile.of_one_channel ? 1 : static_cast<size_t>((tile.end - tile.begin) / matrix.group));
  }
  const size_t row = start[tile_count];
  const std::unique_ptr<double[]> partial(new double[2 * row * blocks.size()]);
  for_each_task(blocks, tiles, [&](int64_t b, int64_t t) {
    const Tile& tile = tiles[static_cast<size_t>(t)];
    const int64_t width = tile.end - tile.begin;
    Sums sums;
    std::fill_n(sums.first, width, 0.0);
    std::fill_n(sums.second, width, 0.0);
    add(blocks[static_cast<size_t>(b)], tile, sums);
    double* out = partial.get() + 2 * (static_cast<size_t>(b) * row + start[static_cast<size_t>(t)]);
    const int64_t group = tile.of_one_channel ? width : matrix.group;
    for (int64_t column = 0; column < width; column += group, out += 2) {
      double first = 0, second = 0;
      for (int64_t i = column; i < column + group; ++i) {
        first += sums.first[i];
        second += sums.second[i];
      }
      out[0] = first;
      out[1] = second;
    }
  });
  for (ChannelSums* sums : {&train, &rest}) {
    sums->first.assign(channels, 0.0);
    sums->second.assign(channels, 0.0);
  }
  for (size_t b = 0; b < blocks.size(); ++b) {
    ChannelSums& sums = blocks[b].train ? train : rest;
    const double* next = partial.get() + 2 * b * row;
    for (const Tile& tile : tiles) {
      const auto first = static_cast<size_t>(tile.begin / matrix.group);
      const auto last = tile.of_one_channel ? first + 1 : static_cast<size_t>(tile.end / matrix.group);
      for (size_t channel = first; channel < last; ++channel, next += 2) {
        sums.first[channel] += next[0];
        sums.second[channel] += next[1];
      }
    }
  }
}

}  // namespace channels
}  // namespace agm
