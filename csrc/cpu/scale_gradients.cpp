#include "../common/scale_gradients.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "../common/gradient_list.h"
#include "../common/philox.h"
#include "../common/tensor.h"
#include "vector.h"

namespace agm {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kChunk = 16384;  // elements; the unit in which gradients are shared out and summed
constexpr int64_t kTile = 1024;    // elements whose noise stays in the first-level cache
static_assert(kChunk % kTile == 0 && kTile % 4 == 0);

// Elements under which a second thread costs more than it brings: some 30 microseconds of work.
constexpr int64_t kGrain = 131072;
constexpr int64_t kNoiseGrain = 16384;

struct Gradient {
  void* data;
  int64_t size;
  ScalarType dtype;
  uint32_t number;  // in the list, which is its stream of random numbers
  double coefficient;
  Moments moments;
};

struct Chunk {
  Gradient* gradient;
  int64_t begin, size;
  int64_t offset;  // elements of all chunks before it
  Moments moments;
};

std::vector<Chunk> chunks_of(std::vector<Gradient>& gradients) {
  std::vector<Chunk> chunks;
  int64_t offset = 0;
  for (Gradient& gradient : gradients) {
    for (int64_t begin = 0; begin < gradient.size; begin += kChunk) {
      const int64_t size = std::min(kChunk, gradient.size - begin);
      chunks.push_back({&gradient, begin, size, offset, {}});
      offset += size;
    }
  }
  return chunks;
}

// Shared out by elements, not by tensors: a thread takes the chunks that begin in its range.
template <typename F>
void for_each_chunk(std::vector<Chunk>& chunks, int64_t grain, const F& f) {
  if (chunks.empty()) return;
  const int64_t elements = chunks.back().offset + chunks.back().size;
  torch::stable::parallel_for(0, elements, grain, [&](int64_t begin, int64_t end) {
    auto chunk = std::lower_bound(chunks.begin(), chunks.end(), begin,
                                  [](const Chunk& one, int64_t at) { return one.offset < at; });
    for (; chunk != chunks.end() && chunk->offset < end; ++chunk) {
      AGM_DISPATCH_FLOATING(chunk->gradient->dtype, "agm::scale_gradients_",
                            [&] { f(*chunk, static_cast<scalar_t*>(chunk->gradient->data) + chunk->begin); });
    }
  });
}

template <typename T>
AGM_HOST_DEVICE void scale_body(double coefficient, T* data, int64_t size) {
  const auto k = static_cast<accumulate_t<T>>(coefficient);
  for (int64_t i = 0; i < size; ++i) data[i] = narrow<T>(rescale(k, widen(data[i])));
}

template <typename T>
AGM_HOST_DEVICE Moments moments_body(const T* data, int64_t size) {
  const double pivot = widen(data[0]);
  double sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum, squares)
  for (int64_t i = 0; i < size; ++i) {
    const double shifted = widen(data[i]) - pivot;
    sum += shifted;
    squares += shifted * shifted;
  }
  return ShiftedSums{sum, squares}.moments(static_cast<double>(size), pivot);
}

template <typename T>
AGM_HOST_DEVICE void scale_with_noise_body(const Gradient& gradient, PhiloxKey key, int64_t begin, T* data,
                                           int64_t size) {
  using A = accumulate_t<T>;
  const auto k = static_cast<A>(gradient.coefficient);
  const auto deviation = static_cast<A>(gradient.moments.noise_deviation());
  float normal[kTile];
  for (int64_t start = 0; start < size; start += kTile) {
    const int64_t count = std::min(kTile, size - start);
    const auto first = static_cast<uint64_t>((begin + start) / 4);
    const int blocks = static_cast<int>((count + 3) / 4);
#pragma omp simd
    for (int i = 0; i < blocks; ++i) {
      const Normals normals = philox_normals(key, gradient.number, first + static_cast<uint64_t>(i));
      normal[4 * i] = normals.value[0];
      normal[4 * i + 1] = normals.value[1];
      normal[4 * i + 2] = normals.value[2];
      normal[4 * i + 3] = normals.value[3];
    }
    for (int64_t i = 0; i < count; ++i) {
      data[start + i] = narrow<T>(rescale(k, widen(data[start + i]), normal[i], deviation));
    }
  }
}

#define AGM_SCALE(T)                                                                                        \
  AGM_CLONES void scale(double coefficient, T* data, int64_t size) { scale_body(coefficient, data, size); } \
  AGM_CLONES Moments moments_of(const T* data, int64_t size) { return moments_body(data, size); }           \
  AGM_CLONES void scale_with_noise(const Gradient& gradient, PhiloxKey key, int64_t begin, T* data,         \
                                   int64_t size) {                                                          \
    scale_with_noise_body(gradient, key, begin, data, size);                                                \
  }
AGM_SCALE(float)
AGM_SCALE(double)
AGM_SCALE(Half)
AGM_SCALE(BFloat16)

void scale_gradients(const std::vector<Tensor>& grads, const std::vector<int64_t>& groups,
                     const Tensor& coefficients, const std::optional<Tensor>& seed) {
  const bool noise = seed.has_value();
  const Tensor factors = torch::stable::contiguous(coefficients);  // (G,) float64
  const auto* factor = factors.const_data_ptr<double>();
  const GradientList list(grads, groups, factors.numel(), noise);
  std::vector<Gradient> gradients;
  for (size_t i = 0; i < grads.size(); ++i) {
    const Tensor& own = list.flat(i);
    gradients.push_back({own.mutable_data_ptr(),
                         own.numel(),
                         own.scalar_type(),
                         static_cast<uint32_t>(i),
                         factor[groups[i]],
                         {}});
  }
  std::vector<Chunk> chunks = chunks_of(gradients);
  if (noise) {
    const PhiloxKey key = PhiloxKey::of(*seed->const_data_ptr<int64_t>());
    for_each_chunk(chunks, kGrain,
                   [](Chunk& chunk, auto* data) { chunk.moments = moments_of(data, chunk.size); });
    // In order, so that the result does not depend on the number of threads.
    for (const Chunk& chunk : chunks) chunk.gradient->moments.merge(chunk.moments);
    for_each_chunk(chunks, kNoiseGrain, [key](const Chunk& chunk, auto* data) {
      scale_with_noise(*chunk.gradient, key, chunk.begin, data, chunk.size);
    });
  } else {
    for_each_chunk(chunks, kGrain, [](const Chunk& chunk, auto* data) {
      scale(chunk.gradient->coefficient, data, chunk.size);
    });
  }
  list.copy_back();
}

STABLE_TORCH_LIBRARY_IMPL(AGM_LIBRARY, CPU, m) { m.impl("scale_gradients_", TORCH_BOX(&scale_gradients)); }

}  // namespace
}  // namespace agm
