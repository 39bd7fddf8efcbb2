// The arithmetic of the rescaling of gradients, for host and device: agm/ops/reference/scale_gradients.py is
// the specification.
#pragma once

#include <cstdint>

#include "arithmetic.h"

namespace agm {

template <typename A>
AGM_HOST_DEVICE A rescale(A coefficient, A gradient) {
  return coefficient * gradient;
}

template <typename A>
AGM_HOST_DEVICE A rescale(A coefficient, A gradient, float normal, A deviation) {
  return multiply_add(static_cast<A>(normal), deviation, coefficient * gradient);
}

// Count, mean and sum of squared deviations of some numbers.
struct Moments {
  double count = 0;
  double mean = 0;
  double squares = 0;

  AGM_HOST_DEVICE void merge(const Moments& other) {
    if (other.count == 0) return;
    if (count == 0) {
      *this = other;
      return;
    }
    const double difference = other.mean - mean;
    const double share = other.count / (count + other.count);
    mean += difference * share;
    squares += other.squares + difference * difference * (count * share);
    count += other.count;
  }

  // What is added to k g is a normal number times this.
  AGM_HOST_DEVICE double noise_deviation() const {
    return (count > 1 ? std::sqrt(squares / (count - 1)) : 0) + 1e-8;
  }
};

// Sums of x - pivot and of its square. With one of the numbers as the pivot no digits are lost, however far
// they all are from 0: what cancels, the square of the pivot's own deviation, is at most `count` times the
// variance.
struct ShiftedSums {
  double sum = 0;
  double squares = 0;

  AGM_HOST_DEVICE void add(double shifted) {
    sum += shifted;
    squares += shifted * shifted;
  }

  AGM_HOST_DEVICE Moments moments(double count, double pivot) const {
    if (count == 0) return {};
    const double mean = sum / count;
    const double left = squares - sum * mean;
    return {count, pivot + mean, left < 0 ? 0 : left};  // rounding can make it negative; NaN stays
  }
};

}  // namespace agm
