// Scores of the mono-modal responses, the step that follows from them, and the cross-entropy of the joint
// logits.
#pragma once

#include "../common/tensor.h"  // first: it names the version of torch that the others are read for

#include <algorithm>

#include "finish.cuh"
#include "look.cuh"

namespace agm {
namespace {

using torch::stable::Tensor;

constexpr int64_t kWideClasses = 1024;  // from here on a whole block works on one sample
constexpr int64_t kManySamples = 4096;  // from here on few threads work on one of few classes
constexpr int kFewestLanes = 8;

// Blocks that share a multiprocessor at least. Left to itself the compiler spills registers to fit more.
template <typename T, int M>
constexpr int kResident = sizeof(T) == 8 ? 1 : (M <= 5 ? 3 : 2);

struct Target {
  const int64_t* label;
  int64_t ignore_index;
};

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

// Adds a sample of which all classes have been seen. `target`: its label's responses and joint logit.
template <typename A, int M, bool Loss>
__device__ __forceinline__ void add_sample(const Seen<A, M, Loss>& seen, const A (&target)[M + 1], A cap,
                                           TallyOf& tally) {
#pragma unroll
  for (int m = 0; m < M; ++m) {
    tally.cost[m] += static_cast<double>(seen.softmax[m].cost(target[m] * kUnscale, cap));
    tally.hits[m] += (seen.beaten >> m & 1) == 0;
  }
  tally.hits[kMaxModalities] += (seen.beaten >> M & 1) == 0;
  tally.samples += 1;
}

// Few classes: `lanes` threads a sample, 8 to 32; each block leaves what its samples add up to.
template <typename T, int M, int Width, bool Loss, bool Peel>
__global__ void __launch_bounds__(kThreads, kResident<T, M>)
    score_by_warps(MaskedLogits<T> masked, Target target, double cap, LossGoal<accumulate_t<T>> goal,
                   int lanes, TallyOf* __restrict__ tallies) {
  using A = accumulate_t<T>;
  __shared__ TallyOf shared[kThreads / kFewestLanes];  // not in registers, which the logits need
  __shared__ LossTally losses[kThreads / kFewestLanes];
  const int lane = static_cast<int>(threadIdx.x) & (lanes - 1);
  const int group = static_cast<int>(threadIdx.x) / lanes, groups = kThreads / lanes;
  TallyOf& tally = shared[group];
  if (lane == 0) tally = TallyOf{};
  if (Loss && lane == 0) losses[group] = LossTally{};
  for (int64_t b = static_cast<int64_t>(blockIdx.x) * groups + group; b < masked.batch;
       b += static_cast<int64_t>(gridDim.x) * groups) {
    const int64_t label = target.label[b];
    const bool ignored = label == target.ignore_index;
    const T* logits = masked.data + b * masked.batch_stride;
    A own[M + 1];
    if (ignored || !read_target<T, M>(masked, logits, label, own)) {
      if (lane == 0 && !ignored) tally.add_unknown();
      if (Loss && lane == 0) skip_loss(goal, b, masked.batch, ignored, losses[group]);
      continue;
    }
    auto seen = look<T, M, Width, Peel, Loss>(logits, masked.row_stride,
                                              classes_of<Peel, Width, int>(masked, logits, 0, 1), lane, lanes,
                                              static_cast<int>(label), own, goal.settings);
    // The groups of a warp go their own ways.
    merge_lanes(seen, lanes, (~0u >> (kWarp - lanes)) << (threadIdx.x & (kWarp - lanes)));
    if (lane != 0) continue;
    if constexpr (Loss) {
      add_loss(goal, b, masked.batch, label, seen.joint, own[M], static_cast<double>(seen.spread),
               losses[group]);
    }
    add_sample(seen, own, static_cast<A>(cap), tally);
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int g = 1; g < groups; ++g) tally.add(shared[g]);
  tallies[blockIdx.x] = tally;
  if constexpr (Loss) {
    for (int g = 1; g < groups; ++g) losses[0].add(losses[g]);
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

// Many classes: blockIdx.x shares out the samples and blockIdx.y the classes of each. With one share a block
// leaves what its samples add up to, as above; with several, what it found of each.
template <typename T, int M, int Width, bool Loss, bool Peel>
__global__ void __launch_bounds__(kThreads, kResident<T, M>)
    score_by_blocks(MaskedLogits<T> masked, Target target, double cap, LossGoal<accumulate_t<T>> goal,
                    Found<accumulate_t<T>>* __restrict__ found, TallyOf* __restrict__ tallies) {
  using A = accumulate_t<T>;
  __shared__ Seen<A, M, Loss> shared[kWarps];
  __shared__ TallyOf tally;  // of thread 0, as its loss is
  __shared__ LossTally losses;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  if (threadIdx.x == 0) tally = TallyOf{};
  if (Loss && threadIdx.x == 0) losses = LossTally{};
  for (int64_t b = blockIdx.x; b < masked.batch; b += gridDim.x) {
    const int64_t label = target.label[b];
    const bool ignored = label == target.ignore_index;
    const T* logits = masked.data + b * masked.batch_stride;
    A own[M + 1];
    if (ignored || !read_target<T, M>(masked, logits, label, own)) {
      if (gridDim.y > 1 || threadIdx.x != 0) continue;
      if (!ignored) tally.add_unknown();
      if constexpr (Loss) skip_loss(goal, b, masked.batch, ignored, losses);
      continue;
    }
    auto seen = look<T, M, Width, Peel, Loss>(
        logits, masked.row_stride, classes_of<Peel, Width, int64_t>(masked, logits, blockIdx.y, gridDim.y),
        static_cast<int64_t>(threadIdx.x), int64_t{kThreads}, label, own, goal.settings);
    merge_lanes(seen, kWarp, ~0u);
    __syncthreads();  // the last sample's findings have been read
    if (lane == 0) shared[warp] = seen;
    __syncthreads();
    if (threadIdx.x != 0) continue;
    for (int w = 1; w < kWarps; ++w) seen.merge(shared[w]);
    if (gridDim.y == 1) {
      add_sample(seen, own, static_cast<A>(cap), tally);
      if constexpr (Loss) {
        add_loss(goal, b, masked.batch, label, seen.joint, own[M], static_cast<double>(seen.spread), losses);
      }
      continue;
    }
    Found<A>& result = found[b * gridDim.y + blockIdx.y];
#pragma unroll
    for (int m = 0; m < M; ++m) {
      result.softmax[m] = seen.softmax[m];
      result.target[m] = own[m] * kUnscale;
      result.beaten[m] = (seen.beaten >> m & 1) != 0;
    }
    result.beaten[kMaxModalities] = (seen.beaten >> M & 1) != 0;
    if constexpr (Loss) {
      result.joint = seen.joint;
      result.joint_target = own[M];
      result.spread = seen.spread;
    }
  }
  if (gridDim.y > 1 || threadIdx.x != 0) return;
  tallies[blockIdx.x] = tally;
  if constexpr (Loss) goal.tallies[blockIdx.x] = losses;
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
inline dim3 grid_of_rows(int64_t blocks, int64_t rows, int64_t resident) {
  const int64_t shares = parts_that_fill(blocks, rows, resident);
  return dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(shares));
}

Tensor bytes_like(const Tensor& tensor, size_t bytes) {
  return torch::stable::new_empty(tensor, {static_cast<int64_t>(bytes)}, torch::headeronly::ScalarType::Byte);
}

// One step, with the loss where it is wanted: two launches.
template <typename T, int M, bool Loss, bool Peel = false, typename A = accumulate_t<T>>
void launch_step(const Tensor& logits, const MaskedLogits<T>& masked, const Target& target, double cap,
                 LossGoal<A> goal, const Settings& settings, const State& state, cudaStream_t stream) {
  constexpr int Width = kWidth<T, M, Loss>;
  if constexpr (Width > 1 && !Peel) {
    const auto offsets = masked.classes | masked.row_stride | masked.batch_stride;
    if (offsets % Width != 0 || reinterpret_cast<uintptr_t>(masked.data) % (sizeof(T) * Width) != 0) {
      return launch_step<T, M, Loss, true>(logits, masked, target, cap, goal, settings, state, stream);
    }
  }
  constexpr auto kByWarps = score_by_warps<T, M, Width, Loss, Peel>;
  constexpr auto kByBlocks = score_by_blocks<T, M, Width, Loss, Peel>;
  const bool wide = masked.classes >= kWideClasses;
  int lanes = kWarp;  // that work on one sample
  if (masked.batch >= kManySamples) {
    while (lanes > kFewestLanes && masked.classes <= lanes * Width * 2) lanes /= 2;
  }
  const int64_t together = wide ? 1 : kThreads / lanes;  // samples of a block
  const int64_t resident = wide ? resident_blocks<kByBlocks>() : resident_blocks<kByWarps>();
  const int64_t blocks = even_blocks((masked.batch + together - 1) / together, resident);
  int64_t shares = 1;
  if (wide && blocks > 0) {
    // Two rounds of a block at least. One that goes on to other samples shares none.
    const int64_t most = blocks < masked.batch ? 1 : masked.classes / (kThreads * Width * 2);
    shares = parts_that_fill(blocks, most, resident);
  }
  if (shares == 1) {
    const Tensor space = bytes_like(logits, blocks * (sizeof(TallyOf) + sizeof(LossTally)));
    auto* tallies = static_cast<TallyOf*>(space.mutable_data_ptr());
    goal.tallies = reinterpret_cast<LossTally*>(tallies + blocks);
    if (blocks > 0 && wide) {
      launch(kByBlocks, blocks, kThreads, stream, masked, target, cap, goal, nullptr, tallies);
    } else if (blocks > 0) {
      launch(kByWarps, blocks, kThreads, stream, masked, target, cap, goal, lanes, tallies);
    }
    launch(finish_warps<A, Loss>, 1, kThreads, stream, tallies, blocks, goal, settings, state);
    return;
  }
  const Tensor space = bytes_like(logits, masked.batch * shares * sizeof(Found<A>));
  auto* found = static_cast<Found<A>*>(space.mutable_data_ptr());
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(shares));
  launch(kByBlocks, grid, kThreads, stream, masked, target, cap, goal, found, nullptr);
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
