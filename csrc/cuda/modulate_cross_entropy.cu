#include "../common/loss_settings.h"

#include <optional>
#include <tuple>

#include "scores.cuh"

namespace agm {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> modulate_cross_entropy(
    const Tensor& masked_logits, const Tensor& target, const Tensor& values, const Tensor& counts,
    const std::optional<Tensor>& weight, double alpha, double max_gap, double floor, int64_t ignore_index,
    double label_smoothing, bool update) {
  const std::optional<Tensor> own_weight = contiguous_or_none(weight);
  const auto wide = accumulation_type(masked_logits);
  Tensor mean = torch::stable::new_empty(masked_logits, {}, wide);
  Tensor normalizer = torch::stable::new_empty(masked_logits, {2, masked_logits.size(1)}, wide);
  Tensor sums = torch::stable::new_empty(values, {2});  // float64
  Tensor scales = run_step<true>(
      masked_logits, target, values, counts, floor, ignore_index, alpha, max_gap, update, [&](auto zero) {
        using A = decltype(zero);
        return LossGoal<A>{loss_settings<A>(own_weight, masked_logits.size(2), label_smoothing),
                           mean.mutable_data_ptr<A>(), normalizer.mutable_data_ptr<A>(),
                           sums.mutable_data_ptr<double>(), nullptr};
      });
  return {mean, scales, normalizer, sums};
}

// The inputs of the backward.
template <typename T, typename A = accumulate_t<T>>
struct Losses {
  const T* logits;  // (B, C), its classes neighbours in memory
  int64_t batch_stride;
  const T* grad_logits;  // (B, C) compact, or null
  const A* grad_loss;    // ()
  const A* normalizer;   // (2, B)
  const double* sums;    // (2,)
  const double* scales;  // (rows,)
  LossSettings<A> settings;
  Target target;
};

// Of sample b, whatever its label.
template <typename T, typename A = accumulate_t<T>>
__device__ __forceinline__ LossGradient<A> gradient_of(const Losses<T>& losses,
                                                       const LossSettings<A>& settings, double per_weight,
                                                       int64_t b, int64_t batch) {
  const int64_t label = losses.target.label[b];
  return LossGradient<A>(settings, per_weight, label, label == losses.target.ignore_index,
                         label >= 0 && label < settings.classes, losses.normalizer[b],
                         losses.normalizer[batch + b]);
}

// One thread makes Width elements of the gradient and writes them into its share of the rows: the logits are
// read once, and every store is as wide as the row length allows. With Across the elements may be of two
// samples, whose logits are neighbours in memory and at least Width.
template <typename T, int Width, bool Across>
__global__ void __launch_bounds__(kThreads)
    scale_loss_rows(Losses<T> losses, T* __restrict__ out, int64_t rows, int64_t batch, int64_t classes) {
  using A = accumulate_t<T>;
  // The divisions of float64, once a block.
  __shared__ double per_weight;
  if (threadIdx.x == 0) per_weight = static_cast<double>(*losses.grad_loss) / losses.sums[0];
  __syncthreads();
  const int64_t size = batch * classes;
  const int64_t at = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * Width;
  if (at >= size) return;
  // Division of 32 bits is several times cheaper.
  const int64_t b =
      size <= 0xffffffff ? static_cast<uint32_t>(at) / static_cast<uint32_t>(classes) : at / classes;
  const int64_t first = at - b * classes;
  LossSettings<A> settings = losses.settings;
  settings.all_weights = losses.sums[1];
  const auto sample = gradient_of(losses, settings, per_weight, b, batch);
  auto next = sample;
  if (Across && first + Width > classes) next = gradient_of(losses, settings, per_weight, b + 1, batch);
  const auto source = load<T, Width>(losses.logits + b * losses.batch_stride + first);
  A gradient[Width];
#pragma unroll
  for (int i = 0; i < Width; ++i) {
    const bool of_next = Across && first + i >= classes;
    const LossGradient<A>& own = of_next ? next : sample;
    const int64_t c = of_next ? first + i - classes : first + i;
    gradient[i] = A(0);
    if (!own.used) continue;
    const A exponent = (static_cast<A>(source.value[i]) - own.largest) - own.log_sum;
    gradient[i] = own.of_class(exponential(exponent), settings.weight_in(c));
    if (c == own.label) gradient[i] -= own.at_label;
  }
  if (losses.grad_logits != nullptr) {
    const auto other = load<T, Width>(losses.grad_logits + at);
#pragma unroll
    for (int i = 0; i < Width; ++i) gradient[i] += static_cast<A>(other.value[i]);
  }
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    const auto scale = static_cast<A>(losses.scales[row]);
    Pack<T, Width> target;
#pragma unroll
    for (int i = 0; i < Width; ++i) target.value[i] = static_cast<T>(scale_gradient<A>(scale, gradient[i]));
    store(out + row * size + at, target);
  }
}

// The widest access, up to 16 bytes, to which every row is aligned, be it across samples.
template <typename T, int Width = 16 / sizeof(T), bool Across = false>
void launch_scale_loss_rows(const Losses<T>& losses, T* out, int64_t rows, int64_t batch, int64_t classes,
                            cudaStream_t stream) {
  if constexpr (Width > 1 && !Across) {
    const auto address = reinterpret_cast<uintptr_t>(losses.logits) | reinterpret_cast<uintptr_t>(out) |
                         reinterpret_cast<uintptr_t>(losses.grad_logits);
    const bool aligned = address % (sizeof(T) * Width) == 0;
    if (!aligned || (classes | losses.batch_stride) % Width != 0) {
      if constexpr (Width == 16 / sizeof(T)) {
        const bool compact = losses.batch_stride == classes && classes >= Width;
        if (aligned && compact && batch * classes % Width == 0) {
          return launch_scale_loss_rows<T, Width, true>(losses, out, rows, batch, classes, stream);
        }
      }
      return launch_scale_loss_rows<T, Width / 2>(losses, out, rows, batch, classes, stream);
    }
  }
  const int64_t blocks = (batch * classes / Width + kThreads - 1) / kThreads;
  const dim3 grid = grid_of_rows(blocks, rows, resident_blocks<scale_loss_rows<T, Width, Across>>());
  launch(scale_loss_rows<T, Width, Across>, grid, kThreads, stream, losses, out, rows, batch, classes);
}

Tensor modulate_cross_entropy_backward(const Tensor& grad_loss, const std::optional<Tensor>& grad_logits,
                                       const Tensor& joint_logits, const Tensor& target,
                                       const std::optional<Tensor>& weight, const Tensor& normalizer,
                                       const Tensor& sums, const Tensor& subset_scales, int64_t ignore_index,
                                       double label_smoothing) {
  const Tensor logits =  // (B, C)
      joint_logits.stride(1) == 1 ? joint_logits : torch::stable::contiguous(joint_logits);
  const Tensor labels = torch::stable::contiguous(target);
  const Tensor own_normalizer = torch::stable::contiguous(normalizer);
  const Tensor scales = torch::stable::contiguous(subset_scales);
  const std::optional<Tensor> own_grad = contiguous_or_none(grad_logits);
  const std::optional<Tensor> own_weight = contiguous_or_none(weight);
  const int64_t rows = scales.size(0), batch = logits.size(0), classes = logits.size(1);
  Tensor out = torch::stable::new_empty(logits, {rows, batch, classes});
  if (out.numel() == 0) return out;
  AGM_DISPATCH_FLOATING(logits.scalar_type(), "agm::modulate_cross_entropy_backward", [&] {
    using A = accumulate_t<scalar_t>;
    const Losses<scalar_t> losses{
        static_cast<const scalar_t*>(logits.const_data_ptr()),
        logits.stride(0),
        own_grad ? static_cast<const scalar_t*>(own_grad->const_data_ptr()) : nullptr,
        grad_loss.const_data_ptr<A>(),
        own_normalizer.const_data_ptr<A>(),
        sums.const_data_ptr<double>(),
        scales.const_data_ptr<double>(),
        loss_settings<A>(own_weight, classes, label_smoothing),
        {labels.const_data_ptr<int64_t>(), ignore_index}};
    on_device_of(logits, [&](cudaStream_t stream) {
      launch_scale_loss_rows(losses, static_cast<scalar_t*>(out.mutable_data_ptr()), rows, batch, classes,
                             stream);
    });
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(AGM_LIBRARY, AGM_CUDA_KEY, m) {
  m.impl("modulate_cross_entropy", TORCH_BOX(&modulate_cross_entropy));
  m.impl("modulate_cross_entropy_backward", TORCH_BOX(&modulate_cross_entropy_backward));
}

}  // namespace
}  // namespace agm
