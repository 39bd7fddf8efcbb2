#include "../common/modulate.h"

#include "scores.cuh"

namespace agm {
namespace {

Tensor modulate(const Tensor& masked_logits, const Tensor& target, const Tensor& values, const Tensor& counts,
                double alpha, double max_gap, double floor, int64_t ignore_index, bool update) {
  return run_step<false>(masked_logits, target, values, counts, floor, ignore_index, alpha, max_gap, update,
                         [](auto accumulated) { return LossGoal<decltype(accumulated)>{}; });
}

// One thread holds Width elements of the gradient and writes them into its share of the rows: the gradient
// is read once, and every store is as wide as the row length allows.
template <typename T, int Width>
__global__ void __launch_bounds__(kThreads)
    scale_rows(const T* __restrict__ grad, const double* __restrict__ scales, T* __restrict__ out,
               int64_t rows, int64_t size) {
  const int64_t at = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * Width;
  if (at >= size) return;
  const auto source = load<T, Width>(grad + at);
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    const auto scale = static_cast<accumulate_t<T>>(scales[row]);
    Pack<T, Width> target;
#pragma unroll
    for (int i = 0; i < Width; ++i) target.value[i] = scale_gradient(scale, source.value[i]);
    store(out + row * size + at, target);
  }
}

// The widest store, up to 16 bytes, to which every row is aligned.
template <typename T, int Width = 16 / sizeof(T)>
void launch_scale_rows(const T* grad, const double* scales, T* out, int64_t rows, int64_t size,
                       cudaStream_t stream) {
  if constexpr (Width > 1) {
    const auto address = reinterpret_cast<uintptr_t>(grad) | reinterpret_cast<uintptr_t>(out);
    if (size % Width != 0 || address % (sizeof(T) * Width) != 0) {
      return launch_scale_rows<T, Width / 2>(grad, scales, out, rows, size, stream);
    }
  }
  const int64_t blocks = (size / Width + kThreads - 1) / kThreads;
  const dim3 grid = grid_of_rows(blocks, rows, resident_blocks<scale_rows<T, Width>>());
  launch(scale_rows<T, Width>, grid, kThreads, stream, grad, scales, out, rows, size);
}

Tensor modulate_backward(const Tensor& grad, const Tensor& subset_scales) {
  const int64_t rows = subset_scales.size(0);
  const Tensor source = torch::stable::contiguous(grad);           // (B, C)
  const Tensor scales = torch::stable::contiguous(subset_scales);  // (rows,) float64
  Tensor out = torch::stable::new_empty(source, {rows, source.size(0), source.size(1)});
  if (out.numel() == 0) return out;
  AGM_DISPATCH_FLOATING(source.scalar_type(), "agm::modulate_backward", [&] {
    on_device_of(source, [&](cudaStream_t stream) {
      launch_scale_rows(static_cast<const scalar_t*>(source.const_data_ptr()),
                        scales.const_data_ptr<double>(), static_cast<scalar_t*>(out.mutable_data_ptr()), rows,
                        source.numel(), stream);
    });
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(AGM_LIBRARY, AGM_CUDA_KEY, m) {
  m.impl("modulate", TORCH_BOX(&modulate));
  m.impl("modulate_backward", TORCH_BOX(&modulate_backward));
}

}  // namespace
}  // namespace agm
