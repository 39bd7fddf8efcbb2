// Several neighbouring numbers that are read or written at once.
#pragma once

#include <cstdint>
#include <cstring>

#include "launch.h"

namespace agm {

template <typename T, int Width>
struct alignas(sizeof(T) * Width) Pack {
  T value[Width];
};

template <typename T, int Width>
__device__ __forceinline__ Pack<T, Width> load(const T* source) {
  return *reinterpret_cast<const Pack<T, Width>*>(source);
}

template <int Bytes>
struct Word;
template <>
struct Word<16> {
  using type = uint4;
};
template <>
struct Word<8> {
  using type = uint2;
};
template <>
struct Word<4> {
  using type = unsigned;
};
template <>
struct Word<2> {
  using type = unsigned short;
};

// One store. An assignment of the pack is taken apart by nvcc 13.0 into one for each number.
template <typename T, int Width>
__device__ __forceinline__ void store(T* target, const Pack<T, Width>& pack) {
  using W = typename Word<sizeof(T) * Width>::type;
  W word;
  std::memcpy(&word, &pack, sizeof(word));
  __stwb(reinterpret_cast<W*>(target), word);
}

}  // namespace agm
