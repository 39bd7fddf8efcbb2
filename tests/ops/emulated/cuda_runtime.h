// Stands in for CUDA's header of this name where csrc/cuda is compiled for the CPU (-I this folder): what the
// kernels need of the language. emulator.cpp runs them, each thread a fiber.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <source_location>
#include <tuple>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
// Blocks run one after another, so one copy serves them all. Nothing else here is thread-local: that is how
// emulator.cpp finds the shared memory to poison it, and then no constructor runs, as on a GPU. The address
// sanitizer guards only what is not thread-local.
#ifdef __SANITIZE_ADDRESS__
#define __shared__ static
#else
#define __shared__ static thread_local
#endif

struct uint3 {
  unsigned x, y, z;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
template <typename T>
void __stwb(T* target, T value) {
  *target = value;
}
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9 };
using cudaStream_t = struct CUstream_st*;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};
cudaError_t cudaGetLastError();

// A device so small that little work keeps its blocks busy more than once.
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount };
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) { return *value = 8, cudaSuccess; }
template <typename Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel, int, size_t) {
  return *blocks = 3, cudaSuccess;
}

namespace emulated {

using Where = std::source_location;

cudaError_t run(const cudaLaunchConfig_t& config, const std::function<void()>& thread);

// Waits until every thread of the block called this from `where`; returns how many gave a true `predicate`.
int barrier(bool predicate, Where where);

constexpr int kVote = -1;  // as `source`: asks for the lanes whose bits are not 0
// Waits until every lane of `mask` called this from `where`; returns the bits that lane `source` gave.
uint64_t exchange(unsigned mask, uint64_t bits, int source, Where where);

inline int lane() { return static_cast<int>(threadIdx.x) % warpSize; }

template <typename T>
T shuffle(unsigned mask, T value, int source, Where where) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = exchange(mask, bits, source, where);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace emulated

// The arguments are converted and copied once, as they are for a GPU.
template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const std::tuple<Parameters...> copies(std::forward<Arguments>(arguments)...);
  return emulated::run(*config, [&] { std::apply(kernel, copies); });
}

inline void __syncthreads(emulated::Where where = emulated::Where::current()) {
  emulated::barrier(false, where);
}
inline int __syncthreads_count(int predicate, emulated::Where where = emulated::Where::current()) {
  return emulated::barrier(predicate != 0, where);
}
inline int __syncthreads_or(int predicate, emulated::Where where = emulated::Where::current()) {
  return emulated::barrier(predicate != 0, where) != 0;
}
inline int __syncthreads_and(int predicate, emulated::Where where = emulated::Where::current()) {
  return emulated::barrier(predicate == 0, where) == 0;
}
inline void __syncwarp(unsigned mask = ~0u, emulated::Where where = emulated::Where::current()) {
  emulated::exchange(mask, 0, emulated::kVote, where);
}

inline unsigned __ballot_sync(unsigned mask, int predicate,
                              emulated::Where where = emulated::Where::current()) {
  return static_cast<unsigned>(emulated::exchange(mask, predicate != 0, emulated::kVote, where));
}
inline int __any_sync(unsigned mask, int predicate, emulated::Where where = emulated::Where::current()) {
  return __ballot_sync(mask, predicate, where) != 0;
}
inline int __all_sync(unsigned mask, int predicate, emulated::Where where = emulated::Where::current()) {
  return __ballot_sync(mask, !predicate, where) == 0;
}

// A lane outside of the part of the warp that shuffles together gives its own value back.
template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize,
              emulated::Where where = emulated::Where::current()) {
  return emulated::shuffle(mask, value, (emulated::lane() & -width) | (source & (width - 1)), where);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int distance, int width = warpSize,
                  emulated::Where where = emulated::Where::current()) {
  const int lane = emulated::lane(), source = lane ^ distance;
  return emulated::shuffle(mask, value, source <= (lane | (width - 1)) ? source : lane, where);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = warpSize,
                   emulated::Where where = emulated::Where::current()) {
  const int lane = emulated::lane(), source = lane + static_cast<int>(distance);
  return emulated::shuffle(mask, value, source <= (lane | (width - 1)) ? source : lane, where);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = warpSize,
                 emulated::Where where = emulated::Where::current()) {
  const int lane = emulated::lane(), source = lane - static_cast<int>(distance);
  return emulated::shuffle(mask, value, source >= (lane & -width) ? source : lane, where);
}
