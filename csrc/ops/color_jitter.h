// color_jitter: brightness, contrast, saturation and hue of uint8 images, each with factors of its own.
//
// The steps are those of torchvision's functions, rounding down to whole levels between them included. CMakeLists.txt
// keeps compilers from contracting products and sums, so that all processors give the same levels.
#pragma once

#include <cstdint>

#include "cpu/isa.h"
#include "ops/host_device.h"

struct CUstream_st;

namespace fastnas {

struct ColorJitter {
  const uint8_t* images;  // [B, pixels, 3]
  const float* factors;   // [B, 4]: brightness, contrast, saturation; hue in turns
  int64_t count;          // B
  int64_t pixels;         // H · W
};

/// Red, green and blue as levels 0..255.
struct Rgb {
  float r, g, b;
};

static FASTNAS_HOST_DEVICE float whole_level(float level) {
  const float within = level > 255.0f ? 255.0f : level > 0.0f ? level : 0.0f;  // NaN, of huge factors, is 0
  return float(int(within));
}

static FASTNAS_HOST_DEVICE Rgb scaled(Rgb color, float factor) {
  return {whole_level(color.r * factor), whole_level(color.g * factor), whole_level(color.b * factor)};
}

static FASTNAS_HOST_DEVICE float grey_of(Rgb color) {
  return float(int(0.2989f * color.r + 0.587f * color.g + 0.114f * color.b));
}

/// `factor` of the color and the rest of `grey`.
static FASTNAS_HOST_DEVICE Rgb blended(Rgb color, float factor, float grey) {
  const float rest = grey * (1.0f - factor);
  return {whole_level(color.r * factor + rest), whole_level(color.g * factor + rest),
          whole_level(color.b * factor + rest)};
}

/// A channel of a color of this brightest and range of levels. `sixths` is its hue in sixths of a turn, moved on by the
/// place of the channel.
static FASTNAS_HOST_DEVICE float channel_of_hue(float brightest, float range, float sixths) {
  const float turns = sixths * (1.0f / 6.0f);
  const float place = sixths - 6.0f * float(int(turns));  // turns are positive
  const float ramp = place < 4.0f - place ? place : 4.0f - place;
  const float share = ramp < 0.0f ? 0.0f : ramp > 1.0f ? 1.0f : ramp;
  return whole_level((brightest - range * share) * (255.999f / 255.0f));
}

/// The hue turned by `turns`, -1/2..1/2.
static FASTNAS_HOST_DEVICE Rgb turned(Rgb color, float turns) {
  const float low = color.g < color.b ? color.g : color.b, high = color.g > color.b ? color.g : color.b;
  const float darkest = color.r < low ? color.r : low, brightest = color.r > high ? color.r : high;
  const float range = brightest - darkest, divisor = range > 0.0f ? range : 1.0f;
  // All three cases are computed and one is taken, so that loops over pixels become vectors.
  const float of_red = (color.g - color.b) / divisor;
  const float of_green = (color.b - color.r) / divisor + 2.0f;
  const float of_blue = (color.r - color.g) / divisor + 4.0f;
  const float of_others = color.g == brightest ? of_green : of_blue;
  const float sixths = (color.r == brightest ? of_red : of_others) + 6.0f * turns + 6.0f;
  return {channel_of_hue(brightest, range, sixths + 5.0f), channel_of_hue(brightest, range, sixths + 3.0f),
          channel_of_hue(brightest, range, sixths + 1.0f)};
}

/// All four changes; `mean` is the mean grey of the image after the first.
static FASTNAS_HOST_DEVICE Rgb jittered(Rgb color, const float* factors, float mean) {
  Rgb result = blended(scaled(color, factors[0]), factors[1], mean);
  result = blended(result, factors[2], grey_of(result));
  return turned(result, factors[3]);
}

}  // namespace fastnas

FASTNAS_CPU_VARIANTS(
    // Images first..last of B; result [B, pixels, 3].
    void color_jitter(const ColorJitter& args, uint8_t* result, int64_t first, int64_t last);)

namespace fastnas::cuda {

// All pointers are device memory. Asynchronous on `stream`; errors of the launch throw std::runtime_error.
void color_jitter(const ColorJitter& args, uint8_t* result, CUstream_st* stream);

}  // namespace fastnas::cuda
