#include "../common/modulate.h"

#include <algorithm>

#include "launch.h"

namespace agm {
namespace {

using torch::stable::Tensor;

constexpr int kMaxModalities = 6;
constexpr int kWarp = 32;
constexpr int kWarps = 8;
constexpr int kThreads = kWarp * kWarps;
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

// The classes of one sample that a group of threads looked at.
template <typename A, int M>
struct Seen {
  Softmax<A> softmax[M];
  unsigned beaten = 0;  // bit m: another class than the label is the largest; bit M: of the joint logits

  __device__ void merge(const Seen& other) {
#pragma unroll
    for (int m = 0; m < M; ++m) softmax[m].merge(other.softmax[m]);
    beaten |= other.beaten;
  }
};

template <typename A, int M>
__device__ void merge_warp(Seen<A, M>& seen) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    Seen<A, M> other;
#pragma unroll
    for (int m = 0; m < M; ++m) {
      other.softmax[m].largest = __shfl_xor_sync(~0u, seen.softmax[m].largest, distance);
      other.softmax[m].sum = __shfl_xor_sync(~0u, seen.softmax[m].sum, distance);
    }
    other.beaten = __shfl_xor_sync(~0u, seen.beaten, distance);
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

// Classes begin, begin + lanes * Width ... of one sample, Width at a time; `end` is a multiple of Width.
template <typename T, int M, int Width, typename A = accumulate_t<T>>
__device__ __forceinline__ Seen<A, M> look(const T* __restrict__ logits, int64_t row_stride, int64_t begin,
                                           int64_t end, int64_t stride, int64_t label,
                                           const A (&target)[M + 1]) {
  Seen<A, M> seen;
  for (int64_t at = begin; at < end; at += stride) {
    A response[M][Width], joint[Width];
    load_responses<T, M, Width>(logits + at, row_stride, response, joint);
#pragma unroll
    for (int m = 0; m < M; ++m) {
      Softmax<A>& softmax = seen.softmax[m];
      A largest = softmax.largest;
      bool beaten = false;
#pragma unroll
      for (int i = 0; i < Width; ++i) {
        largest = response[m][i] > largest ? response[m][i] : largest;
        beaten |= beats(response[m][i], at + i, target[m], label);
      }
      const A shift = Softmax<A>::shift(largest);
      softmax.sum *= exponential(softmax.largest - shift);
#pragma unroll
      for (int i = 0; i < Width; ++i) softmax.sum += exponential(response[m][i] - shift);
      softmax.largest = largest;
      seen.beaten |= static_cast<unsigned>(beaten) << m;
    }
    bool beaten = false;
#pragma unroll
    for (int i = 0; i < Width; ++i) beaten |= beats(joint[i], at + i, target[M], label);
    seen.beaten |= static_cast<unsigned>(beaten) << M;
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

// Few classes: one warp a sample; each block leaves what its samples add up to.
template <typename T, int M, int Width>
__global__ void __launch_bounds__(kThreads, kResident<T>)
    score_by_warps(MaskedLogits<T> masked, Target target, double cap, TallyOf* __restrict__ tallies) {
  using A = accumulate_t<T>;
  __shared__ TallyOf shared[kWarps];  // not in registers, which the logits need
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  TallyOf& tally = shared[warp];
  if (lane == 0) tally = TallyOf{};
  for (int64_t b = static_cast<int64_t>(blockIdx.x) * kWarps + warp; b < masked.batch;
       b += static_cast<int64_t>(gridDim.x) * kWarps) {
    const int64_t label = target.label[b];
    if (label == target.ignore_index) continue;
    const T* logits = masked.data + b * masked.batch_stride;
    A own[M + 1];
    if (!read_target<T, M>(masked, logits, label, own)) {
      if (lane == 0) tally.add_unknown();
      continue;
    }
    auto seen =
        look<T, M, Width>(logits, masked.row_stride, lane * Width, masked.classes, kWarp * Width, label, own);
    merge_warp(seen);
    if (lane != 0) continue;
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
}

// What a block knows about its share of one sample's classes.
template <typename A>
struct Found {
  Softmax<A> softmax[kMaxModalities];
  A target[kMaxModalities];
  bool beaten[kMaxModalities + 1];
};

// Many classes: blockIdx.x shares out the samples and blockIdx.y the classes of each.
template <typename T, int M, int Width>
__global__ void __launch_bounds__(kThreads, kResident<T>)
    score_by_blocks(MaskedLogits<T> masked, Target target, Found<accumulate_t<T>>* __restrict__ found) {
  using A = accumulate_t<T>;
  __shared__ Seen<A, M> shared[kWarps];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t share = (masked.classes / Width + gridDim.y - 1) / gridDim.y * Width;
  const int64_t begin = blockIdx.y * share;
  const int64_t end = begin + share < masked.classes ? begin + share : masked.classes;
  for (int64_t b = blockIdx.x; b < masked.batch; b += gridDim.x) {
    const int64_t label = target.label[b];
    const T* logits = masked.data + b * masked.batch_stride;
    A own[M + 1];
    if (label == target.ignore_index || !read_target<T, M>(masked, logits, label, own)) continue;
    auto seen = look<T, M, Width>(logits, masked.row_stride, begin + threadIdx.x * Width, end,
                                  kThreads * Width, label, own);
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
  }
}

struct State {
  double* values;
  int64_t* counts;
  double* scales;
};

// Adds up the threads' tallies in an order that does not depend on their timing, and makes the step.
__device__ void finish(TallyOf tally, const Settings& settings, const State& state) {
  __shared__ TallyOf shared[kThreads];
  __shared__ double scores[kMaxModalities], coefficients[kMaxModalities];
  const int thread = threadIdx.x;
  shared[thread] = tally;
  for (int distance = kThreads / 2; distance > 0; distance /= 2) {
    __syncthreads();
    if (thread < distance) shared[thread].add(shared[thread + distance]);
  }
  __syncthreads();
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

__global__ void __launch_bounds__(kThreads)
    finish_warps(const TallyOf* __restrict__ tallies, int64_t count, Settings settings, State state) {
  TallyOf tally;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) tally.add(tallies[i]);
  finish(tally, settings, state);
}

template <typename A>
__global__ void __launch_bounds__(kThreads)
    finish_blocks(const Found<A>* __restrict__ found, int64_t shares, int64_t batch, int64_t classes,
                  Target target, double cap, Settings settings, State state) {
  TallyOf tally;
  for (int64_t b = threadIdx.x; b < batch; b += kThreads) {
    const int64_t label = target.label[b];
    if (label == target.ignore_index) continue;
    if (label < 0 || label >= classes) {
      tally.add_unknown();
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
  }
  finish(tally, settings, state);
}

Tensor bytes_like(const Tensor& tensor, size_t bytes) {
  return torch::stable::new_empty(tensor, {static_cast<int64_t>(bytes)}, torch::headeronly::ScalarType::Byte);
}

template <typename T, int M, int Width = kWidth<T, M>>
void launch_modulate(const Tensor& logits, const MaskedLogits<T>& masked, const Target& target, double cap,
                     const Settings& settings, const State& state, cudaStream_t stream) {
  if constexpr (Width > 1) {
    const auto offsets = masked.classes | masked.row_stride | masked.batch_stride;
    if (offsets % Width != 0 || reinterpret_cast<uintptr_t>(masked.data) % (sizeof(T) * Width) != 0) {
      return launch_modulate<T, M, 1>(logits, masked, target, cap, settings, state, stream);
    }
  }
  if (masked.classes < kWideClasses) {
    const int64_t blocks = std::min((masked.batch + kWarps - 1) / kWarps, kMaxBlocks);
    const Tensor space = bytes_like(logits, blocks * sizeof(TallyOf));
    auto* tallies = static_cast<TallyOf*>(space.mutable_data_ptr());
    if (blocks > 0) {
      launch(score_by_warps<T, M, Width>, blocks, kThreads, stream, masked, target, cap, tallies);
    }
    launch(finish_warps, 1, kThreads, stream, tallies, blocks, settings, state);
    return;
  }
  using A = accumulate_t<T>;
  const int64_t blocks = std::min(masked.batch, kMaxBlocks);
  const int64_t most = masked.classes / (kThreads * Width * 2);  // two rounds of a block at least
  const int64_t shares = blocks == 0 ? 1 : std::max<int64_t>(1, std::min(most, kEnoughBlocks / blocks));
  const Tensor space = bytes_like(logits, masked.batch * shares * sizeof(Found<A>));
  auto* found = static_cast<Found<A>*>(space.mutable_data_ptr());
  if (blocks > 0) {
    const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(shares));
    launch(score_by_blocks<T, M, Width>, grid, kThreads, stream, masked, target, found);
  }
  launch(finish_blocks<A>, 1, kThreads, stream, found, shares, masked.batch, masked.classes, target, cap,
         settings, state);
}

Tensor modulate(const Tensor& masked_logits, const Tensor& target, const Tensor& values, const Tensor& counts,
                double alpha, double max_gap, double floor, int64_t ignore_index, bool update) {
  const Tensor logits = unit_class_stride(masked_logits);   // (2**M - 1, B, C)
  const Tensor labels = torch::stable::contiguous(target);  // (B,) int64
  const int modalities = modalities_of(logits.size(0), kMaxModalities);
  check_state(values, counts, modalities);
  const double cap = largest_cost(floor);
  const Settings settings{modalities, alpha, max_gap, update};
  const Target labelled{labels.const_data_ptr<int64_t>(), ignore_index};
  Tensor scales = torch::stable::new_empty(values, {logits.size(0)});  // float64
  const State state{values.mutable_data_ptr<double>(), counts.mutable_data_ptr<int64_t>(),
                    scales.mutable_data_ptr<double>()};
  AGM_DISPATCH_FLOATING(logits.scalar_type(), "agm::modulate", [&] {
    const MaskedLogits<scalar_t> masked{static_cast<const scalar_t*>(logits.const_data_ptr()), logits.size(1),
                                        logits.size(2), logits.stride(0), logits.stride(1)};
    on_device_of(logits, [&](cudaStream_t stream) {
      const auto launch = [&](auto m) {
        launch_modulate<scalar_t, decltype(m)::value>(logits, masked, labelled, cap, settings, state, stream);
      };
      switch (modalities) {
        case 2:
          return launch(std::integral_constant<int, 2>{});
        case 3:
          return launch(std::integral_constant<int, 3>{});
        case 4:
          return launch(std::integral_constant<int, 4>{});
        case 5:
          return launch(std::integral_constant<int, 5>{});
        default:
          return launch(std::integral_constant<int, 6>{});
      }
    });
  });
  return scales;
}

// One thread holds Width elements of the gradient and writes them into its share of the rows: the gradient
// is read once, and every store is as wide as the row length allows.
template <typename T, int Width>
__global__ void __launch_bounds__(kThreads)
    scale_rows(const T* __restrict__ grad, const double* __restrict__ scales, T* __restrict__ out,
               int64_t rows, int64_t size) {
  const int64_t at = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * Width;
  if (at >= size) return;
  const auto source = *reinterpret_cast<const Pack<T, Width>*>(grad + at);
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    const auto scale = static_cast<accumulate_t<T>>(scales[row]);
    Pack<T, Width> target;
#pragma unroll
    for (int i = 0; i < Width; ++i) target.value[i] = scale_gradient(scale, source.value[i]);
    *reinterpret_cast<Pack<T, Width>*>(out + row * size + at) = target;
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
  // A short gradient leaves the GPU idle unless its rows are shared out as well.
  const int64_t shares = std::max<int64_t>(1, std::min(rows, kEnoughBlocks / blocks));
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(shares));
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
