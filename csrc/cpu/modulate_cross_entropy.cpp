#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "../common/loss_settings.h"
#include "subsets.h"

namespace agm {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::stable::Tensor;

#define AGM_SCORE_SAMPLE(T)                                                                         \
  AGM_CLONES void score_sample(const MaskedLogits<T>& masked, int64_t b, int64_t label, double cap, \
                               Sample& sample, JointLoss<accumulate_t<T>>& loss) {                  \
    const SubsetSource<T> source{masked};                                                           \
    if (!score_sample_body<accumulate_t<T>>(source, b, label, cap, sample, &loss))                  \
      score_exactly<accumulate_t<T>>(source, b, label, cap, sample);                                \
  }
AGM_SCORE_SAMPLE(float)
AGM_SCORE_SAMPLE(double)
AGM_SCORE_SAMPLE(Half)
AGM_SCORE_SAMPLE(BFloat16)

// The weights of the classes, summed.
template <typename A>
double sum_of_weights(const LossSettings<A>& settings) {
  if (settings.weight == nullptr) return static_cast<double>(settings.classes);
  double sum = 0;
  for (int64_t c = 0; c < settings.classes; ++c) sum += static_cast<double>(settings.weight[c]);
  return sum;
}

template <typename T, typename A = accumulate_t<T>>
struct Scorer {
  const MaskedLogits<T>& masked;
  const Labels& labels;
  const LossSettings<A>& settings;
  double cap;
  A* normalizer;   // (2, B)
  double* cost;    // (B,)
  double* spread;  // (B,)

  void score(int64_t b, Sample& sample) const {
    const int64_t label = labels.of[b];
    JointLoss<A> joint{settings.weight, settings.label_smoothing > 0, {}};
    score_sample(masked, b, label, cap, sample, joint);
    const A target = widen((masked.sample(b) + (masked.rows() - 1) * masked.row_stride)[label]);
    normalizer[b] = joint.softmax.largest;
    normalizer[labels.batch + b] = std::log(joint.softmax.sum);
    cost[b] = static_cast<double>(joint.softmax.cost(target, kInfinity<A>));
    spread[b] = joint.spread;
  }

  void skip(int64_t b) const {
    normalizer[b] = A(0);
    normalizer[labels.batch + b] = A(0);
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor> modulate_cross_entropy(
    const Tensor& masked_logits, const Tensor& target, const Tensor& values, const Tensor& counts,
    const std::optional<Tensor>& weight, double alpha, double max_gap, double floor, int64_t ignore_index,
    double label_smoothing, bool update) {
  const Tensor logits = unit_class_stride(masked_logits);       // (2**M - 1, B, C)
  const Tensor own_target = torch::stable::contiguous(target);  // (B,) int64
  const std::optional<Tensor> own_weight = contiguous_or_none(weight);
  const int modalities = modalities_of(logits.size(0), kMaxModalities);
  check_state(values, counts, modalities);
  const Labels labels{own_target.const_data_ptr<int64_t>(), logits.size(1), logits.size(2), ignore_index};
  const auto wide = accumulation_type(logits);
  Tensor mean = torch::stable::new_empty(logits, {}, wide);
  Tensor normalizer = torch::stable::new_empty(logits, {2, labels.batch}, wide);
  Tensor sums = torch::stable::new_empty(values, {2});  // float64
  Tally<kMaxModalities> tally;
  AGM_DISPATCH_FLOATING(logits.scalar_type(), "agm::modulate_cross_entropy", [&] {
    using A = accumulate_t<scalar_t>;
    const auto masked = masked_logits_of<scalar_t>(logits, modalities);
    auto settings = loss_settings<A>(own_weight, labels.classes, label_smoothing);
    if (label_smoothing > 0) settings.all_weights = sum_of_weights(settings);
    std::vector<double> cost(static_cast<size_t>(labels.batch)), spread(cost.size());
    const Scorer<scalar_t> scorer{
        masked,      labels,       settings, largest_cost(floor), normalizer.mutable_data_ptr<A>(),
        cost.data(), spread.data()};
    tally = score_batch(labels, modalities, masked.rows() * labels.classes, scorer);
    LossTally loss;
    for (int64_t b = 0; b < labels.batch; ++b) {
      if (labels.ignored(b)) continue;
      if (!labels.known(b)) {
        loss.add_unknown();
        continue;
      }
      const auto i = static_cast<size_t>(b);
      loss.add_sample(settings.weight_of(labels.of[b]), cost[i], spread[i]);
    }
    *mean.mutable_data_ptr<A>() = static_cast<A>(loss.mean(settings));
    auto* sum = sums.mutable_data_ptr<double>();
    sum[0] = loss.weight;
    sum[1] = settings.all_weights;
  });
  double coefficients[kMaxModalities];
  make_step(tally, {modalities, alpha, max_gap, update}, values.mutable_data_ptr<double>(),
            counts.mutable_data_ptr<int64_t>(), coefficients);
  Tensor scales = torch::stable::new_empty(values, {logits.size(0)});  // float64
  write_subset_scales(coefficients, modalities, scales.mutable_data_ptr<double>());
  return {mean, scales, normalizer, sums};
}

// g of one sample into `gradient`, then c_S * g into each of its rows.
template <typename T, typename A = accumulate_t<T>>
AGM_HOST_DEVICE void scale_sample_body(const LossGradient<A>& sample, const A* weight, const T* logits,
                                       const T* grad_logits, const double* scales, int64_t rows,
                                       int64_t row_stride, int64_t classes, T* out) {
  A gradient[kTile];
  for (int64_t start = 0; start < classes; start += kTile) {
    const int64_t count = std::min(kTile, classes - start);
    if (sample.used) {
      for (int64_t i = 0; i < count; ++i) {
        const A exponent = (widen(logits[start + i]) - sample.largest) - sample.log_sum;
        const A each = weight == nullptr ? A(1) : weight[start + i];
        gradient[i] = sample.of_class(exp_nonpositive(exponent), each);
      }
      if (sample.label >= start && sample.label < start + count) {
        gradient[sample.label - start] -= sample.at_label;
      }
    } else {
      std::fill_n(gradient, count, A(0));
    }
    if (grad_logits != nullptr) {
      for (int64_t i = 0; i < count; ++i) gradient[i] += widen(grad_logits[start + i]);
    }
    for (int64_t row = 0; row < rows; ++row) {
      const A scale = static_cast<A>(scales[row]);
      T* target = out + row * row_stride + start;
      for (int64_t i = 0; i < count; ++i) target[i] = narrow<T>(scale_gradient<A>(scale, gradient[i]));
    }
  }
}

#define AGM_SCALE_SAMPLE(T)                                                                                \
  AGM_CLONES void scale_sample(const LossGradient<accumulate_t<T>>& sample, const accumulate_t<T>* weight, \
                               const T* logits, const T* grad_logits, const double* scales, int64_t rows,  \
                               int64_t row_stride, int64_t classes, T* out) {                              \
    scale_sample_body(sample, weight, logits, grad_logits, scales, rows, row_stride, classes, out);        \
  }
AGM_SCALE_SAMPLE(float)
AGM_SCALE_SAMPLE(double)
AGM_SCALE_SAMPLE(Half)
AGM_SCALE_SAMPLE(BFloat16)

Tensor modulate_cross_entropy_backward(const Tensor& grad_loss, const std::optional<Tensor>& grad_logits,
                                       const Tensor& joint_logits, const Tensor& target,
                                       const std::optional<Tensor>& weight, const Tensor& normalizer,
                                       const Tensor& sums, const Tensor& subset_scales, int64_t ignore_index,
                                       double label_smoothing) {
  const Tensor logits = torch::stable::contiguous(joint_logits);  // (B, C)
  const Tensor own_target = torch::stable::contiguous(target);
  const Tensor own_normalizer = torch::stable::contiguous(normalizer);
  const Tensor own_scales = torch::stable::contiguous(subset_scales);
  const std::optional<Tensor> own_grad = contiguous_or_none(grad_logits);
  const std::optional<Tensor> own_weight = contiguous_or_none(weight);
  const int64_t rows = own_scales.size(0), batch = logits.size(0), classes = logits.size(1);
  Tensor out = torch::stable::new_empty(logits, {rows, batch, classes});
  if (out.numel() == 0) return out;
  const Labels labels{own_target.const_data_ptr<int64_t>(), batch, classes, ignore_index};
  AGM_DISPATCH_FLOATING(logits.scalar_type(), "agm::modulate_cross_entropy_backward", [&] {
    using A = accumulate_t<scalar_t>;
    const auto* from = static_cast<const scalar_t*>(logits.const_data_ptr());
    const auto* other = own_grad ? static_cast<const scalar_t*>(own_grad->const_data_ptr()) : nullptr;
    auto* into = static_cast<scalar_t*>(out.mutable_data_ptr());
    const auto* norms = own_normalizer.const_data_ptr<A>();
    const auto* scales = own_scales.const_data_ptr<double>();
    const auto* sum = sums.const_data_ptr<double>();
    const auto settings = loss_settings<A>(own_weight, classes, label_smoothing, sum[1]);
    const double per_weight = static_cast<double>(*grad_loss.const_data_ptr<A>()) / sum[0];
    const int64_t grain = std::max<int64_t>(1, kGrain / (rows * classes));
    torch::stable::parallel_for(0, batch, grain, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        const LossGradient<A> sample(settings, per_weight, labels.of[b], labels.ignored(b), labels.known(b),
                                     norms[b], norms[batch + b]);
        scale_sample(sample, settings.weight, from + b * classes,
                     other == nullptr ? nullptr : other + b * classes, scales, rows, batch * classes, classes,
                     into + b * classes);
      }
    });
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(AGM_LIBRARY, CPU, m) {
  m.impl("modulate_cross_entropy", TORCH_BOX(&modulate_cross_entropy));
  m.impl("modulate_cross_entropy_backward", TORCH_BOX(&modulate_cross_entropy_backward));
}

}  // namespace
}  // namespace agm
