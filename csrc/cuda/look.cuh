// What one thread finds in its classes of one sample: softmax of every response, and who beats the label.
#pragma once

#include "../common/cross_entropy.h"
#include "../common/modulate.h"
#include "pack.cuh"

namespace agm {
namespace {

// Classes that a thread loads from each subset at once: 16 bytes, or fewer where many subsets keep the memory
// busy anyway and would not leave registers for more.
template <typename T, int M, bool Loss>
constexpr int kWidth = sizeof(T) == 8 || M > 4                        ? 1
                       : M == 4 || (M == 3 && Loss && sizeof(T) == 2) ? 8 / static_cast<int>(sizeof(T))
                                                                      : 16 / static_cast<int>(sizeof(T));

template <typename T>
struct MaskedLogits {
  const T* data;
  int64_t batch, classes;
  int64_t row_stride;    // from subset to subset
  int64_t batch_stride;  // from sample to sample
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
__device__ Softmax<A> shuffle(unsigned mask, const Softmax<A>& softmax, int distance) {
  return {__shfl_xor_sync(mask, softmax.largest, distance), __shfl_xor_sync(mask, softmax.sum, distance)};
}

// What `lanes` neighbouring threads saw, in each of them; `lanes` is a power of two, and `mask` those of the
// warp.
template <typename A, int M, bool Loss>
__device__ __forceinline__ void merge_lanes(Seen<A, M, Loss>& seen, int lanes, unsigned mask) {
#pragma unroll 1
  for (int distance = lanes / 2; distance > 0; distance /= 2) {
    Seen<A, M, Loss> other;
#pragma unroll
    for (int m = 0; m < M; ++m) other.softmax[m] = shuffle(mask, seen.softmax[m], distance);
    other.beaten = __shfl_xor_sync(mask, seen.beaten, distance);
    if constexpr (Loss) {
      other.joint = shuffle(mask, seen.joint, distance);
      other.spread = __shfl_xor_sync(mask, seen.spread, distance);
    }
    seen.merge(other);
  }
}

// Responses of Width classes from `logits` on, times kResponseScale, and the joint logits of the same. With
// Exact, a class of which a logit is -inf has responses of -inf if its other logits are finite; without, they
// are NaN, or all -inf, or some +inf.
template <typename T, int M, int Width, bool Exact, typename A = accumulate_t<T>>
__device__ __forceinline__ void load_responses(const T* __restrict__ logits, int64_t row_stride,
                                               A (&response)[M][Width], A (&joint)[Width]) {
  constexpr int kRows = (1 << M) - 1;
  constexpr Weights<A, M> kWeights{kResponseScale};
  bool impossible[Width] = {};
#pragma unroll
  for (int m = 0; m < M; ++m) {
#pragma unroll
    for (int i = 0; i < Width; ++i) response[m][i] = A(0);
  }
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    const auto pack = load<T, Width>(logits + row * row_stride);
#pragma unroll
    for (int i = 0; i < Width; ++i) {
      A logit = static_cast<A>(pack.value[i]);
      if (row == kRows - 1) joint[i] = logit;
      if constexpr (Exact) {
        impossible[i] |= logit == -kInfinity<A>;
        logit = logit == -kInfinity<A> ? A(0) : logit;
      }
#pragma unroll
      for (int m = 0; m < M; ++m) {
        response[m][i] = multiply_add(kWeights.of[row][m], logit, response[m][i]);
      }
    }
  }
  if constexpr (Exact) {
#pragma unroll
    for (int i = 0; i < Width; ++i) {
#pragma unroll
      for (int m = 0; m < M; ++m) {
        const bool finite = response[m][i] - response[m][i] == A(0);
        response[m][i] = impossible[i] && finite ? -kInfinity<A> : response[m][i];
      }
    }
  }
}

constexpr int kUnscale = static_cast<int>(1 / kResponseScale);

// A softmax on its way: `sum` is relative to 2 ** top, and top is the largest number times Factor * log2(e),
// rounded. What is no number, or infinitely large, makes the sum NaN; so does -inf before a number came.
template <typename A, int Factor>
struct Running {
  static constexpr A kExponent = Factor * kLog2E<A>;
  A largest = -kInfinity<A>;
  A top = -kInfinity<A>;
  A sum = 0;

  // Takes Width more numbers.
  template <int Width>
  __device__ __forceinline__ void add(const A (&numbers)[Width]) {
#pragma unroll
    for (int i = 0; i < Width; ++i) largest = fmax(largest, numbers[i]);
    const A shift = largest * kExponent;
    sum *= power_of_two(top - shift);
    top = shift;
#pragma unroll
    for (int i = 0; i < Width; ++i) sum += power_of_two(multiply_add(numbers[i], kExponent, -top));
  }

  // Of the numbers times Factor. A number that cannot be stored makes the sum NaN.
  __device__ __forceinline__ Softmax<A> softmax() const {
    if (sum == A(0)) return {};
    const A whole = largest * Factor;
    const A own = sum * power_of_two(-multiply_add(largest, kExponent, -top));
    return {whole, whole == kInfinity<A> ? kNotANumber<A> : own};
  }
};

// The classes of one sample that a group of threads looks at, numbered by as few bits as will do. Those from
// `first` to `last` are packs of Width neighbours, aligned in the logits of every subset; the others, of
// which there are none without Peel, are loaded one by one.
template <typename Index>
struct Classes {
  Index begin, first, last, end;
};

// Share `share` of the `shares` of a sample's classes, cut into packs of Width where they lie aligned.
template <bool Peel, int Width, typename Index, typename T>
__device__ __forceinline__ Classes<Index> classes_of(const MaskedLogits<T>& masked, const T* logits,
                                                     unsigned share, unsigned shares) {
  const auto count = static_cast<Index>(masked.classes);
  const Index size = (count / Width + static_cast<Index>(shares) - 1) / static_cast<Index>(shares) * Width;
  if constexpr (!Peel) {
    const Index begin = static_cast<Index>(share) * size;
    const Index end = begin + size < count ? begin + size : count;
    return {begin, begin, end, end};
  }
  // Packs are aligned alike in all subsets, or they are loaded class by class.
  const bool packed = masked.row_stride % Width == 0;
  const auto beyond = static_cast<unsigned>(reinterpret_cast<uintptr_t>(logits) / sizeof(T)) % Width;
  Index head = packed ? static_cast<Index>((Width - beyond) % Width) : 0;
  if (head > count) head = count;
  Index begin = head + static_cast<Index>(share) * size, end = begin + size;
  if (begin > count) begin = count;
  if (end > count || share == shares - 1) end = count;
  const Index first = packed ? begin : end;
  if (share == 0) begin = 0;
  return {begin, first, first + (end - first) / Width * Width, end};
}

// What a thread knows on its way from the first of its classes to the last.
template <typename A, int M>
struct Progress {
  Running<A, kUnscale> responses[M];
  Running<A, 1> joint;
  unsigned beaten = 0;
  A spread = 0;
};

// Classes begin, begin + stride ... , Width at a time; `end - begin` is a multiple of Width or negative, and
// `stride` of Width, by a power of two. What is found is wrong where a sum is NaN.
//
// A class beats the label if it is larger, or as large and before it. So the largest of all classes and the
// largest of those before the label tell, and the loop compares nothing.
template <typename T, int M, int Width, bool Loss, typename Index, typename A = accumulate_t<T>>
__device__ __forceinline__ void advance(const T* __restrict__ logits, int64_t row_stride, Index begin,
                                        Index end, Index stride, Index label, const A (&target)[M + 1],
                                        const LossSettings<A>& loss, Progress<A, M>& progress) {
  Index at = begin;
#pragma unroll 1
  for (int after = 0; after < 2; ++after) {
    const Index before_label = label - Width + 1 < end ? label - Width + 1 : end;
    const Index stop = after ? end : before_label;
#pragma unroll 1
    for (; at < stop; at += stride) {
      A response[M][Width], joint[Width];
      load_responses<T, M, Width, false>(logits + at, row_stride, response, joint);
#pragma unroll
      for (int m = 0; m < M; ++m) progress.responses[m].add(response[m]);
      if constexpr (Loss) {
        progress.joint.add(joint);
        if (loss.label_smoothing > 0) {
#pragma unroll
          for (int i = 0; i < Width; ++i) {
            progress.spread += loss.weight_in(at + i) * scaled_difference(target[M], joint[i]);
          }
        }
      } else {
#pragma unroll
        for (int i = 0; i < Width; ++i) progress.joint.largest = fmax(progress.joint.largest, joint[i]);
      }
    }
    if (after || at > begin) {
#pragma unroll
      for (int m = 0; m <= M; ++m) {
        const A largest = m == M ? progress.joint.largest : progress.responses[m < M ? m : 0].largest;
        progress.beaten |= static_cast<unsigned>(after ? largest > target[m] : largest >= target[m]) << m;
      }
    }
  }
  if constexpr (Width > 1) {  // those before the label in its own pack
    const Index pack = label - ((label - begin) & (Width - 1));
    if (pack >= begin && pack < end && ((pack - begin) & (stride - 1)) == 0) {
#pragma unroll 1
      for (Index c = pack; c < label; ++c) {
        A response[M][1], joint[1];
        load_responses<T, M, 1, false>(logits + c, row_stride, response, joint);
#pragma unroll
        for (int m = 0; m < M; ++m) {
          progress.beaten |= static_cast<unsigned>(response[m][0] >= target[m]) << m;
        }
        progress.beaten |= static_cast<unsigned>(joint[0] >= target[M]) << M;
      }
    }
  }
}

// The classes of thread `thread` of `threads`, a power of two, from the first to the last. What is found is
// wrong where a sum is NaN.
template <typename T, int M, int Width, bool Peel, bool Loss, typename Index, typename A = accumulate_t<T>>
__device__ __forceinline__ Seen<A, M, Loss> look_at_numbers(const T* __restrict__ logits, int64_t row_stride,
                                                            const Classes<Index>& classes, Index thread,
                                                            Index threads, Index label,
                                                            const A (&target)[M + 1],
                                                            const LossSettings<A>& loss) {
  Progress<A, M> progress;
#pragma unroll 1
  for (int behind = 0; behind < (Peel ? 2 : 1); ++behind) {
    if constexpr (Peel) {
      const Index begin = behind ? classes.last : classes.begin, end = behind ? classes.end : classes.first;
      advance<T, M, 1, Loss>(logits, row_stride, begin + thread, end, threads, label, target, loss, progress);
      if (behind) break;
    }
    advance<T, M, Width, Loss>(logits, row_stride, classes.first + thread * Width, classes.last,
                               threads * Width, label, target, loss, progress);
  }
  Seen<A, M, Loss> seen;
  seen.beaten = progress.beaten;
#pragma unroll
  for (int m = 0; m < M; ++m) seen.softmax[m] = progress.responses[m].softmax();
  if constexpr (Loss) {
    seen.joint = progress.joint.softmax();
    seen.spread = progress.spread;
  }
  return seen;
}

template <typename A>
__device__ void add_number(Softmax<A>& softmax, A number) {
  const A largest = number > softmax.largest ? number : softmax.largest;
  const A shift = Softmax<A>::shift(largest);
  softmax.sum = softmax.sum * exponential(softmax.largest - shift) + exponential(number - shift);
  softmax.largest = largest;
}

// The same with every rule for what is no number: rare, and slow.
template <typename T, int M, int Width, bool Peel, bool Loss, typename Index, typename A = accumulate_t<T>>
__device__ __forceinline__ Seen<A, M, Loss> look_exactly(const T* __restrict__ logits, int64_t row_stride,
                                                         const Classes<Index>& classes, Index thread,
                                                         Index threads, Index label, const A (&target)[M + 1],
                                                         const LossSettings<A>& loss) {
  Seen<A, M, Loss> seen;
  constexpr int kParts = Peel ? 3 : 1;
#pragma unroll 1
  for (int part = 0; part < kParts; ++part) {
    const bool packs = !Peel || part == 1;
    const Index width = packs ? Width : 1;
    const Index begin = packs ? classes.first : (part == 0 ? classes.begin : classes.last);
    const Index end = packs ? classes.last : (part == 0 ? classes.first : classes.end);
#pragma unroll 1
    for (Index pack = begin + thread * width; pack < end; pack += threads * width) {
#pragma unroll 1
      for (Index at = pack; at < pack + width; ++at) {
        A response[M][1], joint[1];
        load_responses<T, M, 1, true>(logits + at, row_stride, response, joint);
#pragma unroll
        for (int m = 0; m < M; ++m) {
          add_number(seen.softmax[m], response[m][0] * kUnscale);
          seen.beaten |= static_cast<unsigned>(beats(response[m][0], at, target[m], label)) << m;
        }
        seen.beaten |= static_cast<unsigned>(beats(joint[0], at, target[M], label)) << M;
        if constexpr (Loss) {
          add_number(seen.joint, joint[0]);
          if (loss.label_smoothing > 0) {
            seen.spread += loss.weight_in(at) * scaled_difference(target[M], joint[0]);
          }
        }
      }
    }
  }
  return seen;
}

// The classes of one thread. `target` is what `read_target` gives.
template <typename T, int M, int Width, bool Peel, bool Loss, typename Index, typename A = accumulate_t<T>>
__device__ __forceinline__ Seen<A, M, Loss> look(const T* __restrict__ logits, int64_t row_stride,
                                                 const Classes<Index>& classes, Index thread, Index threads,
                                                 Index label, const A (&target)[M + 1],
                                                 const LossSettings<A>& loss) {
  auto seen = look_at_numbers<T, M, Width, Peel, Loss>(logits, row_stride, classes, thread, threads, label,
                                                       target, loss);
  bool odd = false;
#pragma unroll
  for (int m = 0; m < M; ++m) odd |= seen.softmax[m].sum != seen.softmax[m].sum;
  if (odd) {
    seen = look_exactly<T, M, Width, Peel, Loss>(logits, row_stride, classes, thread, threads, label, target,
                                                 loss);
  }
  return seen;
}

// The responses of the label, times kResponseScale, and its joint logit; whether it exists.
template <typename T, int M>
__device__ bool read_target(const MaskedLogits<T>& masked, const T* logits, int64_t label,
                            accumulate_t<T> (&target)[M + 1]) {
  if (label < 0 || label >= masked.classes) return false;
  accumulate_t<T> response[M][1], joint[1];
  load_responses<T, M, 1, true>(logits + label, masked.row_stride, response, joint);
#pragma unroll
  for (int m = 0; m < M; ++m) target[m] = response[m][0];
  target[M] = joint[0];
  return true;
}

}  // namespace
}  // namespace agm
