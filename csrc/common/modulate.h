// The arithmetic of the modulation, for host and device: agm/ops/reference is the specification.
#pragma once

#include <cstdint>

#include "arithmetic.h"

namespace agm {

AGM_HOST_DEVICE constexpr int subset_size(unsigned subset) {
  int size = 0;
  for (; subset != 0; subset &= subset - 1) ++size;
  return size;
}

AGM_HOST_DEVICE constexpr double binomial(int n, int k) {
  double result = 1;
  for (int i = 1; i <= k; ++i) result = result * (n - k + i) / i;
  return result;
}

// Shapley weight w(m, S) of a subset of `size` modalities, for those in it and for those that are not.
AGM_HOST_DEVICE constexpr double weight_inside(int modalities, int size) {
  return 1 / (size * binomial(modalities, size));
}
AGM_HOST_DEVICE constexpr double weight_outside(int modalities, int size) {
  return size == modalities ? 0 : -1 / ((modalities - size) * binomial(modalities, size));
}

// Kernels keep float32 responses multiplied by this power of two, which costs no digit: a sum of logits whose
// response can be stored then never overflows on the way, so that every backend skips the same steps.
constexpr double kResponseScale = 0.25;

// The Shapley weights of every subset as constants. Called with a variable, the functions above are loops of
// float64 divisions.
template <typename A, int M>
struct Weights {
  A of[(1 << M) - 1][M];

  AGM_HOST_DEVICE constexpr explicit Weights(double scale = 1) : of() {
    for (unsigned subset = 1; subset < 1u << M; ++subset) {
      const int size = subset_size(subset);
      for (int m = 0; m < M; ++m) {
        const bool present = (subset >> m & 1) != 0;
        of[subset - 1][m] =
            static_cast<A>(scale * (present ? weight_inside(M, size) : weight_outside(M, size)));
      }
    }
  }
};

// The largest of some numbers and the sum of exp(x - largest). An infinity or a NaN among them makes the sum
// NaN.
template <typename A>
struct Softmax {
  A largest = -kInfinity<A>;
  A sum = 0;

  // What to subtract in exponents: before any finite number came, exp(-inf - -inf) would be NaN.
  AGM_HOST_DEVICE static A shift(A largest) { return largest == -kInfinity<A> ? A(0) : largest; }

  AGM_HOST_DEVICE void merge(const Softmax& other) {
    const A joint = other.largest > largest ? other.largest : largest;
    sum = sum * exponential(largest - shift(joint)) + other.sum * exponential(other.largest - shift(joint));
    largest = joint;
  }

  // -log of the probability of the logit `target`, at most `cap`; NaN stays NaN.
  AGM_HOST_DEVICE A cost(A target, A cap) const {
    const A result = std::log(sum) + (largest - target);
    return result > cap ? cap : result;
  }
};

// Whether the logit of class `index` keeps argmax from being `label`, whose logit is `target`. As in torch,
// NaN is larger than any number and the first of equals wins.
template <typename A>
AGM_HOST_DEVICE bool beats(A logit, int64_t index, A target, int64_t label) {
  if (index == label) return false;
  if (target != target) return logit != logit && index < label;
  return !(logit < target || (logit == target && index > label));
}

// What is summed over the samples of a batch. Ignored samples are not in it.
template <int Max>
struct Tally {
  double cost[Max] = {};
  int64_t hits[Max + 1] = {};  // by modality, then joint
  int64_t samples = 0;

  AGM_HOST_DEVICE void add(const Tally& other) {
    for (int m = 0; m < Max; ++m) cost[m] += other.cost[m];
    for (int m = 0; m <= Max; ++m) hits[m] += other.hits[m];
    samples += other.samples;
  }

  // A sample whose class does not exist: the step will be a skipped one.
  AGM_HOST_DEVICE void add_unknown() {
    for (int m = 0; m < Max; ++m) cost[m] = kNotANumber<double>;
    samples += 1;
  }
};

// Rows of the (5, M) tensor `values`, and the entries of `counts` behind its first M.
enum Values { kRunningScores, kScores, kRatios, kReferenceRatios, kCoefficients };
enum Counts { kJointCorrect, kSamples, kStep, kSkipped };

// The bound of a sample's score that `floor`, the smallest probability, makes.
inline double largest_cost(double floor) { return floor > 0 ? -std::log(floor) : kInfinity<double>; }

struct Settings {
  int modalities;
  double alpha;
  double max_gap;
  bool update;
};

AGM_HOST_DEVICE double discrepancy_ratio(const double* scores, int modalities, int m) {
  double sum = 0;
  for (int j = 0; j < modalities; ++j) sum += scores[j];
  return std::exp((sum - scores[m] * modalities) / (modalities - 1));
}

// A coefficient is applied in float32, so a finite one is finite there.
constexpr double kLargestCoefficient = std::numeric_limits<float>::max();

// One modality's share of the last step: ratios and coefficient, and whether they are usable.
struct Modulation {
  double score, ratio, reference_ratio, coefficient;
  bool finite;
};

AGM_HOST_DEVICE Modulation modulation(const double* scores, const double* running, int m,
                                      const Settings& settings) {
  Modulation result;
  result.score = scores[m];
  result.ratio = discrepancy_ratio(scores, settings.modalities, m);
  result.reference_ratio = discrepancy_ratio(running, settings.modalities, m);
  const double gap = result.reference_ratio - result.ratio;
  result.coefficient = std::exp(settings.alpha * (gap > settings.max_gap ? settings.max_gap : gap));
  result.finite = std::isfinite(result.score) && result.coefficient <= kLargestCoefficient;
  return result;
}

// Writes modality m into the state. `usable`: every modality is finite. `step` is the one being made.
AGM_HOST_DEVICE void write_values(const Modulation& own, int m, bool usable, int64_t step,
                                  const Settings& settings, double* values) {
  double* at = values + m;
  const auto t = static_cast<double>(step);
  if (usable) at[kRunningScores] = at[kRunningScores] * ((t - 1) / t) + own.score / t;
  at[kScores * settings.modalities] = own.score;
  at[kRatios * settings.modalities] = own.ratio;
  at[kReferenceRatios * settings.modalities] = own.reference_ratio;
  at[kCoefficients * settings.modalities] = usable ? own.coefficient : 1;
}

template <int Max>
AGM_HOST_DEVICE void write_counts(const Tally<Max>& tally, bool usable, const Settings& settings,
                                  int64_t* counts) {
  for (int m = 0; m < Max; ++m) {
    if (m < settings.modalities) counts[m] = tally.hits[m];
  }
  int64_t* behind = counts + settings.modalities;
  behind[kJointCorrect] = tally.hits[Max];
  behind[kSamples] = tally.samples;
  behind[usable ? kStep : kSkipped] += 1;
}

// c_S from the coefficients; written around 1 so that unmodulated training gives exactly 0, and 1 in the last
// row.
AGM_HOST_DEVICE double subset_scale(const double* coefficients, int modalities, unsigned subset) {
  const int size = subset_size(subset);
  double scale = size == modalities ? 1 : 0;
  for (int m = 0; m < modalities; ++m) {
    const bool present = (subset >> m & 1) != 0;
    scale += (coefficients[m] - 1) *
             (present ? weight_inside(modalities, size) : weight_outside(modalities, size));
  }
  return scale;
}

// c_S * g. A scale of exactly 0 gives 0 whatever the gradient holds, so that no NaN leaks into a masked pass
// that is not modulated.
template <typename T>
AGM_HOST_DEVICE T scale_gradient(accumulate_t<T> scale, T gradient) {
  using A = accumulate_t<T>;
  return static_cast<T>(scale == A(0) ? A(0) : scale * static_cast<A>(gradient));
}

}  // namespace agm
