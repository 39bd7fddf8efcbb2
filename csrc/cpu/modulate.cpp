#include "../common/modulate.h"

#include <algorithm>

#include "subsets.h"

namespace agm {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::stable::Tensor;

#define AGM_SCORE_SAMPLE(T)                                                                         \
  AGM_CLONES void score_sample(const MaskedLogits<T>& masked, int64_t b, int64_t label, double cap, \
                               Sample& sample) {                                                    \
    const SubsetSource<T> source{masked};                                                           \
    if (!score_sample_body<accumulate_t<T>>(source, b, label, cap, sample))                         \
      score_exactly<accumulate_t<T>>(source, b, label, cap, sample);                                \
  }
AGM_SCORE_SAMPLE(float)
AGM_SCORE_SAMPLE(double)
AGM_SCORE_SAMPLE(Half)
AGM_SCORE_SAMPLE(BFloat16)

template <typename T>
struct Scorer {
  const MaskedLogits<T>& masked;
  const int64_t* label;
  double cap;

  void score(int64_t b, Sample& sample) const { score_sample(masked, b, label[b], cap, sample); }
  void skip(int64_t) const {}
};

Tensor modulate(const Tensor& masked_logits, const Tensor& target, const Tensor& values, const Tensor& counts,
                double alpha, double max_gap, double floor, int64_t ignore_index, bool update) {
  const Tensor logits = unit_class_stride(masked_logits);       // (2**M - 1, B, C)
  const Tensor own_target = torch::stable::contiguous(target);  // (B,) int64
  const int modalities = modalities_of(logits.size(0), kMaxModalities);
  check_state(values, counts, modalities);
  const Labels labels{own_target.const_data_ptr<int64_t>(), logits.size(1), logits.size(2), ignore_index};
  Tally<kMaxModalities> tally;
  AGM_DISPATCH_FLOATING(logits.scalar_type(), "agm::modulate", [&] {
    const auto masked = masked_logits_of<scalar_t>(logits, modalities);
    const Scorer<scalar_t> scorer{masked, labels.of, largest_cost(floor)};
    tally = score_batch(labels, modalities, masked.rows() * labels.classes, scorer);
  });
  double coefficients[kMaxModalities];
  make_step(tally, {modalities, alpha, max_gap, update}, values.mutable_data_ptr<double>(),
            counts.mutable_data_ptr<int64_t>(), coefficients);
  Tensor scales = torch::stable::new_empty(values, {logits.size(0)});  // float64
  write_subset_scales(coefficients, modalities, scales.mutable_data_ptr<double>());
  return scales;
}

template <typename T>
AGM_HOST_DEVICE void scale_row_body(double row_scale, const T* grad, T* out, int64_t count) {
  using A = accumulate_t<T>;
  const A scale = static_cast<A>(row_scale);
  for (int64_t i = 0; i < count; ++i) out[i] = narrow<T>(scale_gradient<A>(scale, widen(grad[i])));
}

#define AGM_SCALE_ROW(T)                                                          \
  AGM_CLONES void scale_row(double scale, const T* grad, T* out, int64_t count) { \
    scale_row_body(scale, grad, out, count);                                      \
  }
AGM_SCALE_ROW(float)
AGM_SCALE_ROW(double)
AGM_SCALE_ROW(Half)
AGM_SCALE_ROW(BFloat16)

template <typename T>
void scale_rows(const T* grad, const double* scales, T* out, int64_t rows, int64_t size) {
  torch::stable::parallel_for(0, rows * size, kGrain, [=](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t row = begin / size;
      const int64_t stop = std::min(end, (row + 1) * size);
      scale_row(scales[row], grad + (begin - row * size), out + begin, stop - begin);
      begin = stop;
    }
  });
}

Tensor modulate_backward(const Tensor& grad, const Tensor& subset_scales) {
  const int64_t rows = subset_scales.size(0);
  const Tensor source = torch::stable::contiguous(grad);           // (B, C)
  const Tensor scales = torch::stable::contiguous(subset_scales);  // (rows,) float64
  Tensor out = torch::stable::new_empty(source, {rows, source.size(0), source.size(1)});
  if (out.numel() == 0) return out;
  AGM_DISPATCH_FLOATING(source.scalar_type(), "agm::modulate_backward", [&] {
    scale_rows(static_cast<const scalar_t*>(source.const_data_ptr()), scales.const_data_ptr<double>(),
               static_cast<scalar_t*>(out.mutable_data_ptr()), rows, source.numel());
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(AGM_LIBRARY, CPU, m) {
  m.impl("modulate", TORCH_BOX(&modulate));
  m.impl("modulate_backward", TORCH_BOX(&modulate_backward));
}

}  // namespace
}  // namespace agm
