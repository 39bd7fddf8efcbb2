#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "scores.h"

namespace agm {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::stable::Tensor;

template <typename T>
struct Additive {
  const T* present;  // p_m
  const T* absent;   // q_m
  const T* bias;     // b; null: none
  const T* joint;    // null: b + sum_m p_m, which goes to `logits` as well
  T* logits;         // (B, C) compact
  int64_t row_stride, batch_stride, absent_stride, joint_stride;
  int64_t classes;
  int modalities;

  const T* present_at(int m, int64_t b, int64_t start) const {
    return present + m * row_stride + b * batch_stride + start;
  }
};

// A source of `score_sample_body`: phi_m = d_m + (z_full - sum_j d_j) / M with d_m = p_m - q_m.
template <typename T>
struct AdditiveSource {
  using A = accumulate_t<T>;
  const Additive<T>& parts;
  int64_t classes = parts.classes;
  int modalities = parts.modalities;

  AGM_HOST_DEVICE void joint_logits(int64_t b, int64_t start, int64_t count, A* joint) const {
    if (parts.joint != nullptr) {
      const T* given = parts.joint + b * parts.joint_stride + start;
      for (int64_t i = 0; i < count; ++i) joint[i] = widen(given[i]);
      return;
    }
    for (int m = 0; m < modalities; ++m) {
      const T* present = parts.present_at(m, b, start);
      for (int64_t i = 0; i < count; ++i)
        joint[i] = m == 0 ? widen(present[i]) : joint[i] + widen(present[i]);
    }
    if (parts.bias == nullptr) return;
    for (int64_t i = 0; i < count; ++i) joint[i] += widen(parts.bias[start + i]);
  }

  AGM_HOST_DEVICE void responses(int64_t b, int64_t start, int64_t count, A* response) const {
    const A* joint = response + modalities * kTile;
    joint_logits(b, start, count, response + modalities * kTile);
    A rest[kTile];
    std::fill_n(rest, count, A(0));
    for (int m = 0; m < modalities; ++m) {
      const T* present = parts.present_at(m, b, start);
      const T* absent = parts.absent + m * parts.absent_stride + start;
      A* difference = response + m * kTile;
      for (int64_t i = 0; i < count; ++i) {
        difference[i] = widen(present[i]) - widen(absent[i]);
        rest[i] += difference[i];
      }
    }
    for (int64_t i = 0; i < count; ++i) rest[i] = (joint[i] - rest[i]) / static_cast<A>(modalities);
    for (int m = 0; m < modalities; ++m) {
      A* own = response + m * kTile;
      for (int64_t i = 0; i < count; ++i) own[i] += rest[i];
    }
  }

  // In float64, and -inf for the classes that the sample cannot have.
  void exact_responses(int64_t b, int64_t start, int64_t count, A* response) const {
    A* joint = response + modalities * kTile;
    joint_logits(b, start, count, joint);
    for (int64_t i = 0; i < count; ++i) {
      bool impossible = false;
      const auto finite = [&](A number) {
        impossible |= number == -kInfinity<A>;
        return number == -kInfinity<A> ? 0.0 : static_cast<double>(number);
      };
      double difference[kMaxModalities];
      double rest = finite(joint[i]);
      for (int m = 0; m < modalities; ++m) {
        difference[m] = finite(widen(parts.present_at(m, b, start)[i]));
        difference[m] -= finite(widen(parts.absent[m * parts.absent_stride + start + i]));
        rest -= difference[m];
      }
      for (int m = 0; m < modalities; ++m) {
        response[m * kTile + i] = exact_response<A>(difference[m] + rest / modalities, impossible);
      }
    }
  }
};

// Stores the joint logits of a sample as they go by.
template <typename T>
struct JointRow {
  T* logits;

  AGM_HOST_DEVICE void add_tile(const accumulate_t<T>* wide, int64_t start, int64_t count, accumulate_t<T>) {
    for (int64_t i = 0; i < count; ++i) logits[start + i] = narrow<T>(wide[i]);
  }
};

template <typename T>
AGM_HOST_DEVICE void store_joint_body(const Additive<T>& parts, int64_t b) {
  accumulate_t<T> wide[kTile];
  JointRow<T> row{parts.logits + b * parts.classes};
  for (int64_t start = 0; start < parts.classes; start += kTile) {
    const int64_t count = std::min(kTile, parts.classes - start);
    AdditiveSource<T>{parts}.joint_logits(b, start, count, wide);
    row.add_tile(wide, start, count, 0);
  }
}

#define AGM_SCORE_ADDITIVE(T)                                                                  \
  AGM_CLONES void score_sample(const Additive<T>& parts, int64_t b, int64_t label, double cap, \
                               Sample& sample) {                                               \
    JointRow<T> row{parts.logits + b * parts.classes};                                         \
    const AdditiveSource<T> source{parts};                                                     \
    if (!score_sample_body<accumulate_t<T>>(source, b, label, cap, sample,                     \
                                            parts.joint == nullptr ? &row : nullptr))          \
      score_exactly<accumulate_t<T>>(source, b, label, cap, sample);                           \
  }                                                                                            \
  AGM_CLONES void store_joint(const Additive<T>& parts, int64_t b) { store_joint_body(parts, b); }
AGM_SCORE_ADDITIVE(float)
AGM_SCORE_ADDITIVE(double)
AGM_SCORE_ADDITIVE(Half)
AGM_SCORE_ADDITIVE(BFloat16)

template <typename T>
struct Scorer {
  const Additive<T>& parts;
  const int64_t* label;
  double cap;

  void score(int64_t b, Sample& sample) const { score_sample(parts, b, label[b], cap, sample); }
  void skip(int64_t b) const {
    if (parts.joint == nullptr) store_joint(parts, b);
  }
};

// Kernels read the inputs through plain pointers of one type.
void check_part(const Tensor& part, const Tensor& present, int64_t rows, const char* name) {
  STD_TORCH_CHECK(part.scalar_type() == present.scalar_type() && part.numel() == rows * present.size(2),
                  "Expected `", name, "` to have the dtype of `present` and ", rows, " rows of its classes.");
}

// (2, M + 1): the scales of p_m and of joint logits that were given; those of q_m and of b. Written around 1,
// so that unmodulated training is exact.
void write_additive_scales(const double* coefficients, int modalities, bool given_joint, double* scales) {
  double mean = 0;
  for (int m = 0; m < modalities; ++m) mean += (coefficients[m] - 1) / modalities;
  double* columns = scales + modalities + 1;
  for (int m = 0; m < modalities; ++m) {
    const double excess = coefficients[m] - 1;
    scales[m] = given_joint ? excess - mean : coefficients[m];
    columns[m] = mean - excess;
  }
  scales[modalities] = columns[modalities] = mean + 1;
}

std::tuple<Tensor, Tensor> modulate_additive(const Tensor& present, const Tensor& absent,
                                             const std::optional<Tensor>& bias,
                                             const std::optional<Tensor>& joint_logits, const Tensor& target,
                                             const Tensor& values, const Tensor& counts, double alpha,
                                             double max_gap, double floor, int64_t ignore_index,
                                             bool update) {
  const Tensor own_present = unit_class_stride(present);  // (M, B, C)
  const Tensor own_absent = unit_class_stride(absent);    // (M, C)
  const Tensor own_target = torch::stable::contiguous(target);
  const bool given = joint_logits.has_value();
  const std::optional<Tensor> own_bias = given ? std::nullopt : contiguous_or_none(bias);
  const std::optional<Tensor> own_joint =
      given ? std::optional(unit_class_stride(*joint_logits)) : std::nullopt;
  const int64_t batch = present.size(1), classes = present.size(2);
  STD_TORCH_CHECK(present.size(0) >= 2 && present.size(0) <= kMaxModalities,
                  "Expected `present` to have from 2 to ", kMaxModalities, " modalities, but got ",
                  present.size(0), ".");
  const int modalities = static_cast<int>(present.size(0));
  check_part(absent, present, modalities, "absent");
  if (own_bias) check_part(*own_bias, present, 1, "bias");
  if (own_joint) check_part(*own_joint, present, batch, "joint_logits");
  check_state(values, counts, modalities);
  Tensor logits = torch::stable::new_empty(present, {given ? 0 : batch, classes});
  const Labels labels{own_target.const_data_ptr<int64_t>(), batch, classes, ignore_index};
  Tally<kMaxModalities> tally;
  AGM_DISPATCH_FLOATING(present.scalar_type(), "agm::modulate_additive", [&] {
    const auto pointer = [](const std::optional<Tensor>& tensor) {
      return tensor ? static_cast<const scalar_t*>(tensor->const_data_ptr()) : nullptr;
    };
    const Additive<scalar_t> parts{pointer(own_present),
                                   pointer(own_absent),
                                   pointer(own_bias),
                                   pointer(own_joint),
                                   static_cast<scalar_t*>(logits.mutable_data_ptr()),
                                   own_present.stride(0),
                                   own_present.stride(1),
                                   own_absent.stride(0),
                                   given ? own_joint->stride(0) : 0,
                                   classes,
                                   modalities};
    const Scorer<scalar_t> scorer{parts, labels.of, largest_cost(floor)};
    tally = score_batch(labels, modalities, modalities * classes, scorer);
  });
  double coefficients[kMaxModalities];
  make_step(tally, {modalities, alpha, max_gap, update}, values.mutable_data_ptr<double>(),
            counts.mutable_data_ptr<int64_t>(), coefficients);
  Tensor scales = torch::stable::new_empty(values, {2, modalities + 1});  // float64
  write_additive_scales(coefficients, modalities, given, scales.mutable_data_ptr<double>());
  return {logits, scales};
}

// A gradient is worked on in blocks of samples and classes, whose columns are summed apart. They depend on
// its shape alone, so that the sums do not depend on the number of threads.
struct Blocks {
  static constexpr int64_t kClasses = 2048;
  static constexpr int64_t kElements = 8192;  // stay in the first-level cache while the rows go by

  int64_t batch, classes;
  int64_t block_classes = std::min(classes, kClasses);
  int64_t block_samples = std::clamp<int64_t>(kElements / block_classes, 16, 256);
  int64_t across = (classes + block_classes - 1) / block_classes;
  int64_t down = (batch + block_samples - 1) / block_samples;
};

template <typename T>
struct Gradient {
  const T* grad;         // (B, C)
  const double* scales;  // (rows,)
  T* out;                // (rows, B + 1, C), of which the last row is that of the columns
  int64_t rows, batch, classes;
};

// The block of samples `first` ... and classes `start` ... : c_m * g into every row, and its columns' sums.
template <typename T>
AGM_HOST_DEVICE void scale_block_body(const Gradient<T>& of, int64_t first, int64_t samples, int64_t start,
                                      int64_t count, accumulate_t<T>* columns) {
  using A = accumulate_t<T>;
  // Whole samples follow each other in memory.
  const bool whole = count == of.classes;
  const int64_t pieces = whole ? 1 : samples, length = whole ? samples * count : count;
  for (int64_t row = 0; row < of.rows; ++row) {
    const A scale = static_cast<A>(of.scales[row]);
    for (int64_t piece = 0; piece < pieces; ++piece) {
      const int64_t at = (first + piece) * of.classes + start;
      const T* grad = of.grad + at;
      T* out = of.out + row * (of.batch + 1) * of.classes + at;
      for (int64_t i = 0; i < length; ++i) out[i] = narrow<T>(scale_gradient<A>(scale, widen(grad[i])));
    }
  }
  std::fill_n(columns, count, A(0));
  for (int64_t b = first; b < first + samples; ++b) {
    const T* grad = of.grad + b * of.classes + start;
    for (int64_t i = 0; i < count; ++i) columns[i] += widen(grad[i]);
  }
}

#define AGM_SCALE_BLOCK(T)                                                                          \
  AGM_CLONES void scale_block(const Gradient<T>& of, int64_t first, int64_t samples, int64_t start, \
                              int64_t count, accumulate_t<T>* columns) {                            \
    scale_block_body(of, first, samples, start, count, columns);                                    \
  }
AGM_SCALE_BLOCK(float)
AGM_SCALE_BLOCK(double)
AGM_SCALE_BLOCK(Half)
AGM_SCALE_BLOCK(BFloat16)

// The rows of the gradient; returns the sums of its columns, (down, C): one row a block of samples.
template <typename T>
std::vector<accumulate_t<T>> scale_rows(const Gradient<T>& of, const Blocks& blocks) {
  std::vector<accumulate_t<T>> sums(static_cast<size_t>(blocks.down * of.classes));
  const int64_t work = of.rows * blocks.block_samples * blocks.block_classes;
  const int64_t grain = std::max<int64_t>(1, kGrain / work);
  torch::stable::parallel_for(0, blocks.down * blocks.across, grain, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t down = block / blocks.across;
      const int64_t first = down * blocks.block_samples;
      const int64_t start = block % blocks.across * blocks.block_classes;
      scale_block(of, first, std::min(blocks.block_samples, of.batch - first), start,
                  std::min(blocks.block_classes, of.classes - start),
                  sums.data() + down * of.classes + start);
    }
  });
  return sums;
}

// The columns' sums behind the rows that they are of: those of b, of which there are no rows, are the last.
template <typename T>
void scale_columns(const std::vector<accumulate_t<T>>& sums, const Blocks& blocks, const double* scales,
                   int64_t parts, int64_t last, T* out) {
  using A = accumulate_t<T>;
  torch::stable::parallel_for(0, blocks.classes, kGrain, [&](int64_t begin, int64_t end) {
    std::vector<double> total(static_cast<size_t>(end - begin));
    for (int64_t down = 0; down < blocks.down; ++down) {
      const A* from = sums.data() + down * blocks.classes + begin;
      for (int64_t i = 0; i < end - begin; ++i) total[static_cast<size_t>(i)] += static_cast<double>(from[i]);
    }
    for (int64_t part = 0; part < parts; ++part) {
      const A scale = static_cast<A>(scales[part]);
      const int64_t row = std::min(part * (blocks.batch + 1) + blocks.batch, last);
      for (int64_t i = 0; i < end - begin; ++i) {
        const A column = static_cast<A>(total[static_cast<size_t>(i)]);
        out[row * blocks.classes + begin + i] = narrow<T>(scale_gradient<A>(scale, column));
      }
    }
  });
}

Tensor modulate_additive_backward(const Tensor& grad, const Tensor& scales, bool given_joint) {
  const Tensor source = torch::stable::contiguous(grad);  // (B, C)
  const Tensor own_scales = torch::stable::contiguous(scales);
  const int64_t parts = own_scales.size(1), rows = given_joint ? parts : parts - 1;
  const int64_t batch = source.size(0), classes = source.size(1);
  const int64_t length = (parts - 1) * (batch + 1) + (given_joint ? batch : 0) + 1;
  Tensor out = torch::stable::new_empty(source, {length, classes});
  if (classes == 0) return out;
  AGM_DISPATCH_FLOATING(source.scalar_type(), "agm::modulate_additive_backward", [&] {
    const auto* scale = own_scales.const_data_ptr<double>();
    const Gradient<scalar_t> of{static_cast<const scalar_t*>(source.const_data_ptr()),
                                scale,
                                static_cast<scalar_t*>(out.mutable_data_ptr()),
                                rows,
                                batch,
                                classes};
    const Blocks blocks{batch, classes};
    scale_columns(scale_rows(of, blocks), blocks, scale + parts, parts, length - 1, of.out);
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(AGM_LIBRARY, CPU, m) {
  m.impl("modulate_additive", TORCH_BOX(&modulate_additive));
  m.impl("modulate_additive_backward", TORCH_BOX(&modulate_additive_backward));
}

}  // namespace
}  // namespace agm
