// LibTorch through its stable ABI: a file compiles in about a second, and one binary runs on several
// versions.
#pragma once

// The oldest torch that the binary runs on; a newer function of the headers is then an error at compile time.
#ifndef TORCH_TARGET_VERSION
#define TORCH_TARGET_VERSION (((0ULL + 2) << 56) | ((0ULL + 11) << 48))
#endif

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/Dispatch.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <optional>

// The library whose ops are filled; the tests build the kernels once more under another name.
#ifndef AGM_LIBRARY
#define AGM_LIBRARY agm
#endif

// Calls a lambda with `scalar_t` set to the floating type of a tensor.
#define AGM_DISPATCH_FLOATING(TYPE, NAME, ...)                                                    \
  THO_DISPATCH_SWITCH(TYPE, NAME,                                                                 \
                      THO_DISPATCH_CASE(torch::headeronly::ScalarType::Float, __VA_ARGS__)        \
                          THO_DISPATCH_CASE(torch::headeronly::ScalarType::Double, __VA_ARGS__)   \
                              THO_DISPATCH_CASE(torch::headeronly::ScalarType::Half, __VA_ARGS__) \
                                  THO_DISPATCH_CASE(torch::headeronly::ScalarType::BFloat16, __VA_ARGS__))

namespace agm {

// M of 2**M - 1 rows of masked logits.
inline int modalities_of(int64_t rows, int most) {
  int modalities = 2;
  while (modalities <= most && (int64_t{1} << modalities) - 1 != rows) ++modalities;
  STD_TORCH_CHECK(modalities <= most, "Expected 2**M - 1 rows of masked logits with M from 2 to ", most,
                  ", but got ", rows, ".");
  return modalities;
}

// The tensor itself where the classes, its last dimension, are neighbours in memory, otherwise a compact
// copy.
inline torch::stable::Tensor unit_class_stride(const torch::stable::Tensor& logits) {
  return logits.stride(logits.dim() - 1) == 1 ? logits : torch::stable::contiguous(logits);
}

// A compact tensor; a call through the dispatcher, which costs as much as a small loop, only where it is not
// one.
inline torch::stable::Tensor compact(const torch::stable::Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

inline std::optional<torch::stable::Tensor> contiguous_or_none(
    const std::optional<torch::stable::Tensor>& tensor) {
  if (!tensor) return std::nullopt;
  return torch::stable::contiguous(*tensor);
}

// float64 for float64, otherwise float32: as `accumulate_t`.
inline torch::headeronly::ScalarType accumulation_type(const torch::stable::Tensor& tensor) {
  using torch::headeronly::ScalarType;
  return tensor.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Kernels write the state through plain pointers.
inline void check_state(const torch::stable::Tensor& values, const torch::stable::Tensor& counts,
                        int modalities) {
  STD_TORCH_CHECK(values.is_contiguous() && values.numel() == 5 * modalities,
                  "Expected `values` to be contiguous with 5 * M elements, M = ", modalities, ".");
  STD_TORCH_CHECK(counts.is_contiguous() && counts.numel() == modalities + 4,
                  "Expected `counts` to be contiguous with M + 4 elements, M = ", modalities, ".");
}

}  // namespace agm
