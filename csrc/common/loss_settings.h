// The settings of the cross-entropy from its tensors.
#pragma once

#include "cross_entropy.h"
#include "tensor.h"

namespace agm {

template <typename A>
LossSettings<A> loss_settings(const std::optional<torch::stable::Tensor>& weight, int64_t classes,
                              double label_smoothing, double all_weights = 0) {
  STD_TORCH_CHECK(!weight || weight->numel() == classes, "Expected `weight` to have ", classes, " elements.");
  const double smooth = label_smoothing / static_cast<double>(classes);
  return {weight ? weight->const_data_ptr<A>() : nullptr, classes, label_smoothing, smooth, all_weights};
}

}  // namespace agm
