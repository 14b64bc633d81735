#include "ops/philox.h"

namespace fastnas::FASTNAS_ISA {

void philox(const Philox& args, int64_t* words, int64_t first, int64_t last) {
  for (int64_t i = first; i < last; ++i) {
    const PhiloxWords drawn = philox_words(args.key, args.stream, args.positions[i]);
    for (int j = 0; j < 4; ++j) words[4 * i + j] = drawn.values[j];
  }
}

}  // namespace fastnas::FASTNAS_ISA
