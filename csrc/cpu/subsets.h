// Mono-modal responses from the masked logits of every subset.
#pragma once

#include <algorithm>

#include "scores.h"

namespace agm {

template <typename T>
struct MaskedLogits {
  const T* data;
  int64_t classes;
  int64_t row_stride;    // from subset to subset
  int64_t batch_stride;  // from sample to sample
  int modalities;

  int rows() const { return (1 << modalities) - 1; }
  const T* sample(int64_t b) const { return data + b * batch_stride; }
};

// Mono-modal responses of `count` classes from `logits` on, and behind them the joint logits: response[m *
// kTile + i]. Few modalities: a tile of every subset is brought into the first-level cache, each as one
// stretch of memory; then the responses of a few classes at a time stay in registers while the subsets go by.
template <int M, typename T, typename A>
AGM_HOST_DEVICE void tile_responses(const MaskedLogits<T>& masked, const T* logits, int64_t count,
                                    A* response) {
  static constexpr Weights<A, M> kWeights{};
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
      logit.load(wide + row * kTile + i);
      for (int m = 0; m < M; ++m) sum[m].add_product(kWeights.of[row][m], logit);
    }
    for (int m = 0; m < M; ++m) sum[m].store(response + m * kTile + i);
    logit.store(response + M * kTile + i);
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
AGM_HOST_DEVICE void subset_responses(const MaskedLogits<T>& masked, const T* logits, int64_t count,
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

// A source of `score_sample_body`.
template <typename T>
struct SubsetSource {
  const MaskedLogits<T>& masked;
  int64_t classes = masked.classes;
  int modalities = masked.modalities;

  AGM_HOST_DEVICE void responses(int64_t b, int64_t start, int64_t count, accumulate_t<T>* response) const {
    subset_responses(masked, masked.sample(b) + start, count, response);
  }

  // In float64, and -inf for the classes that the sample cannot have.
  void exact_responses(int64_t b, int64_t start, int64_t count, accumulate_t<T>* response) const {
    double sum[kMaxModalities * kTile] = {};
    bool impossible[kTile] = {};
    for (int row = 0; row < masked.rows(); ++row) {
      const unsigned subset = static_cast<unsigned>(row) + 1;
      const int size = subset_size(subset);
      const double inside = weight_inside(modalities, size), outside = weight_outside(modalities, size);
      const T* source = masked.sample(b) + row * masked.row_stride + start;
      for (int64_t i = 0; i < count; ++i) {
        const auto logit = static_cast<double>(widen(source[i]));
        response[modalities * kTile + i] = widen(source[i]);  // of the last row in the end: the joint logits
        if (logit == -kInfinity<double>) {
          impossible[i] = true;
          continue;
        }
        for (int m = 0; m < modalities; ++m)
          sum[m * kTile + i] += ((subset >> m & 1) != 0 ? inside : outside) * logit;
      }
    }
    for (int m = 0; m < modalities; ++m) {
      for (int64_t i = 0; i < count; ++i) {
        response[m * kTile + i] = exact_response<accumulate_t<T>>(sum[m * kTile + i], impossible[i]);
      }
    }
  }
};

template <typename T>
MaskedLogits<T> masked_logits_of(const torch::stable::Tensor& logits, int modalities) {
  return {static_cast<const T*>(logits.const_data_ptr()), logits.size(2), logits.stride(0), logits.stride(1),
          modalities};
}

// c_S of every subset.
inline void write_subset_scales(const double* coefficients, int modalities, double* scales) {
  for (unsigned subset = 1; subset < 1u << modalities; ++subset) {
    scales[subset - 1] = subset_scale(coefficients, modalities, subset);
  }
}

}  // namespace agm
