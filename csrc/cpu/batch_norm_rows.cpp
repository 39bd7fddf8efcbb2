#include <cmath>
#include <optional>
#include <tuple>
#include <vector>

#include "channels.h"

namespace agm {
namespace {

using namespace channels;
using torch::stable::Tensor;

bool channels_last(const Tensor& tensor) {
  const int64_t dims = tensor.dim();
  if (dims != 4 && dims != 5) return false;
  int64_t expected = 1;
  const auto matches = [&](int64_t dim) {
    if (tensor.size(dim) == 1) return true;
    if (tensor.stride(dim) != expected) return false;
    expected *= tensor.size(dim);
    return true;
  };
  if (!matches(1)) return false;
  for (int64_t dim = dims - 1; dim > 1; --dim) {
    if (!matches(dim)) return false;
  }
  return matches(0);
}

// The input compact in memory, and the matrix that it is.
struct Laid {
  Tensor tensor;
  Matrix matrix;
};

Laid laid_out(const Tensor& input, int64_t train_rows) {
  STD_TORCH_CHECK(input.dim() >= 2, "Expected an input of shape (rows, channels, ...).");
  const int64_t rows = input.size(0), channels = input.size(1);
  STD_TORCH_CHECK(train_rows >= 1 && train_rows <= rows, "Expected 1 to ", rows, " train rows, but got ",
                  train_rows, ".");
  int64_t positions = 1;
  for (int64_t dim = 2; dim < input.dim(); ++dim) positions *= input.size(dim);
  if (!input.is_contiguous() && channels_last(input)) {
    return {input, {rows * positions, train_rows * positions, channels, 1}};
  }
  return {compact(input), {rows, train_rows, channels * positions, positions}};
}

// `tensor` in the layout of `like`, of whose shape it is.
Tensor laid_out_as(const Tensor& like, const Tensor& tensor) {
  bool same = true;
  for (int64_t dim = 0; dim < like.dim(); ++dim) {
    same = same && (like.size(dim) == 1 || like.stride(dim) == tensor.stride(dim));
  }
  if (same) return tensor;
  Tensor copy = torch::stable::empty_like(like);
  torch::stable::copy_(copy, tensor);
  return copy;
}

// Numbers of the channels in float64, whatever their type.
std::vector<double> numbers(const Tensor& tensor, int64_t channels) {
  STD_TORCH_CHECK(tensor.numel() == channels, "Expected ", channels, " numbers, one a channel, but got ",
                  tensor.numel(), ".");
  const Tensor own = compact(tensor);
  std::vector<double> result(static_cast<size_t>(channels));
  AGM_DISPATCH_FLOATING(own.scalar_type(), "agm::batch_norm_rows", [&] {
    const auto* from = static_cast<const scalar_t*>(own.const_data_ptr());
    for (size_t c = 0; c < result.size(); ++c) result[c] = static_cast<double>(widen(from[c]));
  });
  return result;
}

std::vector<double> numbers_or(const std::optional<Tensor>& tensor, int64_t channels, double otherwise) {
  if (tensor) return numbers(*tensor, channels);
  return std::vector<double>(static_cast<size_t>(channels), otherwise);
}

Tensor tensor_of(const std::vector<double>& from, const Tensor& like, torch::headeronly::ScalarType type) {
  Tensor result = torch::stable::new_empty(like, {static_cast<int64_t>(from.size())}, type);
  AGM_DISPATCH_FLOATING(type, "agm::batch_norm_rows", [&] {
    auto* to = static_cast<scalar_t*>(result.mutable_data_ptr());
    for (size_t c = 0; c < from.size(); ++c)
      to[c] = narrow<scalar_t>(static_cast<accumulate_t<scalar_t>>(from[c]));
  });
  return result;
}

// (2, channels).
Tensor tensor_of_both(std::vector<double> first, const std::vector<double>& second, const Tensor& like,
                      torch::headeronly::ScalarType type) {
  const auto channels = static_cast<int64_t>(first.size());
  first.insert(first.end(), second.begin(), second.end());
  return torch::stable::view(tensor_of(first, like, type), {2, channels});
}

std::vector<double> inverse_deviation(const std::vector<double>& variance, double eps) {
  std::vector<double> result(variance.size());
  for (size_t c = 0; c < variance.size(); ++c) result[c] = 1 / std::sqrt(variance[c] + eps);
  return result;
}

// ---- Forward.

struct Statistics {
  std::vector<double> mean, variance;  // biased
};

// Of the train rows, or of the others.
template <typename T>
Statistics statistics_of(const Matrix& matrix, const std::vector<Tile>& tiles, const T* x, bool train) {
  std::vector<Block> blocks;
  for (const Block& block : blocks_of(matrix)) {
    if (block.train == train) blocks.push_back(block);
  }
  const auto channels = static_cast<size_t>(matrix.channels());
  if (blocks.empty()) return {std::vector<double>(channels), std::vector<double>(channels, 1)};
  const auto count = static_cast<double>(matrix.values(train));
  // About a value of the channel itself the sum of squares loses nothing that float32 could show. In float64
  // it is taken about the mean, which then is one more sum over the rows.
  std::vector<double> shift(channels);
  for (size_t c = 0; c < channels; ++c) {
    const int64_t at = blocks[0].begin * matrix.columns + static_cast<int64_t>(c) * matrix.group;
    shift[c] = static_cast<double>(widen(x[at]));
  }
  Statistics result{shift, std::vector<double>(channels)};
  for (int pass = std::is_same_v<T, double> ? 0 : 1; pass < 2; ++pass) {
    ChannelSums sums, none;
    sum_channels(matrix, blocks, tiles, train ? sums : none, train ? none : sums,
                 [&](const Block& block, const Tile& tile, Sums& own) {
                   Columns<double> about;
                   about.fill(matrix, tile, [&](int64_t c) { return result.mean[static_cast<size_t>(c)]; });
                   add_squares(tile.of_one_channel, x + block.begin * matrix.columns + tile.begin,
                               matrix.columns, block.end - block.begin, tile.end - tile.begin, about.of, own);
                 });
    for (size_t c = 0; c < channels; ++c) {
      const double moved = sums.first[c] / count;
      result.mean[c] += moved;
      result.variance[c] = std::max(0.0, sums.second[c] / count - moved * moved);
      if (sums.second[c] != sums.second[c]) result.variance[c] = sums.second[c];  // NaN, which max drops
    }
  }
  return result;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> batch_norm_rows(
    const Tensor& input, const std::optional<Tensor>& running_mean, const std::optional<Tensor>& running_var,
    const std::optional<Tensor>& weight, const std::optional<Tensor>& bias, int64_t train_rows,
    double momentum, double eps, const std::optional<Tensor>& batches) {
  const bool running = running_mean.has_value() && running_var.has_value();
  const auto [source, matrix] = laid_out(input, train_rows);
  const Matrix& shape = matrix;
  const int64_t channels = input.size(1);
  Tensor out = torch::stable::empty_like(source);
  const std::vector<Tile> tiles = tiles_of(shape);
  const auto wide = accumulation_type(input);
  if (batches)
    momentum = 1 / (static_cast<double>(*static_cast<const int64_t*>(batches->const_data_ptr())) + 1);
  Statistics batch;
  Tensor updated_mean, updated_var, mean, invstd;
  AGM_DISPATCH_FLOATING(source.scalar_type(), "agm::batch_norm_rows", [&] {
    using A = accumulate_t<scalar_t>;
    const auto* x = static_cast<const scalar_t*>(source.const_data_ptr());
    auto* y = static_cast<scalar_t*>(out.mutable_data_ptr());
    batch = statistics_of(shape, tiles, x, true);
    // Of eval rows, which see running statistics as they are stored, and of train rows.
    std::vector<double> centre[] = {{}, batch.mean};
    std::vector<double> factor[] = {{}, inverse_deviation(batch.variance, eps)};
    if (running) {
      const auto type = running_mean->scalar_type();
      std::vector<double> means = numbers(*running_mean, channels),
                          variances = numbers(*running_var, channels);
      const auto count = static_cast<double>(shape.values(true));
      for (size_t c = 0; c < means.size(); ++c) {
        means[c] = momentum * batch.mean[c] + (1 - momentum) * means[c];
        variances[c] = momentum * (batch.variance[c] * count / (count - 1)) + (1 - momentum) * variances[c];
      }
      updated_mean = tensor_of(means, input, type);
      updated_var = tensor_of(variances, input, type);
      centre[0] = numbers(updated_mean, channels);
      factor[0] = inverse_deviation(numbers(updated_var, channels), eps);
      mean = tensor_of(centre[1], input, wide);
      invstd = tensor_of(factor[1], input, wide);
    } else {
      Statistics others = statistics_of(shape, tiles, x, false);
      centre[0] = others.mean;
      factor[0] = inverse_deviation(others.variance, eps);
      updated_mean = torch::stable::new_empty(input, {0}, wide);
      updated_var = torch::stable::new_empty(input, {0}, wide);
      mean = tensor_of_both(centre[1], centre[0], input, wide);
      invstd = tensor_of_both(factor[1], factor[0], input, wide);
    }
    const std::vector<double> own_weight = numbers_or(weight, channels, 1),
                              own_bias = numbers_or(bias, channels, 0);
    const std::vector<Block> blocks = blocks_of(shape);
    for_each_task(blocks, tiles, [&](int64_t b, int64_t t) {
      const Block& block = blocks[static_cast<size_t>(b)];
      const Tile& tile = tiles[static_cast<size_t>(t)];
      const auto kind = static_cast<size_t>(block.train);
      Columns<A> about, scale, offset;
      about.fill(shape, tile, [&](int64_t c) { return centre[kind][static_cast<size_t>(c)]; });
      scale.fill(shape, tile, [&](int64_t c) {
        return factor[kind][static_cast<size_t>(c)] * own_weight[static_cast<size_t>(c)];
      });
      // What rounding the mean leaves goes into the offset.
      offset.fill(shape, tile, [&](int64_t c) {
        const auto channel = static_cast<size_t>(c);
        const double left =
            static_cast<double>(static_cast<A>(centre[kind][channel])) - centre[kind][channel];
        return own_bias[channel] + left * factor[kind][channel] * own_weight[channel];
      });
      const int64_t at = block.begin * shape.columns + tile.begin;
      normalise(tile.of_one_channel, x + at, shape.columns, block.end - block.begin, tile.end - tile.begin,
                about.of, scale.of, offset.of, y + at);
    });
  });
  return {out, updated_mean, updated_var, mean, invstd};
}

// ---- Backward.

std::tuple<Tensor, Tensor, Tensor> batch_norm_rows_backward(const Tensor& grad, const Tensor& input,
                                                            const std::optional<Tensor>& weight,
                                                            const Tensor& mean, const Tensor& invstd,
                                                            const Tensor& updated_mean,
                                                            const Tensor& updated_var, int64_t train_rows,
                                                            double eps) {
  STD_TORCH_CHECK(
      grad.scalar_type() == input.scalar_type() && grad.numel() == input.numel() && grad.dim() == input.dim(),
      "Expected a gradient of the shape and dtype of the input.");
  const auto [source, matrix] = laid_out(input, train_rows);
  const Matrix& shape = matrix;
  const Tensor upstream = laid_out_as(source, grad);
  const int64_t channels = input.size(1);
  Tensor out = torch::stable::empty_like(source);
  const std::vector<Tile> tiles = tiles_of(shape);
  const std::vector<Block> blocks = blocks_of(shape);
  // Of eval rows and of train rows.
  const bool running = updated_mean.numel() > 0;
  std::vector<double> centre[2], deviation[2];
  if (running) {
    centre[0] = numbers(updated_mean, channels);
    deviation[0] = inverse_deviation(numbers(updated_var, channels), eps);
    centre[1] = numbers(mean, channels);
    deviation[1] = numbers(invstd, channels);
  } else {
    const std::vector<double> means = numbers(mean, 2 * channels), factors = numbers(invstd, 2 * channels);
    for (const int kind : {1, 0}) {
      const int64_t at = (1 - kind) * channels;
      centre[kind].assign(means.begin() + at, means.begin() + at + channels);
      deviation[kind].assign(factors.begin() + at, factors.begin() + at + channels);
    }
  }
  const std::vector<double> own_weight = numbers_or(weight, channels, 1);
  std::vector<double> of_weight(own_weight.size()), of_bias(own_weight.size());
  AGM_DISPATCH_FLOATING(source.scalar_type(), "agm::batch_norm_rows_backward", [&] {
    using A = accumulate_t<scalar_t>;
    const auto* x = static_cast<const scalar_t*>(source.const_data_ptr());
    const auto* g = static_cast<const scalar_t*>(upstream.const_data_ptr());
    auto* result = static_cast<scalar_t*>(out.mutable_data_ptr());
    ChannelSums train, rest;
    sum_channels(shape, blocks, tiles, train, rest, [&](const Block& block, const Tile& tile, Sums& own) {
      Columns<double> about;
      about.fill(shape, tile, [&](int64_t c) { return centre[block.train][static_cast<size_t>(c)]; });
      const int64_t at = block.begin * shape.columns + tile.begin;
      add_products(tile.of_one_channel, g + at, x + at, shape.columns, block.end - block.begin,
                   tile.end - tile.begin, about.of, own);
    });
    for (size_t c = 0; c < of_weight.size(); ++c) {
      of_weight[c] = train.second[c] * deviation[1][c] + rest.second[c] * deviation[0][c];
      of_bias[c] = train.first[c] + rest.first[c];
    }
    // What flows through the statistics: of eval rows nothing through running ones.
    std::vector<double> mean_of[2], slope[2];
    for (const int kind : {0, 1}) {
      const ChannelSums& sums = kind == 1 ? train : rest;
      const bool flows = kind == 1 || (!running && shape.values(false) > 0);
      const auto count = static_cast<double>(shape.values(kind == 1));
      for (size_t c = 0; c < of_weight.size(); ++c) {
        const double factor = deviation[kind][c];
        mean_of[kind].push_back(flows ? sums.first[c] / count : 0);
        slope[kind].push_back(flows ? sums.second[c] / count * factor * factor : 0);
      }
    }
    for_each_task(blocks, tiles, [&](int64_t b, int64_t t) {
      const Block& block = blocks[static_cast<size_t>(b)];
      const Tile& tile = tiles[static_cast<size_t>(t)];
      Columns<A> mean_g, about, slopes, scale;
      mean_g.fill(shape, tile, [&](int64_t c) { return mean_of[block.train][static_cast<size_t>(c)]; });
      about.fill(shape, tile, [&](int64_t c) { return centre[block.train][static_cast<size_t>(c)]; });
      slopes.fill(shape, tile, [&](int64_t c) { return slope[block.train][static_cast<size_t>(c)]; });
      scale.fill(shape, tile, [&](int64_t c) {
        return deviation[block.train][static_cast<size_t>(c)] * own_weight[static_cast<size_t>(c)];
      });
      const int64_t at = block.begin * shape.columns + tile.begin;
      pull_back(tile.of_one_channel, g + at, x + at, shape.columns, block.end - block.begin,
                tile.end - tile.begin, mean_g.of, about.of, slopes.of, scale.of, result + at);
    });
  });
  const auto type = weight ? weight->scalar_type() : updated_mean.scalar_type();
  return {out, tensor_of(of_weight, input, type), tensor_of(of_bias, input, type)};
}

STABLE_TORCH_LIBRARY_IMPL(AGM_LIBRARY, CPU, m) {
  m.impl("batch_norm_rows", TORCH_BOX(&batch_norm_rows));
  m.impl("batch_norm_rows_backward", TORCH_BOX(&batch_norm_rows_backward));
}

}  // namespace
}  // namespace agm
