// How work is shared out to the blocks of a grid. No CUDA here, so that any compiler can test it.
#pragma once

#include <algorithm>
#include <cstdint>

namespace agm {

inline int64_t rounds_of(int64_t blocks, int64_t resident) { return (blocks + resident - 1) / resident; }

// Blocks that run at once and go through `items`, all equally often but for the last items.
inline int64_t even_blocks(int64_t items, int64_t resident) {
  return items == 0 ? 0 : rounds_of(items, rounds_of(items, resident));
}

// In how many parts, at most `most`, the work of each of some blocks is shared out, so that the last blocks
// to run leave little of the device idle. The time is that of the rounds, each of which takes 1 / parts.
inline int64_t parts_that_fill(int64_t blocks, int64_t most, int64_t resident) {
  int64_t best = 1, best_rounds = rounds_of(blocks, resident);
  for (int64_t rounds = 1; rounds <= 3; ++rounds) {  // more would be many small blocks
    const int64_t parts = std::min(most, rounds * resident / blocks);
    const int64_t needed = rounds_of(blocks * parts, resident);
    if (parts > 0 && needed * best < best_rounds * parts) best = parts, best_rounds = needed;
  }
  return best;
}

}  // namespace agm
