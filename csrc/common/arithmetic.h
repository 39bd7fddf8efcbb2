// What host and device share: how numbers are accumulated. No torch here, so that any compiler can test it.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#if defined(__CUDACC__)
#define AGM_HOST_DEVICE __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define AGM_HOST_DEVICE __attribute__((always_inline)) inline
#else
#define AGM_HOST_DEVICE inline
#endif

namespace agm {

// float64 stays, every other floating type is computed in float32.
template <typename T>
using accumulate_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <typename To, typename From>
AGM_HOST_DEVICE To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

template <typename A>
constexpr A kInfinity = std::numeric_limits<A>::infinity();
template <typename A>
constexpr A kNotANumber = std::numeric_limits<A>::quiet_NaN();

// a * b + c, rounded alike wherever it is inlined: equal logits must give equal responses, or ties break.
// On the device that takes a fused operation, on the host the flag -ffp-contract=off.
template <typename A>
AGM_HOST_DEVICE A multiply_add(A a, A b, A c) {
#if defined(__CUDA_ARCH__)
  return fma(a, b, c);
#else
  return a * b + c;
#endif
}

template <typename A>
AGM_HOST_DEVICE A exponential(A x) {
#if defined(__CUDA_ARCH__)
  if constexpr (std::is_same_v<A, float>) return __expf(x);
#endif
  return std::exp(x);
}

template <typename A>
constexpr A kLog2E = A(1.4426950408889634);

// 2 ** x, to 2 units in the last place; on the device 0 below the normal numbers, which beside a sum of at
// least 1 is nothing.
template <typename A>
AGM_HOST_DEVICE A power_of_two(A x) {
#if defined(__CUDA_ARCH__)
  if constexpr (std::is_same_v<A, float>) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
  }
#endif
  return std::exp2(x);
}

}  // namespace agm
