// Scores of the mono-modal responses, and the step that follows from them.
#pragma once

#include <algorithm>
#include <vector>

#include "../common/cross_entropy.h"
#include "../common/modulate.h"
#include "../common/tensor.h"
#include "vector.h"

namespace agm {

constexpr int kMaxModalities = 16;
constexpr int64_t kTile = 128;     // classes; the responses of a tile stay in the first-level cache
constexpr int64_t kGrain = 32768;  // elements of work under which a second thread costs more than it brings

// What one sample contributes.
struct Sample {
  double cost[kMaxModalities];
  bool hit[kMaxModalities + 1];
};

// Numbers beyond these may be sums that overflowed on the way.
template <typename A>
constexpr A kLarge = std::numeric_limits<A>::max() / 4;

// `lowest` is lowered to the smallest number of the tile.
template <typename A>
AGM_HOST_DEVICE void add_tile(Softmax<A>& softmax, const A* logits, int64_t count, A& lowest) {
  A largest = softmax.largest, smallest = lowest;
#pragma omp simd reduction(max : largest) reduction(min : smallest)
  for (int64_t i = 0; i < count; ++i) {
    largest = logits[i] > largest ? logits[i] : largest;
    smallest = logits[i] < smallest ? logits[i] : smallest;
  }
  lowest = smallest;
  const A shift = Softmax<A>::shift(largest);
  A sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < count; ++i) sum += exp_nonpositive(logits[i] - shift);
  softmax.sum = softmax.sum * exponential(softmax.largest - shift) + sum;
  softmax.largest = largest;
}

// Whether a class of the tile, which begins at class `start`, keeps argmax from being `label`.
template <typename A>
AGM_HOST_DEVICE bool tile_beats(const A* logits, int64_t start, int64_t count, A target, int64_t label) {
  const int64_t before = std::clamp<int64_t>(label - start, 0, count);
  const int64_t after = std::clamp<int64_t>(label + 1 - start, 0, count);
  const bool number = target == target;
  int beaten = 0;
  for (int64_t i = 0; i < before; ++i) beaten |= number ? !(logits[i] < target) : logits[i] != logits[i];
  for (int64_t i = after; i < count; ++i) beaten |= number & !(logits[i] <= target);
  return beaten != 0;
}

// The cross-entropy of the joint logits, as far as their classes have been seen.
template <typename A>
struct JointLoss {
  const A* weight;  // of the classes; null: all 1
  bool smoothing;
  Softmax<A> softmax;
  double spread = 0;  // sum of w_c (z_target - z_c) in scaled differences, for label smoothing

  AGM_HOST_DEVICE void add_tile(const A* logits, int64_t start, int64_t count, A target) {
    A lowest = 0;  // nobody asks
    agm::add_tile(softmax, logits, count, lowest);
    if (!smoothing) return;
    A sum = 0;
    if (weight == nullptr) {
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < count; ++i) sum += scaled_difference(target, logits[i]);
    } else {
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < count; ++i) {
        sum += weight[start + i] * scaled_difference(target, logits[i]);
      }
    }
    spread += static_cast<double>(sum);
  }
};

// `source.responses(b, start, count, response)` gives the responses of some classes of sample b, and behind
// them its joint logits. Each class is asked for once, and the label once more. `joint->add_tile` is given
// the joint logits, each class once. Returns whether the scores stand: not where a response is no number, or
// too large to tell whether it overflowed. Then `score_exactly` is asked.
template <typename A, typename Source, typename Joint = JointLoss<A>>
AGM_HOST_DEVICE bool score_sample_body(const Source& source, int64_t b, int64_t label, double cap,
                                       Sample& sample, Joint* joint = nullptr) {
  const int modalities = source.modalities;
  A response[(kMaxModalities + 1) * kTile];

  A target[kMaxModalities + 1];
  source.responses(b, label, 1, response);
  for (int m = 0; m <= modalities; ++m) target[m] = response[m * kTile];

  Softmax<A> softmax[kMaxModalities];
  bool beaten[kMaxModalities + 1] = {};
  A lowest = 0;
  for (int64_t start = 0; start < source.classes; start += kTile) {
    const int64_t count = std::min(kTile, source.classes - start);
    source.responses(b, start, count, response);
    for (int m = 0; m <= modalities; ++m) {
      const A* tile = response + m * kTile;
      if (m < modalities) add_tile(softmax[m], tile, count, lowest);
      beaten[m] |= tile_beats(tile, start, count, target[m], label);
    }
    if (joint != nullptr) joint->add_tile(response + modalities * kTile, start, count, target[modalities]);
  }
  for (int m = 0; m < modalities; ++m) sample.cost[m] = softmax[m].cost(target[m], static_cast<A>(cap));
  for (int m = 0; m <= modalities; ++m) sample.hit[m] = !beaten[m];
  bool plain = lowest > -kLarge<A>;
  for (int m = 0; m < modalities; ++m) {
    plain &= softmax[m].largest < kLarge<A> && softmax[m].sum == softmax[m].sum;
  }
  return plain;
}

// A response computed in float64: -inf where the sample cannot have the class and the other logits are
// finite.
template <typename A>
A exact_response(double response, bool impossible) {
  return impossible && std::isfinite(response) ? -kInfinity<A> : static_cast<A>(response);
}

template <typename A, typename Source>
struct ExactSource {
  const Source& source;
  int64_t classes = source.classes;
  int modalities = source.modalities;

  void responses(int64_t b, int64_t start, int64_t count, A* response) const {
    source.exact_responses(b, start, count, response);
  }
};

// The scores of a sample once more, with responses that are computed in float64: rare, and slow.
template <typename A, typename Source>
#if defined(__GNUC__)
__attribute__((noinline))
#endif
void score_exactly(const Source& source, int64_t b, int64_t label, double cap, Sample& sample) {
  score_sample_body<A>(ExactSource<A, Source>{source}, b, label, cap, sample);
}

// Which class each sample has.
struct Labels {
  const int64_t* of;
  int64_t batch, classes, ignore_index;

  bool ignored(int64_t b) const { return of[b] == ignore_index; }
  bool known(int64_t b) const { return of[b] >= 0 && of[b] < classes; }
};

// Calls `scorer.score(b, sample)` for the samples with a class, `scorer.skip(b)` for the others.
// `work`: elements that a sample takes.
template <typename Scorer>
Tally<kMaxModalities> score_batch(const Labels& labels, int modalities, int64_t work, const Scorer& scorer) {
  std::vector<Sample> samples(static_cast<size_t>(labels.batch));
  const int64_t grain = std::max<int64_t>(1, kGrain / (work + 1));
  torch::stable::parallel_for(0, labels.batch, grain, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      Sample& sample = samples[static_cast<size_t>(b)];
      if (!labels.ignored(b) && labels.known(b)) {
        scorer.score(b, sample);
      } else {
        scorer.skip(b);
        std::fill_n(sample.cost, kMaxModalities, kNotANumber<double>);
        std::fill_n(sample.hit, kMaxModalities + 1, false);
      }
    }
  });
  // In order, so that the result does not depend on the number of threads.
  Tally<kMaxModalities> tally;
  for (int64_t b = 0; b < labels.batch; ++b) {
    if (labels.ignored(b)) continue;
    const Sample& sample = samples[static_cast<size_t>(b)];
    for (int m = 0; m < modalities; ++m) {
      tally.cost[m] += sample.cost[m];
      tally.hits[m] += sample.hit[m];
    }
    tally.hits[kMaxModalities] += sample.hit[modalities];
    tally.samples += 1;
  }
  return tally;
}

// Makes the step: writes the state if wanted, and the coefficients.
inline void make_step(const Tally<kMaxModalities>& tally, const Settings& settings, double* values,
                      int64_t* counts, double* coefficients) {
  const int modalities = settings.modalities;
  double scores[kMaxModalities];
  for (int m = 0; m < modalities; ++m) scores[m] = tally.cost[m] / static_cast<double>(tally.samples);
  Modulation share[kMaxModalities];
  bool usable = true;
  for (int m = 0; m < modalities; ++m) {
    share[m] = modulation(scores, values, m, settings);
    usable &= share[m].finite;
  }
  for (int m = 0; m < modalities; ++m) coefficients[m] = usable ? share[m].coefficient : 1;
  if (!settings.update) return;
  const int64_t step = counts[modalities + kStep] + 1;
  for (int m = 0; m < modalities; ++m) write_values(share[m], m, usable, step, settings, values);
  write_counts(tally, usable, settings, counts);
}

}  // namespace agm
