// The mean cross-entropy with class weights and label smoothing, and its gradient, for host and device:
// agm/ops/reference/modulate_cross_entropy.py is the specification.
#pragma once

#include <cstdint>

#include "arithmetic.h"

namespace agm {

template <typename A>
struct LossSettings {
  const A* weight;  // of the classes; null: all 1
  int64_t classes;
  double label_smoothing;
  double smooth;       // label_smoothing / classes
  double all_weights;  // the weights of the classes, summed; 0 where no label smoothing needs them

  AGM_HOST_DEVICE A weight_in(int64_t c) const { return weight == nullptr ? A(1) : weight[c]; }
  AGM_HOST_DEVICE double weight_of(int64_t label) const { return static_cast<double>(weight_in(label)); }
};

// Differences of logits that are finite may not be, nor their sum: they are summed times this, for label
// smoothing.
template <typename A>
constexpr A kSpreadScale = A(1) / A(int64_t(1) << 32);

template <typename A>
AGM_HOST_DEVICE A scaled_difference(A target, A logit) {
  return target * kSpreadScale<A> - logit * kSpreadScale<A>;
}

// What is summed over the samples in use. `cost` is -log p of the label, `spread` the sum of
// w_c (z_label - z_c) over the classes.
struct LossTally {
  double weighted_cost = 0;
  double cost = 0;
  double spread = 0;
  double weight = 0;

  // `own_spread` is in scaled differences.
  AGM_HOST_DEVICE void add_sample(double own_weight, double own_cost, double own_spread) {
    weighted_cost += own_weight * own_cost;
    cost += own_cost;
    spread += own_spread / kSpreadScale<double>;
    weight += own_weight;
  }

  // A sample whose class does not exist makes the loss NaN.
  AGM_HOST_DEVICE void add_unknown() { weight = kNotANumber<double>; }

  AGM_HOST_DEVICE void add(const LossTally& other) {
    weighted_cost += other.weighted_cost;
    cost += other.cost;
    spread += other.spread;
    weight += other.weight;
  }

  template <typename A>
  AGM_HOST_DEVICE double mean(const LossSettings<A>& settings) const {
    double sum = (1 - settings.label_smoothing) * weighted_cost;
    if (settings.label_smoothing > 0) sum += settings.smooth * (settings.all_weights * cost + spread);
    return sum / weight;
  }
};

// The gradient of one sample's joint logits through the loss.
template <typename A>
struct LossGradient {
  A largest, log_sum;  // of its softmax
  A factor;            // of the probabilities
  A smooth;            // of the class weights
  A at_label;
  int64_t label;
  bool used;

  // `per_weight`: the gradient of the loss, divided by the weights of all samples.
  AGM_HOST_DEVICE LossGradient(const LossSettings<A>& settings, double per_weight, int64_t own_label,
                               bool ignored, bool known, A largest_logit, A log_sum_of_exponentials)
      : largest(largest_logit), log_sum(log_sum_of_exponentials), label(own_label), used(!ignored) {
    const double own = (1 - settings.label_smoothing) * (known ? settings.weight_of(own_label) : 1.0);
    at_label = static_cast<A>(per_weight * own);
    smooth = static_cast<A>(per_weight * settings.smooth);
    factor = static_cast<A>(per_weight * (own + settings.smooth * settings.all_weights));
  }

  // All but what the label's own class has less: `at_label`.
  AGM_HOST_DEVICE A of_class(A probability, A weight) const { return factor * probability - smooth * weight; }
};

}  // namespace agm
