// What every launcher needs: the device of its tensors, the stream that torch uses now, and a check.
#pragma once

#include "../common/tensor.h"  // first: it names the version of torch that the others are read for

#include <cuda_runtime.h>
#include <torch/csrc/stable/macros.h>

#include <algorithm>
#include <atomic>
#include <utility>

#include "../common/grids.h"

#ifndef AGM_CUDA_KEY
#define AGM_CUDA_KEY CUDA
#endif

namespace agm {

constexpr int kWarp = 32;
constexpr int kWarps = 8;
constexpr int kThreads = kWarp * kWarps;  // of every block

// The one place where a kernel is launched, and by a function: `<<<>>>` is not C++, and the tests compile the
// kernels as that to run them without a GPU. An error is left for the check in `on_device_of`.
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, unsigned threads, cudaStream_t stream,
            Arguments&&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.stream = stream;
  cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
}

// Blocks of a kernel that the current device runs at once; the driver is asked once a device.
template <auto Kernel>
int64_t resident_blocks() {
  constexpr int kDevices = 64;
  static std::atomic<int> known[kDevices];
  int device = 0, multiprocessors = 0, each = 0;
  cudaGetDevice(&device);
  if (device < kDevices && known[device] > 0) return known[device];
  cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, Kernel, kThreads, 0);
  const int blocks = std::max(1, multiprocessors * each);
  if (each > 0 && device < kDevices) known[device] = blocks;  // not what a failure gave
  return blocks;
}

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
