// What every launcher needs: the device of its tensors, the stream that torch uses now, and a check.
#pragma once

#include "../common/tensor.h"  // first: it names the version of torch that the others are read for

#include <cuda_runtime.h>
#include <torch/csrc/stable/macros.h>

namespace agm {

inline cudaStream_t current_stream(const torch::stable::Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

// Calls `launch` with its tensors' device current and hands it torch's stream.
template <typename F>
void on_device_of(const torch::stable::Tensor& tensor, const F& launch) {
  const torch::stable::accelerator::DeviceGuard guard(tensor.get_device_index());
  launch(current_stream(tensor));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace agm
