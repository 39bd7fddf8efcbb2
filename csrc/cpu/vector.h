// Loops that the compiler turns into vector instructions: no branches, no calls, no conversions by table.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "../common/arithmetic.h"
#include "../common/tensor.h"

// One copy of a function for each generation of x86 processors, chosen when the library is loaded.
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__)
#define AGM_CLONES __attribute__((target_clones("default", "avx2", "avx512f")))
#else
#define AGM_CLONES
#endif

namespace agm {

AGM_HOST_DEVICE float widen(float x) { return x; }
AGM_HOST_DEVICE double widen(double x) { return x; }
AGM_HOST_DEVICE float widen(torch::headeronly::BFloat16 x) {
  return bits_as<float>(static_cast<uint32_t>(x.x) << 16);
}
AGM_HOST_DEVICE float widen(torch::headeronly::Half x) {
  const uint32_t sign = (x.x & 0x8000u) << 16;
  const uint32_t rest = (x.x & 0x7fffu) << 13;
  const float finite = bits_as<float>(rest) * 0x1p112f;  // moves the exponent's bias; exact, subnormals too
  const uint32_t special =
      0x7f800000u & (0u - static_cast<uint32_t>(rest >= 0x0f800000u));  // infinity and NaN
  return bits_as<float>(sign | bits_as<uint32_t>(finite) | special);
}

template <typename T>
AGM_HOST_DEVICE T narrow(accumulate_t<T> x) {
  return x;
}
template <>
AGM_HOST_DEVICE torch::headeronly::BFloat16 narrow<torch::headeronly::BFloat16>(float x) {
  const uint32_t bits = bits_as<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
  const auto result = static_cast<uint16_t>(x != x ? 0x7fc0u : rounded);
  return torch::headeronly::BFloat16(result, torch::headeronly::BFloat16::from_bits());
}
template <>
AGM_HOST_DEVICE torch::headeronly::Half narrow<torch::headeronly::Half>(float x) {
  const uint32_t bits = bits_as<uint32_t>(x);
  const uint32_t rest = bits & 0x7fffffffu;
  const uint32_t special = rest > 0x7f800000u ? 0x7e00u : 0x7c00u;
  // Adding 1/2 shifts a subnormal's bits to the end of the number and rounds them.
  const uint32_t subnormal = bits_as<uint32_t>(bits_as<float>(rest) + 0.5f) - 0x3f000000u;
  const uint32_t normal = (rest - 0x38000000u + 0xfffu + (rest >> 13 & 1)) >> 13;
  // Masks instead of branches, which the compiler would keep.
  const uint32_t is_special = 0u - static_cast<uint32_t>(rest >= 0x47800000u);
  const uint32_t is_subnormal = 0u - static_cast<uint32_t>(rest < 0x38800000u);
  const uint32_t finite = (subnormal & is_subnormal) | (normal & ~is_subnormal);
  const uint32_t half = (special & is_special) | (finite & ~is_special);
  return torch::headeronly::Half(static_cast<uint16_t>((bits & 0x80000000u) >> 16 | half),
                                 torch::headeronly::Half::from_bits());
}

// 32 bytes of numbers, in registers of whatever width the processor has. A copy by memcpy would pass through
// the stack in halves, and reading it whole would wait for both.
#if defined(__GNUC__)
template <typename A>
struct Lanes {
  static constexpr int kCount = 32 / static_cast<int>(sizeof(A));
  typedef A Numbers __attribute__((vector_size(32)));
  typedef A Unaligned __attribute__((vector_size(32), aligned(alignof(A)), may_alias));
  Numbers numbers;

  AGM_HOST_DEVICE void clear() { numbers = Numbers{}; }
  AGM_HOST_DEVICE void load(const A* from) { numbers = *reinterpret_cast<const Unaligned*>(from); }
  AGM_HOST_DEVICE void store(A* to) const { *reinterpret_cast<Unaligned*>(to) = numbers; }
  AGM_HOST_DEVICE void add_product(A weight, const Lanes& factor) { numbers += weight * factor.numbers; }
};
#else
template <typename A>
struct Lanes {
  static constexpr int kCount = 32 / static_cast<int>(sizeof(A));
  A numbers[kCount];

  AGM_HOST_DEVICE void clear() { std::fill_n(numbers, kCount, A(0)); }
  AGM_HOST_DEVICE void load(const A* from) { std::copy_n(from, kCount, numbers); }
  AGM_HOST_DEVICE void store(A* to) const { std::copy_n(numbers, kCount, to); }
  AGM_HOST_DEVICE void add_product(A weight, const Lanes& factor) {
    for (int i = 0; i < kCount; ++i) numbers[i] += weight * factor.numbers[i];
  }
};
#endif

// exp(x) for x <= 0 or NaN, to 2 units in the last place; 0 below the normal numbers.
AGM_HOST_DEVICE float exp_nonpositive(float x) {
  const float shifted = x * 1.44269504088896341f + 12582912.0f;  // the low bits are round(x / log 2)
  const float n = shifted - 12582912.0f;
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const float scale = bits_as<float>((bits_as<uint32_t>(shifted) + 127u) << 23);
  // A mask: where there is a choice, the compiler skips the polynomial by a branch and leaves the loop
  // scalar.
  return bits_as<float>(bits_as<uint32_t>(p * scale) & (0u - static_cast<uint32_t>(!(x < -87.0f))));
}
AGM_HOST_DEVICE double exp_nonpositive(double x) { return std::exp(x); }

}  // namespace agm
