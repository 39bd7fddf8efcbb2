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
  double all_weights;  // the weights of the classes, summed

  AGM_HOST_DEVICE double weight_of(int64_t label) const {
    return weight == nullptr ? 1.0 : static_cast<double>(weight[label]);
  }
  AGM_HOST_DEVICE double smooth() const { return label_smoothing / static_cast<double>(classes); }
};

// What a sample adds to the loss before it is divided by the weights of all samples. `cost` is -log p of its
// label, `spread` the sum of w_c (z_label - z_c) over the classes.
template <typename A>
AGM_HOST_DEVICE double sample_loss(const LossSettings<A>& settings, int64_t label, double cost,
                                   double spread) {
  const double own = (1 - settings.label_smoothing) * settings.weight_of(label) * cost;
  if (settings.label_smoothing <= 0) return own;
  return own + settings.smooth() * (settings.all_weights * cost + spread);
}

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
    smooth = static_cast<A>(per_weight * settings.smooth());
    factor = static_cast<A>(per_weight * (own + settings.smooth() * settings.all_weights));
  }

  // All but what the label's own class has less: `at_label`.
  AGM_HOST_DEVICE A of_class(A probability, A weight) const { return factor * probability - smooth * weight; }
};

}  // namespace agm
