#include "../common/modulate.h"

#include <algorithm>
#include <vector>

#include "../common/tensor.h"
#include "vector.h"

namespace agm {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::stable::Tensor;

constexpr int kMaxModalities = 16;
constexpr int64_t kTile = 128;     // classes; the responses of a tile stay in the first-level cache
constexpr int64_t kGrain = 32768;  // elements of work under which a second thread costs more than it brings

template <typename T>
struct MaskedLogits {
  const T* data;
  int64_t classes;
  int64_t row_stride;    // from subset to subset
  int64_t batch_stride;  // from sample to sample
  int modalities;

  int rows() const { return (1 << modalities) - 1; }
};

// What one sample contributes.
struct Sample {
  double cost[kMaxModalities];
  bool hit[kMaxModalities + 1];
};

template <typename A, int M>
struct Weights {
  A of[(1 << M) - 1][M];

  constexpr Weights() : of() {
    for (unsigned subset = 1; subset < 1u << M; ++subset) {
      const int size = subset_size(subset);
      for (int m = 0; m < M; ++m) {
        of[subset - 1][m] =
            static_cast<A>((subset >> m & 1) != 0 ? weight_inside(M, size) : weight_outside(M, size));
      }
    }
  }
};

// Mono-modal responses of `count` classes from `logits` on, and behind them the joint logits: response[m *
// kTile + i]. Few modalities: a tile of every subset is brought into the first-level cache, each as one
// stretch of memory; then the responses of a few classes at a time stay in registers while the subsets go by.
template <int M, typename T, typename A>
AGM_HOST_DEVICE void tile_responses(const MaskedLogits<T>& masked, const T* logits, int64_t count,
                                    A* response) {
  static constexpr Weights<A, M> kWeights;
  constexpr int kRows = (1 << M) - 1;
  constexpr int kCount = Lanes<A>::kCount;
  const int64_t padded = (count + kCount - 1) / kCount * kCount;
  A wide[kRows * kTile];
  for (int row = 0; row < kRows; ++row) {
    const T* source = logits + row * masked.row_stride;
    A* target = wide + row * kTile;
    for (int64_t i = 0; i < count; ++i) target[i] = widen(source[i]);
    for (int64_t i = count; i < padded; ++i) target[i] = A(0);
  }
  for (int64_t i = 0; i < padded; i += kCount) {
    Lanes<A> sum[M], logit;
    for (int m = 0; m < M; ++m) sum[m].clear();
    for (int row = 0; row < kRows; ++row) {
      std::memcpy(&logit, wide + row * kTile + i, sizeof(logit));
      for (int m = 0; m < M; ++m) sum[m].add_product(kWeights.of[row][m], logit);
    }
    for (int m = 0; m < M; ++m) std::memcpy(response + m * kTile + i, &sum[m], sizeof(sum[m]));
    std::memcpy(response + M * kTile + i, &logit, sizeof(logit));
  }
}

// Any number of modalities: the responses of a tile stay in the first-level cache.
template <typename T, typename A>
AGM_HOST_DEVICE void tile_responses_of_many(const MaskedLogits<T>& masked, const T* logits, int64_t count,
                                            A* response) {
  std::fill_n(response, masked.modalities * kTile, A(0));
  A* wide = response + masked.modalities * kTile;
  for (int row = 0; row < masked.rows(); ++row) {
    const unsigned subset = static_cast<unsigned>(row) + 1;
    const int size = subset_size(subset);
    const A inside = static_cast<A>(weight_inside(masked.modalities, size));
    const A outside = static_cast<A>(weight_outside(masked.modalities, size));
    const T* source = logits + row * masked.row_stride;
    for (int64_t i = 0; i < count; ++i) wide[i] = widen(source[i]);
    for (int m = 0; m < masked.modalities; ++m) {
      const A weight = (subset >> m & 1) != 0 ? inside : outside;
      A* target = response + m * kTile;
      for (int64_t i = 0; i < count; ++i) target[i] = multiply_add(weight, wide[i], target[i]);
    }
  }
}

template <typename T, typename A>
AGM_HOST_DEVICE void any_tile_responses(const MaskedLogits<T>& masked, const T* logits, int64_t count,
                                        A* response) {
  switch (masked.modalities) {
    case 2:
      return tile_responses<2>(masked, logits, count, response);
    case 3:
      return tile_responses<3>(masked, logits, count, response);
    case 4:
      return tile_responses<4>(masked, logits, count, response);
    case 5:
      return tile_responses<5>(masked, logits, count, response);
    case 6:
      return tile_responses<6>(masked, logits, count, response);
    default:
      return tile_responses_of_many(masked, logits, count, response);
  }
}

template <typename A>
AGM_HOST_DEVICE void add_tile(Softmax<A>& softmax, const A* logits, int64_t count) {
  A largest = softmax.largest;
#pragma omp simd reduction(max : largest)
  for (int64_t i = 0; i < count; ++i) largest = logits[i] > largest ? logits[i] : largest;
  const A shift = Softmax<A>::shift(largest);
  A sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < count; ++i) sum += exp_nonpositive(logits[i] - shift);
  softmax.sum = softmax.sum * exponential(softmax.largest - shift) + sum;
  softmax.largest = largest;
}

// Whether a class of the tile, which begins at class `start`, keeps argmax from being `label`.
template <typename A>
AGM_HOST_DEVICE bool tile_beats(const A* logits, int64_t start, int64_t count, A target, int64_t label) {
  const int64_t before = std::clamp<int64_t>(label - start, 0, count);
  const int64_t after = std::clamp<int64_t>(label + 1 - start, 0, count);
  const bool number = target == target;
  int beaten = 0;
  for (int64_t i = 0; i < before; ++i) beaten |= number ? !(logits[i] < target) : logits[i] != logits[i];
  for (int64_t i = after; i < count; ++i) beaten |= number & !(logits[i] <= target);
  return beaten != 0;
}

template <typename T>
AGM_HOST_DEVICE void score_sample_body(const MaskedLogits<T>& masked, int64_t batch, int64_t label,
                                       double cap, Sample& sample) {
  using A = accumulate_t<T>;
  const int modalities = masked.modalities;
  const T* logits = masked.data + batch * masked.batch_stride;
  A response[(kMaxModalities + 1) * kTile];

  A target[kMaxModalities + 1];
  any_tile_responses(masked, logits + label, 1, response);
  for (int m = 0; m <= modalities; ++m) target[m] = response[m * kTile];

  Softmax<A> softmax[kMaxModalities];
  bool beaten[kMaxModalities + 1] = {};
  for (int64_t start = 0; start < masked.classes; start += kTile) {
    const int64_t count = std::min(kTile, masked.classes - start);
    any_tile_responses(masked, logits + start, count, response);
    for (int m = 0; m <= modalities; ++m) {
      const A* tile = response + m * kTile;
      if (m < modalities) add_tile(softmax[m], tile, count);
      beaten[m] |= tile_beats(tile, start, count, target[m], label);
    }
  }
  for (int m = 0; m < modalities; ++m) sample.cost[m] = softmax[m].cost(target[m], static_cast<A>(cap));
  for (int m = 0; m <= modalities; ++m) sample.hit[m] = !beaten[m];
}

#define AGM_SCORE_SAMPLE(T)                                                                             \
  AGM_CLONES void score_sample(const MaskedLogits<T>& masked, int64_t batch, int64_t label, double cap, \
                               Sample& sample) {                                                        \
    score_sample_body(masked, batch, label, cap, sample);                                               \
  }
AGM_SCORE_SAMPLE(float)
AGM_SCORE_SAMPLE(double)
AGM_SCORE_SAMPLE(Half)
AGM_SCORE_SAMPLE(BFloat16)

template <typename T>
Tally<kMaxModalities> score_batch(const MaskedLogits<T>& masked, const int64_t* target, int64_t batch,
                                  double cap, int64_t ignore_index) {
  std::vector<Sample> samples(static_cast<size_t>(batch));
  const int64_t work = masked.rows() * masked.classes + 1;
  torch::stable::parallel_for(0, batch, std::max<int64_t>(1, kGrain / work), [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      Sample& sample = samples[static_cast<size_t>(b)];
      if (target[b] == ignore_index) continue;
      if (target[b] >= 0 && target[b] < masked.classes) {
        score_sample(masked, b, target[b], cap, sample);
      } else {
        std::fill_n(sample.cost, kMaxModalities, kNotANumber<double>);
        std::fill_n(sample.hit, kMaxModalities + 1, false);
      }
    }
  });
  // In order, so that the result does not depend on the number of threads.
  Tally<kMaxModalities> tally;
  for (int64_t b = 0; b < batch; ++b) {
    if (target[b] == ignore_index) continue;
    const Sample& sample = samples[static_cast<size_t>(b)];
    for (int m = 0; m < masked.modalities; ++m) {
      tally.cost[m] += sample.cost[m];
      tally.hits[m] += sample.hit[m];
    }
    tally.hits[kMaxModalities] += sample.hit[masked.modalities];
    tally.samples += 1;
  }
  return tally;
}

void finish(const Tally<kMaxModalities>& tally, const Settings& settings, double* values, int64_t* counts,
            double* scales) {
  const int modalities = settings.modalities;
  double scores[kMaxModalities];
  for (int m = 0; m < modalities; ++m) scores[m] = tally.cost[m] / static_cast<double>(tally.samples);
  Modulation share[kMaxModalities];
  bool usable = true;
  for (int m = 0; m < modalities; ++m) {
    share[m] = modulation(scores, values, m, settings);
    usable &= share[m].finite;
  }
  double coefficients[kMaxModalities];
  for (int m = 0; m < modalities; ++m) coefficients[m] = usable ? share[m].coefficient : 1;
  for (unsigned subset = 1; subset < 1u << modalities; ++subset) {
    scales[subset - 1] = subset_scale(coefficients, modalities, subset);
  }
  if (!settings.update) return;
  const int64_t step = counts[modalities + kStep] + 1;
  for (int m = 0; m < modalities; ++m) write_values(share[m], m, usable, step, settings, values);
  write_counts(tally, usable, settings, counts);
}

Tensor modulate(const Tensor& masked_logits, const Tensor& target, const Tensor& values, const Tensor& counts,
                double alpha, double max_gap, double floor, int64_t ignore_index, bool update) {
  const Tensor logits = unit_class_stride(masked_logits);   // (2**M - 1, B, C)
  const Tensor labels = torch::stable::contiguous(target);  // (B,) int64
  const int modalities = modalities_of(logits.size(0), kMaxModalities);
  check_state(values, counts, modalities);
  const double cap = floor > 0 ? -std::log(floor) : kInfinity<double>;
  const Settings settings{modalities, alpha, max_gap, update};
  Tensor scales = torch::stable::new_empty(values, {logits.size(0)});  // float64
  Tally<kMaxModalities> tally;
  AGM_DISPATCH_FLOATING(logits.scalar_type(), "agm::modulate", [&] {
    const MaskedLogits<scalar_t> masked{static_cast<const scalar_t*>(logits.const_data_ptr()), logits.size(2),
                                        logits.stride(0), logits.stride(1), modalities};
    tally = score_batch(masked, labels.const_data_ptr<int64_t>(), logits.size(1), cap, ignore_index);
  });
  finish(tally, settings, values.mutable_data_ptr<double>(), counts.mutable_data_ptr<int64_t>(),
         scales.mutable_data_ptr<double>());
  return scales;
}

template <typename T>
AGM_HOST_DEVICE void scale_row_body(double row_scale, const T* grad, T* out, int64_t count) {
  using A = accumulate_t<T>;
  const A scale = static_cast<A>(row_scale);
  for (int64_t i = 0; i < count; ++i) out[i] = narrow<T>(scale_gradient<A>(scale, widen(grad[i])));
}

#define AGM_SCALE_ROW(T)                                                          \
  AGM_CLONES void scale_row(double scale, const T* grad, T* out, int64_t count) { \
    scale_row_body(scale, grad, out, count);                                      \
  }
AGM_SCALE_ROW(float)
AGM_SCALE_ROW(double)
AGM_SCALE_ROW(Half)
AGM_SCALE_ROW(BFloat16)

template <typename T>
void scale_rows(const T* grad, const double* scales, T* out, int64_t rows, int64_t size) {
  torch::stable::parallel_for(0, rows * size, kGrain, [=](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t row = begin / size;
      const int64_t stop = std::min(end, (row + 1) * size);
      scale_row(scales[row], grad + (begin - row * size), out + begin, stop - begin);
      begin = stop;
    }
  });
}

Tensor modulate_backward(const Tensor& grad, const Tensor& subset_scales) {
  const int64_t rows = subset_scales.size(0);
  const Tensor source = torch::stable::contiguous(grad);           // (B, C)
  const Tensor scales = torch::stable::contiguous(subset_scales);  // (rows,) float64
  Tensor out = torch::stable::new_empty(source, {rows, source.size(0), source.size(1)});
  if (out.numel() == 0) return out;
  AGM_DISPATCH_FLOATING(source.scalar_type(), "agm::modulate_backward", [&] {
    scale_rows(static_cast<const scalar_t*>(source.const_data_ptr()), scales.const_data_ptr<double>(),
               static_cast<scalar_t*>(out.mutable_data_ptr()), rows, source.numel());
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(AGM_LIBRARY, CPU, m) {
  m.impl("modulate", TORCH_BOX(&modulate));
  m.impl("modulate_backward", TORCH_BOX(&modulate_backward));
}

}  // namespace
}  // namespace agm
