// Scores of the mono-modal responses, the step that follows from them, and the cross-entropy of the joint
// logits.
#pragma once

#include "../common/modulate.h"

#include <algorithm>

#include "../common/cross_entropy.h"
#include "launch.h"

namespace agm {
namespace {

using torch::stable::Tensor;

constexpr int kMaxModalities = 6;
constexpr int64_t kEnoughBlocks = 512;  // fills any GPU of today a few times
constexpr int64_t kMaxBlocks = 1024;    // of the first kernel; the second one reads what each of them found
constexpr int64_t kWideClasses = 1024;  // from here on a whole block works on one sample

template <typename T, int Width>
struct alignas(sizeof(T) * Width) Pack {
  T value[Width];
};

// Classes that a thread loads from each subset at once: 16 bytes, or fewer where many subsets keep the memory
// busy anyway and would not leave registers for more.
template <typename T, int M>
constexpr int kWidth = sizeof(T) == 8 || M > 4 ? 1 : (M == 4 ? 8 : 16) / static_cast<int>(sizeof(T));

// Blocks that share a multiprocessor at least. Left to itself the compiler spills registers to fit more.
template <typename T>
constexpr int kResident = sizeof(T) == 8 ? 1 : 2;

template <typename T>
struct MaskedLogits {
  const T* data;
  int64_t batch, classes;
  int64_t row_stride;    // from subset to subset
  int64_t batch_stride;  // from sample to sample
};

struct Target {
  const int64_t* label;
  int64_t ignore_index;
};

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

// The classes of one sample that a group of threads looked at.
template <typename A, int M, bool Loss>
struct Seen {
  Softmax<A> softmax[M];
  unsigned beaten = 0;  // bit m: another class than the label is the largest; bit M: of the joint logits
  Softmax<A> joint;     // these two with Loss only
  A spread = 0;

  __device__ void merge(const Seen& other) {
#pragma unroll
    for (int m = 0; m < M; ++m) softmax[m].merge(other.softmax[m]);
    beaten |= other.beaten;
    if constexpr (Loss) {
      joint.merge(other.joint);
      spread += other.spread;
    }
  }
};

template <typename A>
__device__ Softmax<A> shuffle(const Softmax<A>& softmax, int distance) {
  return {__shfl_xor_sync(~0u, softmax.largest, distance), __shfl_xor_sync(~0u, softmax.sum, distance)};
}

template <typename A, int M, bool Loss>
__device__ void merge_warp(Seen<A, M, Loss>& seen) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    Seen<A, M, Loss> other;
#pragma unroll
    for (int m = 0; m < M; ++m) other.softmax[m] = shuffle(seen.softmax[m], distance);
    other.beaten = __shfl_xor_sync(~0u, seen.beaten, distance);
    if constexpr (Loss) {
      other.joint = shuffle(seen.joint, distance);
      other.spread = __shfl_xor_sync(~0u, seen.spread, distance);
    }
    seen.merge(other);
  }
}

// Responses of Width classes from `logits` on, and the joint logits of the same.
template <typename T, int M, int Width, typename A = accumulate_t<T>>
__device__ __forceinline__ void load_responses(const T* __restrict__ logits, int64_t row_stride,
                                               A (&response)[M][Width], A (&joint)[Width]) {
  constexpr int kRows = (1 << M) - 1;
#pragma unroll
  for (int m = 0; m < M; ++m) {
#pragma unroll
    for (int i = 0; i < Width; ++i) response[m][i] = A(0);
  }
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    const auto pack = *reinterpret_cast<const Pack<T, Width>*>(logits + row * row_stride);
    const int size = subset_size(row + 1);
    const A inside = static_cast<A>(weight_inside(M, size));
    const A outside = static_cast<A>(weight_outside(M, size));
#pragma unroll
    for (int i = 0; i < Width; ++i) {
      const A logit = static_cast<A>(pack.value[i]);
#pragma unroll
      for (int m = 0; m < M; ++m) {
        response[m][i] = multiply_add((row + 1) >> m & 1 ? inside : outside, logit, response[m][i]);
      }
      if (row == kRows - 1) joint[i] = logit;
    }
  }
}

// Takes Width more numbers into a softmax.
template <typename A, int Width>
__device__ __forceinline__ void add_numbers(Softmax<A>& softmax, const A (&numbers)[Width]) {
  A largest = softmax.largest;
#pragma unroll
  for (int i = 0; i < Width; ++i) largest = numbers[i] > largest ? numbers[i] : largest;
  const A shift = Softmax<A>::shift(largest);
  softmax.sum *= exponential(softmax.largest - shift);
#pragma unroll
  for (int i = 0; i < Width; ++i) softmax.sum += exponential(numbers[i] - shift);
  softmax.largest = largest;
}

// Classes begin, begin + lanes * Width ... of one sample, Width at a time; `end` is a multiple of Width.
template <typename T, int M, int Width, bool Loss, typename A = accumulate_t<T>>
__device__ __forceinline__ Seen<A, M, Loss> look(const T* __restrict__ logits, int64_t row_stride,
                                                 int64_t begin, int64_t end, int64_t stride, int64_t label,
                                                 const A (&target)[M + 1], const LossSettings<A>& loss) {
  Seen<A, M, Loss> seen;
  for (int64_t at = begin; at < end; at += stride) {
    A response[M][Width], joint[Width];
    load_responses<T, M, Width>(logits + at, row_stride, response, joint);
#pragma unroll
    for (int m = 0; m < M; ++m) {
      bool beaten = false;
#pragma unroll
      for (int i = 0; i < Width; ++i) beaten |= beats(response[m][i], at + i, target[m], label);
      add_numbers(seen.softmax[m], response[m]);
      seen.beaten |= static_cast<unsigned>(beaten) << m;
    }
    bool beaten = false;
#pragma unroll
    for (int i = 0; i < Width; ++i) beaten |= beats(joint[i], at + i, target[M], label);
    seen.beaten |= static_cast<unsigned>(beaten) << M;
    if constexpr (Loss) {
      add_numbers(seen.joint, joint);
      if (loss.label_smoothing > 0) {
#pragma unroll
        for (int i = 0; i < Width; ++i) seen.spread += loss.weight_in(at + i) * (target[M] - joint[i]);
      }
    }
  }
  return seen;
}

template <typename T, int M>
__device__ bool read_target(const MaskedLogits<T>& masked, const T* logits, int64_t label,
                            accumulate_t<T> (&target)[M + 1]) {
  if (label < 0 || label >= masked.classes) return false;
  accumulate_t<T> response[M][1], joint[1];
  load_responses<T, M, 1>(logits + label, masked.row_stride, response, joint);
#pragma unroll
  for (int m = 0; m < M; ++m) target[m] = response[m][0];
  target[M] = joint[0];
  return true;
}

// Leaves the normalizer of a sample and adds its loss; `merged` is its joint softmax over all classes.
template <typename A>
__device__ void add_loss(const LossGoal<A>& goal, int64_t b, int64_t batch, int64_t label,
                         const Softmax<A>& merged, A target, double spread, LossTally& tally) {
  goal.normalizer[b] = merged.largest;
  goal.normalizer[batch + b] = std::log(merged.sum);
  const auto cost = static_cast<double>(merged.cost(target, kInfinity<A>));
  tally.add_sample(goal.settings.weight_of(label), cost, spread);
}

// The same for a sample without a class; `ignored`: as it should be.
template <typename A>
__device__ void skip_loss(const LossGoal<A>& goal, int64_t b, int64_t batch, bool ignored, LossTally& tally) {
  goal.normalizer[b] = A(0);
  goal.normalizer[batch + b] = A(0);
  if (!ignored) tally.add_unknown();
}

// Few classes: one warp a sample; each block leaves what its samples add up to.
template <typename T, int M, int Width, bool Loss>
__global__ void __launch_bounds__(kThreads, kResident<T>)
    score_by_warps(MaskedLogits<T> masked, Target target, double cap, LossGoal<accumulate_t<T>> goal,
                   TallyOf* __restrict__ tallies) {
  using A = accumulate_t<T>;
  __shared__ TallyOf shared[kWarps];  // not in registers, which the logits need
  __shared__ LossTally losses[kWarps];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  TallyOf& tally = shared[warp];
  if (lane == 0) tally = TallyOf{};
  if (Loss && lane == 0) losses[warp] = LossTally{};
  for (int64_t b = static_cast<int64_t>(blockIdx.x) * kWarps + warp; b < masked.batch;
       b += static_cast<int64_t>(gridDim.x) * kWarps) {
    const int64_t label = target.label[b];
    const bool ignored = label == target.ignore_index;
    const T* logits = masked.data + b * masked.batch_stride;
    A own[M + 1];
    if (ignored || !read_target<T, M>(masked, logits, label, own)) {
      if (lane == 0 && !ignored) tally.add_unknown();
      if (Loss && lane == 0) skip_loss(goal, b, masked.batch, ignored, losses[warp]);
      continue;
    }
    auto seen = look<T, M, Width, Loss>(logits, masked.row_stride, lane * Width, masked.classes,
                                        kWarp * Width, label, own, goal.settings);
    merge_warp(seen);
    if (lane != 0) continue;
    if constexpr (Loss) {
      add_loss(goal, b, masked.batch, label, seen.joint, own[M], static_cast<double>(seen.spread),
               losses[warp]);
    }
#pragma unroll
    for (int m = 0; m < M; ++m) {
      tally.cost[m] += static_cast<double>(seen.softmax[m].cost(own[m], static_cast<A>(cap)));
      tally.hits[m] += (seen.beaten >> m & 1) == 0;
    }
    tally.hits[kMaxModalities] += (seen.beaten >> M & 1) == 0;
    tally.samples += 1;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < kWarps; ++w) tally.add(shared[w]);
  tallies[blockIdx.x] = tally;
  if constexpr (Loss) {
    for (int w = 1; w < kWarps; ++w) losses[0].add(losses[w]);
    goal.tallies[blockIdx.x] = losses[0];
  }
}

// What a block knows about its share of one sample's classes.
template <typename A>
struct Found {
  Softmax<A> softmax[kMaxModalities];
  A target[kMaxModalities];
  bool beaten[kMaxModalities + 1];
  Softmax<A> joint;  // from here on with a loss only
  A joint_target;
  A spread;
};

// Many classes: blockIdx.x shares out the samples and blockIdx.y the classes of each.
template <typename T, int M, int Width, bool Loss>
__global__ void __launch_bounds__(kThreads, kResident<T>)
    score_by_blocks(MaskedLogits<T> masked, Target target, LossSettings<accumulate_t<T>> loss,
                    Found<accumulate_t<T>>* __restrict__ found) {
  using A = accumulate_t<T>;
  __shared__ Seen<A, M, Loss> shared[kWarps];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t share = (masked.classes / Width + gridDim.y - 1) / gridDim.y * Width;
  const int64_t begin = blockIdx.y * share;
  const int64_t end = begin + share < masked.classes ? begin + share : masked.classes;
  for (int64_t b = blockIdx.x; b < masked.batch; b += gridDim.x) {
    const int64_t label = target.label[b];
    const T* logits = masked.data + b * masked.batch_stride;
    A own[M + 1];
    if (label == target.ignore_index || !read_target<T, M>(masked, logits, label, own)) continue;
    auto seen = look<T, M, Width, Loss>(logits, masked.row_stride, begin + threadIdx.x * Width, end,
                                        kThreads * Width, label, own, loss);
    merge_warp(seen);
    __syncthreads();  // the last sample's findings have been read
    if (lane == 0) shared[warp] = seen;
    __syncthreads();
    if (threadIdx.x != 0) continue;
    for (int w = 1; w < kWarps; ++w) seen.merge(shared[w]);
    Found<A>& result = found[b * gridDim.y + blockIdx.y];
#pragma unroll
    for (int m = 0; m < M; ++m) {
      result.softmax[m] = seen.softmax[m];
      result.target[m] = own[m];
      result.beaten[m] = (seen.beaten >> m & 1) != 0;
    }
    result.beaten[kMaxModalities] = (seen.beaten >> M & 1) != 0;
    if constexpr (Loss) {
      result.joint = seen.joint;
      result.joint_target = own[M];
      result.spread = seen.spread;
    }
  }
}

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

template <typename A, bool Loss>
__global__ void __launch_bounds__(kThreads) finish_warps(const TallyOf* __restrict__ tallies, int64_t count,
                                                         LossGoal<A> goal, Settings settings, State state) {
  TallyOf tally;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) tally.add(tallies[i]);
  finish(tally, settings, state);
  if constexpr (Loss) {
    LossTally loss;
    for (int64_t i = threadIdx.x; i < count; i += kThreads) loss.add(goal.tallies[i]);
    finish_loss(loss, goal);
  }
}

template <typename A, bool Loss>
__global__ void __launch_bounds__(kThreads)
    finish_blocks(const Found<A>* __restrict__ found, int64_t shares, int64_t batch, int64_t classes,
                  Target target, double cap, LossGoal<A> goal, Settings settings, State state) {
  TallyOf tally;
  LossTally loss;
  for (int64_t b = threadIdx.x; b < batch; b += kThreads) {
    const int64_t label = target.label[b];
    const bool ignored = label == target.ignore_index;
    if (ignored || label < 0 || label >= classes) {
      if (!ignored) tally.add_unknown();
      if constexpr (Loss) skip_loss(goal, b, batch, ignored, loss);
      continue;
    }
    const Found<A>* own = found + b * shares;
#pragma unroll
    for (int m = 0; m < kMaxModalities; ++m) {
      if (m >= settings.modalities) continue;
      Softmax<A> softmax;
      bool beaten = false;
      for (int64_t share = 0; share < shares; ++share) {
        softmax.merge(own[share].softmax[m]);
        beaten |= own[share].beaten[m];
      }
      tally.cost[m] += static_cast<double>(softmax.cost(own->target[m], static_cast<A>(cap)));
      tally.hits[m] += !beaten;
    }
    bool beaten = false;
    for (int64_t share = 0; share < shares; ++share) beaten |= own[share].beaten[kMaxModalities];
    tally.hits[kMaxModalities] += !beaten;
    tally.samples += 1;
    if constexpr (Loss) {
      Softmax<A> joint;
      double spread = 0;
      for (int64_t share = 0; share < shares; ++share) {
        joint.merge(own[share].joint);
        spread += static_cast<double>(own[share].spread);
      }
      add_loss(goal, b, batch, label, joint, own->joint_target, spread, loss);
    }
  }
  finish(tally, settings, state);
  if constexpr (Loss) finish_loss(loss, goal);
}

// Of a backward that writes a gradient of so many blocks into its rows. A short gradient leaves the GPU idle
// unless its rows are shared out as well.
inline dim3 grid_of_rows(int64_t blocks, int64_t rows) {
  const int64_t shares = std::max<int64_t>(1, std::min(rows, kEnoughBlocks / blocks));
  return dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(shares));
}

Tensor bytes_like(const Tensor& tensor, size_t bytes) {
  return torch::stable::new_empty(tensor, {static_cast<int64_t>(bytes)}, torch::headeronly::ScalarType::Byte);
}

// One step, with the loss where it is wanted: two launches.
template <typename T, int M, bool Loss, int Width = kWidth<T, M>, typename A = accumulate_t<T>>
void launch_step(const Tensor& logits, const MaskedLogits<T>& masked, const Target& target, double cap,
                 LossGoal<A> goal, const Settings& settings, const State& state, cudaStream_t stream) {
  if constexpr (Width > 1) {
    const auto offsets = masked.classes | masked.row_stride | masked.batch_stride;
    if (offsets % Width != 0 || reinterpret_cast<uintptr_t>(masked.data) % (sizeof(T) * Width) != 0) {
      return launch_step<T, M, Loss, 1>(logits, masked, target, cap, goal, settings, state, stream);
    }
  }
  if (masked.classes < kWideClasses) {
    const int64_t blocks = std::min((masked.batch + kWarps - 1) / kWarps, kMaxBlocks);
    const Tensor space = bytes_like(logits, blocks * (sizeof(TallyOf) + sizeof(LossTally)));
    auto* tallies = static_cast<TallyOf*>(space.mutable_data_ptr());
    goal.tallies = reinterpret_cast<LossTally*>(tallies + blocks);
    if (blocks > 0) {
      launch(score_by_warps<T, M, Width, Loss>, blocks, kThreads, stream, masked, target, cap, goal, tallies);
    }
    launch(finish_warps<A, Loss>, 1, kThreads, stream, tallies, blocks, goal, settings, state);
    return;
  }
  const int64_t blocks = std::min(masked.batch, kMaxBlocks);
  const int64_t most = masked.classes / (kThreads * Width * 2);  // two rounds of a block at least
  const int64_t shares = blocks == 0 ? 1 : std::max<int64_t>(1, std::min(most, kEnoughBlocks / blocks));
  const Tensor space = bytes_like(logits, masked.batch * shares * sizeof(Found<A>));
  auto* found = static_cast<Found<A>*>(space.mutable_data_ptr());
  if (blocks > 0) {
    const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(shares));
    launch(score_by_blocks<T, M, Width, Loss>, grid, kThreads, stream, masked, target, goal.settings, found);
  }
  launch(finish_blocks<A, Loss>, 1, kThreads, stream, found, shares, masked.batch, masked.classes, target,
         cap, goal, settings, state);
}

// The tensors of a step as the kernels take them, and the launch. `goal(scalar)` gives the loss's.
template <bool Loss, typename Goal>
Tensor run_step(const Tensor& masked_logits, const Tensor& target, const Tensor& values, const Tensor& counts,
                double floor, int64_t ignore_index, double alpha, double max_gap, bool update,
                const Goal& goal) {
  const Tensor logits = unit_class_stride(masked_logits);   // (2**M - 1, B, C)
  const Tensor labels = torch::stable::contiguous(target);  // (B,) int64
  const int modalities = modalities_of(logits.size(0), kMaxModalities);
  check_state(values, counts, modalities);
  const Settings settings{modalities, alpha, max_gap, update};
  const Target labelled{labels.const_data_ptr<int64_t>(), ignore_index};
  Tensor scales = torch::stable::new_empty(values, {logits.size(0)});  // float64
  const State state{values.mutable_data_ptr<double>(), counts.mutable_data_ptr<int64_t>(),
                    scales.mutable_data_ptr<double>()};
  AGM_DISPATCH_FLOATING(logits.scalar_type(), "agm::modulate", [&] {
    const MaskedLogits<scalar_t> masked{static_cast<const scalar_t*>(logits.const_data_ptr()), logits.size(1),
                                        logits.size(2), logits.stride(0), logits.stride(1)};
    const LossGoal<accumulate_t<scalar_t>> own = goal(accumulate_t<scalar_t>{});
    on_device_of(logits, [&](cudaStream_t stream) {
      const auto launch_for = [&](auto m) {
        launch_step<scalar_t, decltype(m)::value, Loss>(logits, masked, labelled, largest_cost(floor), own,
                                                        settings, state, stream);
      };
      switch (modalities) {
        case 2:
          return launch_for(std::integral_constant<int, 2>{});
        case 3:
          return launch_for(std::integral_constant<int, 3>{});
        case 4:
          return launch_for(std::integral_constant<int, 4>{});
        case 5:
          return launch_for(std::integral_constant<int, 5>{});
        default:
          return launch_for(std::integral_constant<int, 6>{});
      }
    });
  });
  return scales;
}

}  // namespace
}  // namespace agm
