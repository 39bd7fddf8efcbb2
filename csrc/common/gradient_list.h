// The gradients of one call as stretches of memory.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "tensor.h"

namespace agm {

// Whether the elements fill a stretch of memory, in whatever order of the dimensions.
inline bool fills_its_memory(const torch::stable::Tensor& tensor) {
  if (tensor.is_contiguous()) return true;
  std::vector<std::pair<int64_t, int64_t>> dimensions;  // stride, size
  for (int64_t i = 0; i < tensor.dim(); ++i) {
    if (tensor.size(i) != 1) dimensions.emplace_back(tensor.stride(i), tensor.size(i));
  }
  std::sort(dimensions.begin(), dimensions.end());
  int64_t expected = 1;
  for (const auto& [stride, size] : dimensions) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

// Checks the arguments, and makes a compact copy of each gradient that cannot be worked on where it is.
class GradientList {
 public:
  // `in_order`: element i of the memory must be element i of the tensor (row-major).
  GradientList(const std::vector<torch::stable::Tensor>& grads, const std::vector<int64_t>& groups,
               int64_t coefficients, bool in_order)
      : grads_(grads) {
    STD_TORCH_CHECK(grads.size() == groups.size(), "Expected one group a gradient, but got ", grads.size(),
                    " gradients and ", groups.size(), " groups.");
    for (const int64_t group : groups) {
      STD_TORCH_CHECK(group >= 0 && group < coefficients, "Expected `groups` to be in [0, ", coefficients,
                      "), but got ", group, ".");
    }
    for (const auto& grad : grads) {
      AGM_DISPATCH_FLOATING(grad.scalar_type(), "agm::scale_gradients_",
                            [] {});  // or an error, before any work
    }
    flat_.reserve(grads.size());
    for (const auto& grad : grads) {
      const bool in_place = in_order ? grad.is_contiguous() : fills_its_memory(grad);
      flat_.push_back(in_place ? grad : torch::stable::contiguous(grad));
    }
  }

  const torch::stable::Tensor& flat(size_t i) const { return flat_[i]; }

  void copy_back() const {
    for (size_t i = 0; i < grads_.size(); ++i) {
      if (flat_[i].get() == grads_[i].get()) continue;
      torch::stable::Tensor target = grads_[i];
      torch::stable::copy_(target, flat_[i]);
    }
  }

 private:
  const std::vector<torch::stable::Tensor>& grads_;
  std::vector<torch::stable::Tensor> flat_;
};

}  // namespace agm
