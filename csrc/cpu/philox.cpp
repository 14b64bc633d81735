// philox: four random 32-bit words for each position of a stream, by the counter-based generator Philox 4×32-10.
//
// A word depends on key, stream and position only: any thread may draw any position, and what an image gets does not
// depend on the batch, the worker or the device that it is drawn on. The ten rounds are in ops/philox.h, which the CUDA
// kernel shares. One position is one chain of multiplications, positions are independent of each other; a batch has a
// few hundred of them, so the loop is plain and the words of a position are stored side by side [positions, 4], as
// 64-bit integers, which is the type that torch computes with. A thread takes a range of positions.
#include "ops/philox.h"

namespace fastnas::FASTNAS_ISA {

void philox(const Philox& args, int64_t* words, int64_t first, int64_t last) {
  for (int64_t i = first; i < last; ++i) {
    const PhiloxWords drawn = philox_words(args.key, args.stream, args.positions[i]);
    for (int j = 0; j < 4; ++j) words[4 * i + j] = drawn.values[j];
  }
}

}  // namespace fastnas::FASTNAS_ISA
