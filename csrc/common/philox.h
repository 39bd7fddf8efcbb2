// Random numbers by counter, for host and device: agm/ops/reference/scale_gradients.py is the specification.
#pragma once

#include <cstdint>

#include "arithmetic.h"

namespace agm {

struct PhiloxKey {
  uint32_t low, high;

  AGM_HOST_DEVICE static PhiloxKey of(int64_t seed) {
    const auto bits = static_cast<uint64_t>(seed);
    return {static_cast<uint32_t>(bits), static_cast<uint32_t>(bits >> 32)};
  }
};

struct PhiloxBlock {
  uint32_t word[4];
};

template <int Rounds>
AGM_HOST_DEVICE PhiloxBlock philox_rounds(PhiloxBlock counter, PhiloxKey key) {
  if constexpr (Rounds == 0) {
    return counter;
  } else {
    const uint64_t low = uint64_t{counter.word[0]} * 0xD2511F53u;
    const uint64_t high = uint64_t{counter.word[2]} * 0xCD9E8D57u;
    const PhiloxBlock next{
        {static_cast<uint32_t>(high >> 32) ^ counter.word[1] ^ key.low, static_cast<uint32_t>(high),
         static_cast<uint32_t>(low >> 32) ^ counter.word[3] ^ key.high, static_cast<uint32_t>(low)}};
    return philox_rounds<Rounds - 1>(next, {key.low + 0x9E3779B9u, key.high + 0xBB67AE85u});
  }
}

// Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).
AGM_HOST_DEVICE PhiloxBlock philox(const PhiloxBlock& counter, PhiloxKey key) {
  return philox_rounds<10>(counter, key);
}

// log(x) for normal x in (0, 1], to 2 units in the last place; free of branches, so that loops become
// vectors.
AGM_HOST_DEVICE float log_of_uniform(float x) {
  constexpr uint32_t kRootHalf = 0x3f3504f3u;  // the mantissa is brought into [sqrt(1/2), sqrt(2))
  const uint32_t above = bits_as<uint32_t>(x) - kRootHalf;
  const auto exponent = static_cast<float>(static_cast<int32_t>(above) >> 23);
  const float r = bits_as<float>((above & 0x7fffffu) + kRootHalf) - 1.0f;
  const float square = r * r;
  float p = 7.0376836292e-2f;
  p = p * r - 1.1514610310e-1f;
  p = p * r + 1.1676998740e-1f;
  p = p * r - 1.2420140846e-1f;
  p = p * r + 1.4249322787e-1f;
  p = p * r - 1.6668057665e-1f;
  p = p * r + 2.0000714765e-1f;
  p = p * r - 2.4999993993e-1f;
  p = p * r + 3.3333331174e-1f;
  const float tail = (p * r * square - exponent * 2.12194440e-4f) - 0.5f * square;
  return exponent * 0.693359375f + (r + tail);
}

struct SineCosine {
  float sine, cosine;
};

// Of angles in [0, 2 pi], to 1e-7. On a device std::sin would carry the reduction of large angles with it.
AGM_HOST_DEVICE SineCosine sine_cosine(float angle) {
  const float shifted = angle * 0.636619772367581f + 12582912.0f;  // the low bits are round(angle / (pi / 2))
  const float n = shifted - 12582912.0f;
  const uint32_t quadrant = bits_as<uint32_t>(shifted);
  const float r = ((angle - n * 1.5703125f) - n * 4.83751296997e-4f) - n * 7.549789948768648e-8f;
  const float square = r * r;
  float s = -1.9515295891e-4f;
  s = s * square + 8.3321608736e-3f;
  s = s * square - 1.6666654611e-1f;
  s = s * square * r + r;
  float c = 2.443315711809948e-5f;
  c = c * square - 1.388731625493765e-3f;
  c = c * square + 4.166664568298827e-2f;
  c = c * square * square - 0.5f * square + 1.0f;
  const bool swapped = (quadrant & 1) != 0;
  const uint32_t sine_sign = (quadrant & 2) << 30;
  const uint32_t cosine_sign = ((quadrant + 1) & 2) << 30;
  return {bits_as<float>(bits_as<uint32_t>(swapped ? c : s) ^ sine_sign),
          bits_as<float>(bits_as<uint32_t>(swapped ? s : c) ^ cosine_sign)};
}

struct Normals {
  float value[4];
};

// Two normal numbers from two words.
AGM_HOST_DEVICE void box_muller(uint32_t first, uint32_t second, float& cosine, float& sine) {
  // Through signed integers, whose conversion every processor has for vectors.
  const float uniform = (static_cast<float>(static_cast<int32_t>(first >> 8)) + 0.5f) * 0x1p-24f;
  const float angle = static_cast<float>(static_cast<int32_t>(second >> 8)) * 3.7450704e-7f;  // 2 pi / 2**24
  const float radius = std::sqrt(-2.0f * log_of_uniform(uniform));
  const SineCosine at = sine_cosine(angle);
  cosine = radius * at.cosine;
  sine = radius * at.sine;
}

// Normal numbers 4 * block to 4 * block + 3 of a stream.
AGM_HOST_DEVICE Normals philox_normals(PhiloxKey key, uint32_t stream, uint64_t block) {
  const PhiloxBlock random =
      philox({{static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32), stream, 0}}, key);
  Normals normals;
  box_muller(random.word[0], random.word[1], normals.value[0], normals.value[1]);
  box_muller(random.word[2], random.word[3], normals.value[2], normals.value[3]);
  return normals;
}

}  // namespace agm
