#include "../common/scale_gradients.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "../common/gradient_list.h"
#include "../common/philox.h"
#include "launch.h"

namespace agm {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int kWarp = 32;
constexpr int kWarps = 8;
constexpr int kThreads = kWarp * kWarps;

// Gradients of one type, handed to a kernel by value: nothing is copied to the device beforehand.
constexpr int kMaxTensors = 128;
struct Batch {
  void* data[kMaxTensors];
  int64_t size[kMaxTensors];
  int first_block[kMaxTensors + 1];  // of the grid; the last entry is the size of the grid
  int group[kMaxTensors];
  uint32_t number[kMaxTensors];  // in the list, which is its stream of random numbers
  int count;
};
static_assert(sizeof(Batch) + 64 <= 4096, "a kernel takes 4 KiB of parameters");

// Elements that a thread holds at once: 16 bytes and a block of random numbers at least.
template <typename T>
constexpr int kUnit = sizeof(T) == 2 ? 8 : 4;

template <typename T>
struct alignas(16) Unit {
  T value[kUnit<T>];
};

// Elements that one block of threads works on. A gradient has no more than kMaxBlocks of them, since with
// noise each block reads the statistics of all.
constexpr int64_t kMinChunk = 8192;
constexpr int64_t kMaxBlocks = 512;
__host__ __device__ __forceinline__ int64_t chunk_size(int64_t size) {
  const int64_t share = (size + kMaxBlocks - 1) / kMaxBlocks;
  return (share + kMinChunk - 1) / kMinChunk * kMinChunk;
}

struct Chunk {
  int tensor;
  int64_t begin, end;
};

__device__ __forceinline__ Chunk chunk_of_block(const Batch& batch) {
  const int block = static_cast<int>(blockIdx.x);
  int low = 0, high = batch.count;  // the gradient is in [low, high)
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (batch.first_block[middle] <= block ? low : high) = middle;
  }
  const int64_t size = batch.size[low], chunk = chunk_size(size);
  const int64_t begin = (block - batch.first_block[low]) * chunk;
  return {low, begin, begin + chunk < size ? begin + chunk : size};
}

template <typename T>
__device__ __forceinline__ bool aligned(const T* data) {
  return reinterpret_cast<uintptr_t>(data) % alignof(Unit<T>) == 0;
}

template <typename T>
__device__ __forceinline__ Unit<T> load(const T* source, int64_t count, bool wide) {
  if (wide && count >= kUnit<T>) return *reinterpret_cast<const Unit<T>*>(source);
  Unit<T> unit;
#pragma unroll
  for (int i = 0; i < kUnit<T>; ++i) unit.value[i] = source[i < count ? i : 0];
  return unit;
}

template <typename T>
__device__ __forceinline__ void store(T* target, const Unit<T>& unit, int64_t count, bool wide) {
  if (wide && count >= kUnit<T>) {
    *reinterpret_cast<Unit<T>*>(target) = unit;
    return;
  }
#pragma unroll
  for (int i = 0; i < kUnit<T>; ++i) {
    if (i < count) target[i] = unit.value[i];
  }
}

// The moments of all threads of a warp together, in each of them; the order is fixed.
__device__ __forceinline__ void merge_warp(Moments& own) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    Moments other;
    other.count = __shfl_xor_sync(~0u, own.count, distance);
    other.mean = __shfl_xor_sync(~0u, own.mean, distance);
    other.squares = __shfl_xor_sync(~0u, own.squares, distance);
    own.merge(other);
  }
}

// The moments of each chunk.
template <typename T>
__global__ void __launch_bounds__(kThreads) take_moments(const Batch batch, Moments* __restrict__ found) {
  const Chunk chunk = chunk_of_block(batch);
  const T* data = static_cast<const T*>(batch.data[chunk.tensor]);
  const bool wide = aligned(data);
  const auto pivot = static_cast<double>(static_cast<accumulate_t<T>>(data[chunk.begin]));
  ShiftedSums sums;
  double count = 0;
  for (int64_t at = chunk.begin + threadIdx.x * kUnit<T>; at < chunk.end; at += kThreads * kUnit<T>) {
    const int64_t left = chunk.end - at;
    const Unit<T> unit = load(data + at, left, wide);
#pragma unroll
    for (int i = 0; i < kUnit<T>; ++i) {
      if (i < left) sums.add(static_cast<double>(static_cast<accumulate_t<T>>(unit.value[i])) - pivot);
    }
    count += static_cast<double>(left < kUnit<T> ? left : kUnit<T>);
  }
  __shared__ Moments of_warp[kWarps];
  Moments moments = sums.moments(count, pivot);
  merge_warp(moments);
  if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = moments;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int warp = 1; warp < kWarps; ++warp) moments.merge(of_warp[warp]);
  found[blockIdx.x] = moments;
}

// Of the gradient that a chunk belongs to. One warp does it, since many GPUs are slow in float64.
__device__ __forceinline__ double noise_deviation(const Batch& batch, const Chunk& chunk,
                                                  const Moments* __restrict__ found) {
  __shared__ double deviation;
  if (threadIdx.x < kWarp) {
    Moments moments;
    const int last = batch.first_block[chunk.tensor + 1];
    for (int i = batch.first_block[chunk.tensor] + static_cast<int>(threadIdx.x); i < last; i += kWarp) {
      moments.merge(found[i]);
    }
    merge_warp(moments);
    if (threadIdx.x == 0) deviation = moments.noise_deviation();
  }
  __syncthreads();
  return deviation;
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    scale(const Batch batch, const double* __restrict__ coefficients) {
  const Chunk chunk = chunk_of_block(batch);
  T* data = static_cast<T*>(batch.data[chunk.tensor]);
  const bool wide = aligned(data);
  const auto coefficient = static_cast<accumulate_t<T>>(coefficients[batch.group[chunk.tensor]]);
  for (int64_t at = chunk.begin + threadIdx.x * kUnit<T>; at < chunk.end; at += kThreads * kUnit<T>) {
    Unit<T> unit = load(data + at, chunk.end - at, wide);
#pragma unroll
    for (int i = 0; i < kUnit<T>; ++i) {
      unit.value[i] = static_cast<T>(rescale(coefficient, static_cast<accumulate_t<T>>(unit.value[i])));
    }
    store(data + at, unit, chunk.end - at, wide);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    scale_with_noise(const Batch batch, const double* __restrict__ coefficients,
                     const int64_t* __restrict__ seed, const Moments* __restrict__ found) {
  using A = accumulate_t<T>;
  const Chunk chunk = chunk_of_block(batch);
  const auto deviation = static_cast<A>(noise_deviation(batch, chunk, found));
  const auto coefficient = static_cast<A>(coefficients[batch.group[chunk.tensor]]);
  const PhiloxKey key = PhiloxKey::of(*seed);
  const uint32_t stream = batch.number[chunk.tensor];
  T* data = static_cast<T*>(batch.data[chunk.tensor]);
  const bool wide = aligned(data);
  for (int64_t at = chunk.begin + threadIdx.x * kUnit<T>; at < chunk.end; at += kThreads * kUnit<T>) {
    Unit<T> unit = load(data + at, chunk.end - at, wide);
#pragma unroll
    for (int first = 0; first < kUnit<T>; first += 4) {
      const Normals normals = philox_normals(key, stream, static_cast<uint64_t>(at + first) / 4);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        T& value = unit.value[first + i];
        value = static_cast<T>(rescale(coefficient, static_cast<A>(value), normals.value[i], deviation));
      }
    }
    store(data + at, unit, chunk.end - at, wide);
  }
}

template <typename T>
void launch_batch(const Batch& batch, const Tensor& coefficients, const std::optional<Tensor>& seed,
                  cudaStream_t stream) {
  const auto* factors = coefficients.const_data_ptr<double>();
  const int blocks = batch.first_block[batch.count];
  if (!seed.has_value()) {
    launch(scale<T>, blocks, kThreads, stream, batch, factors);
    return;
  }
  const int64_t bytes = blocks * static_cast<int64_t>(sizeof(Moments));
  const Tensor space = torch::stable::new_empty(coefficients, {bytes}, ScalarType::Byte);
  auto* found = static_cast<Moments*>(space.mutable_data_ptr());
  launch(take_moments<T>, blocks, kThreads, stream, batch, found);
  launch(scale_with_noise<T>, blocks, kThreads, stream, batch, factors, seed->const_data_ptr<int64_t>(),
         found);
}

template <typename T>
void scale_all(const GradientList& list, ScalarType dtype, const std::vector<int64_t>& groups,
               const Tensor& coefficients, const std::optional<Tensor>& seed, cudaStream_t stream) {
  Batch batch{};
  const auto flush = [&] {
    if (batch.count > 0) launch_batch<T>(batch, coefficients, seed, stream);
    batch.count = 0;
  };
  for (size_t i = 0; i < groups.size(); ++i) {
    const Tensor& grad = list.flat(i);
    const int64_t size = grad.numel();
    if (grad.scalar_type() != dtype || size == 0) continue;
    if (batch.count == kMaxTensors) flush();
    const int at = batch.count++;
    batch.data[at] = grad.mutable_data_ptr();
    batch.size[at] = size;
    batch.group[at] = static_cast<int>(groups[i]);
    batch.number[at] = static_cast<uint32_t>(i);
    const int64_t chunk = chunk_size(size);
    batch.first_block[at + 1] = batch.first_block[at] + static_cast<int>((size + chunk - 1) / chunk);
  }
  flush();
}

void scale_gradients(const std::vector<Tensor>& grads, const std::vector<int64_t>& groups,
                     const Tensor& coefficients, const std::optional<Tensor>& seed) {
  on_device_of(coefficients, [&](cudaStream_t stream) {
    const Tensor factors = torch::stable::contiguous(coefficients);  // (G,) float64
    const GradientList list(grads, groups, factors.numel(), seed.has_value());
    for (const auto dtype : {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half, ScalarType::Double}) {
      AGM_DISPATCH_FLOATING(dtype, "agm::scale_gradients_",
                            [&] { scale_all<scalar_t>(list, dtype, groups, factors, seed, stream); });
    }
    list.copy_back();
  });
}

STABLE_TORCH_LIBRARY_IMPL(AGM_LIBRARY, AGM_CUDA_KEY, m) {
  m.impl("scale_gradients_", TORCH_BOX(&scale_gradients));
}

}  // namespace
}  // namespace agm
