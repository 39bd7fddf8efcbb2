// The arithmetic that host and device share, without torch: reads lines "OP NUMBER ...", prints what each of
// them gives (test_compilers.py).
#include <cstdio>
#include <cstdlib>
#include <string>

#include "grids.h"
#include "modulate.h"
#include "philox.h"
#include "scale_gradients.h"

namespace {

double number() {
  char word[64];
  if (std::scanf("%63s", word) != 1) std::exit(1);
  return std::strtod(word, nullptr);
}

void print(double value) { std::printf("%.17g\n", value); }

template <typename T>
void scale() {
  const auto scale = static_cast<T>(number());
  print(static_cast<double>(agm::scale_gradient<T>(scale, static_cast<T>(number()))));
}

// Four logits, the softmax of each half on its own, then merged.
template <typename A>
void cost() {
  const auto cap = static_cast<A>(number());
  const int label = static_cast<int>(number());
  A logits[4];
  for (A& logit : logits) logit = static_cast<A>(number());
  agm::Softmax<A> halves[2];
  for (int i = 0; i < 4; ++i) halves[i / 2].merge({logits[i], A(1)});
  halves[0].merge(halves[1]);
  print(static_cast<double>(halves[0].cost(logits[label], cap)));
}

void weights() {
  const int modalities = static_cast<int>(number());
  for (unsigned subset = 1; subset < 1u << modalities; ++subset) {
    const int size = agm::subset_size(subset);
    for (int m = 0; m < modalities; ++m) {
      print((subset >> m & 1) != 0 ? agm::weight_inside(modalities, size)
                                   : agm::weight_outside(modalities, size));
    }
  }
}

void beats() {
  const double logit = number();
  const auto index = static_cast<int64_t>(number());
  const double target = number();
  print(agm::beats(logit, index, target, static_cast<int64_t>(number())));
}

void step() {
  agm::Settings settings{3, 0, 0, true};
  settings.alpha = number();
  settings.max_gap = number();
  double scores[3], running[3], coefficients[3];
  for (double& score : scores) score = number();
  for (double& score : running) score = number();
  agm::Modulation made[3];
  for (int m = 0; m < 3; ++m) made[m] = agm::modulation(scores, running, m, settings);
  for (const auto& own : made) print(own.ratio);
  for (const auto& own : made) print(own.reference_ratio);
  for (const auto& own : made) print(own.coefficient);
  for (int m = 0; m < 3; ++m) coefficients[m] = made[m].coefficient;
  for (unsigned subset = 1; subset < 8; ++subset) print(agm::subset_scale(coefficients, 3, subset));
}

void grid() {
  const auto blocks = static_cast<int64_t>(number()), most = static_cast<int64_t>(number());
  const auto resident = static_cast<int64_t>(number());
  print(static_cast<double>(agm::even_blocks(blocks, resident)));
  print(static_cast<double>(agm::parts_that_fill(blocks, most, resident)));
}

uint32_t word() { return static_cast<uint32_t>(number()); }

void philox() {
  agm::PhiloxBlock counter;
  for (uint32_t& own : counter.word) own = word();
  const uint32_t low = word();
  for (const uint32_t own : agm::philox(counter, {low, word()}).word) print(own);
}

// The low word of the seed, its high word, the stream, the block's low word, its high word.
void normals() {
  const uint64_t seed = word() | uint64_t{word()} << 32;
  const uint32_t stream = word();
  const uint64_t block = word() | uint64_t{word()} << 32;
  const auto key = agm::PhiloxKey::of(static_cast<int64_t>(seed));
  for (const float normal : agm::philox_normals(key, stream, block).value) print(normal);
}

template <typename A>
void rescale() {
  const auto coefficient = static_cast<A>(number());
  const auto gradient = static_cast<A>(number());
  const auto normal = static_cast<float>(number());
  const auto deviation = static_cast<A>(number());
  print(static_cast<double>(agm::rescale(coefficient, gradient)));
  print(static_cast<double>(agm::rescale(coefficient, gradient, normal, deviation)));
}

// The standard deviation of some numbers from the moments of every three of them, an empty share among them.
void deviation() {
  const int count = static_cast<int>(number());
  agm::Moments all;
  for (int begin = 0; begin < count; begin += 3) {
    agm::ShiftedSums sums;
    double pivot = 0;
    const int own = count - begin < 3 ? count - begin : 3;
    for (int i = 0; i < own; ++i) {
      const double value = number();
      if (i == 0) pivot = value;
      sums.add(value - pivot);
    }
    all.merge(sums.moments(own, pivot));
    all.merge(agm::ShiftedSums{}.moments(0, pivot));
  }
  print(all.noise_deviation());
}

}  // namespace

int main() {
  char word[32];
  while (std::scanf("%31s", word) == 1) {
    const std::string op = word;
    if (op == "scale_f") scale<float>();
    if (op == "scale_d") scale<double>();
    if (op == "cost_f") cost<float>();
    if (op == "cost_d") cost<double>();
    if (op == "weights") weights();
    if (op == "beats") beats();
    if (op == "step") step();
    if (op == "grid") grid();
    if (op == "philox") philox();
    if (op == "normals") normals();
    if (op == "rescale_f") rescale<float>();
    if (op == "rescale_d") rescale<double>();
    if (op == "deviation") deviation();
  }
}
