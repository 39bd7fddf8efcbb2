// The step and the mean loss, made by one block of what the samples added up to.
#pragma once

#include "../common/cross_entropy.h"
#include "../common/modulate.h"
#include "launch.h"

namespace agm {
namespace {

constexpr int kMaxModalities = 6;

using TallyOf = Tally<kMaxModalities>;

// Where the cross-entropy of the joint logits goes. All null where only scores are wanted.
template <typename A>
struct LossGoal {
  LossSettings<A> settings;
  A* loss;
  A* normalizer;  // (2, B)
  double* sums;   // (2,)
  LossTally* tallies;
};

struct State {
  double* values;
  int64_t* counts;
  double* scales;
};

// Adds up what the threads of a block hold, in an order that does not depend on their timing.
template <typename Sum>
__device__ void add_up(Sum (&shared)[kThreads], const Sum& own) {
  const int thread = threadIdx.x;
  shared[thread] = own;
  for (int distance = kThreads / 2; distance > 0; distance /= 2) {
    __syncthreads();
    if (thread < distance) shared[thread].add(shared[thread + distance]);
  }
  __syncthreads();
}

// Makes the step from the threads' tallies.
__device__ void finish(const TallyOf& tally, const Settings& settings, const State& state) {
  __shared__ TallyOf shared[kThreads];
  __shared__ double scores[kMaxModalities], coefficients[kMaxModalities];
  const int thread = threadIdx.x;
  add_up(shared, tally);
  const int modalities = settings.modalities;
  if (thread < modalities) scores[thread] = shared[0].cost[thread] / static_cast<double>(shared[0].samples);
  __syncthreads();
  Modulation own{};
  if (thread < modalities) own = modulation(scores, state.values, thread, settings);
  const bool usable = __syncthreads_and(thread >= modalities || own.finite) != 0;
  const int64_t step = state.counts[modalities + kStep] + 1;
  if (thread < modalities) coefficients[thread] = usable ? own.coefficient : 1;
  __syncthreads();
  for (unsigned subset = thread + 1; subset < 1u << modalities; subset += kThreads) {
    state.scales[subset - 1] = subset_scale(coefficients, modalities, subset);
  }
  if (!settings.update) return;
  if (thread < modalities) write_values(own, thread, usable, step, settings, state.values);
  if (thread == 0) write_counts(shared[0], usable, settings, state.counts);
}

// Makes the loss from the threads' tallies.
template <typename A>
__device__ void finish_loss(LossTally tally, LossGoal<A> goal) {
  __shared__ LossTally shared[kThreads];
  LossTally weights;  // the class weights go into a field that is added up
  if (goal.settings.label_smoothing > 0) {
    for (int64_t c = threadIdx.x; c < goal.settings.classes; c += kThreads) {
      weights.weight += static_cast<double>(goal.settings.weight_in(c));
    }
  }
  add_up(shared, weights);
  goal.settings.all_weights = shared[0].weight;
  __syncthreads();  // it has been read
  add_up(shared, tally);
  if (threadIdx.x != 0) return;
  *goal.loss = static_cast<A>(shared[0].mean(goal.settings));
  goal.sums[0] = shared[0].weight;
  goal.sums[1] = goal.settings.all_weights;
}

}  // namespace
}  // namespace agm
