// augment_batch: from uint8 images to a normalised batch, cropped, flipped and with a hole cut out where drawn.
//
// A pixel's new value depends on its channel and its 256 levels only, so normalisation is a table [C, 256] in the type
// of the result, which stays in the first-level cache; a lookup and a store are all that is done for a value. Images
// are channels-last and each is read and written once, row by row. A row of the result is at most five stretches:
// frame, image, hole, image, frame. So crop, flip and cutout are the ends of these stretches and the direction in which
// the source is read, and no pixel is tested on its own. Lookups are scalar; the loop over 3 channels, or 1, is
// unrolled. A thread takes images.
#include "ops/augment_batch.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>

namespace fastnas::FASTNAS_ISA {
namespace {

// Writes parts of one row of an image. `Channels` is their number where the loop over them is unrolled, else 0.
template <typename T, int Channels>
struct Row {
  const uint8_t* source;  // [W, C], the row that is shown; null: a row of the frame
  T* target;              // [W, C]
  const T* table;         // [C, kLevels]
  int64_t first_shown;    // column of the target where the source begins; it ends `width` columns later
  int64_t width;
  int64_t channel_count;
  bool flip;

  int64_t channels() const { return Channels ? Channels : channel_count; }

  void write(int64_t begin, int64_t end) const {
    if (!source) return black(begin, end);
    const int64_t shown = std::clamp(first_shown, begin, end);
    const int64_t hidden = std::clamp(first_shown + width, begin, end);
    black(begin, shown);
    const int64_t C = channels();
    const uint8_t* in = source + (flip ? first_shown + width - 1 - shown : shown - first_shown) * C;
    const int64_t step = flip ? -C : C;
    T* out = target + shown * C;
    for (int64_t x = shown; x < hidden; ++x, in += step, out += C) {
      for (int64_t c = 0; c < C; ++c) out[c] = table[c * kLevels + in[c]];
    }
    black(hidden, end);
  }

  void cut(int64_t begin, int64_t end) const {
    std::fill(target + begin * channels(), target + end * channels(), T(0));
  }

 private:
  void black(int64_t begin, int64_t end) const {
    for (int64_t x = begin; x < end; ++x) {
      for (int64_t c = 0; c < channels(); ++c) target[x * channels() + c] = table[c * kLevels];
    }
  }
};

template <typename T, int Channels>
void images(const AugmentBatch<T>& args, T* result, int64_t first, int64_t last) {
  constexpr int32_t kNothing[kDraws] = {};
  const int64_t H = args.height, W = args.width, pitch = W * args.channels;
  for (int64_t b = first; b < last; ++b) {
    const uint8_t* image = args.images + (args.index ? args.index[b] : b) * H * pitch;
    const int32_t* draw = args.draws ? args.draws + b * kDraws : kNothing;
    const int64_t padding = args.draws ? args.padding : 0, cutout = args.draws ? args.cutout : 0;
    const int64_t down = draw[kTop] - padding, right = draw[kLeft] - padding;
    const int64_t hole_top = draw[kHoleRow] - cutout / 2, hole_left = draw[kHoleColumn] - cutout / 2;
    const int64_t hole_begin = std::clamp<int64_t>(hole_left, 0, W);
    const int64_t hole_end = std::clamp<int64_t>(hole_left + cutout, 0, W);
    for (int64_t y = 0; y < H; ++y) {
      const int64_t from = y + down;
      const Row<T, Channels> row{from >= 0 && from < H ? image + from * pitch : nullptr,
                                 result + (b * H + y) * pitch,
                                 args.table,
                                 draw[kFlip] ? right : -right,
                                 W,
                                 args.channels,
                                 draw[kFlip] != 0};
      if (y >= hole_top && y < hole_top + cutout) {
        row.write(0, hole_begin);
        row.cut(hole_begin, hole_end);
        row.write(hole_end, W);
      } else {
        row.write(0, W);
      }
    }
  }
}

}  // namespace

template <typename T>
void augment_batch(const AugmentBatch<T>& args, T* result, int64_t first, int64_t last) {
  if (args.channels == 3) return images<T, 3>(args, result, first, last);
  if (args.channels == 1) return images<T, 1>(args, result, first, last);
  images<T, 0>(args, result, first, last);
}

#define INSTANTIATE(T) template void augment_batch(const AugmentBatch<T>&, T*, int64_t, int64_t);
INSTANTIATE(double)
INSTANTIATE(float)
INSTANTIATE(c10::BFloat16)
INSTANTIATE(c10::Half)

}  // namespace fastnas::FASTNAS_ISA
