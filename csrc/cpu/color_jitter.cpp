// color_jitter: brightness, contrast, saturation and hue of uint8 images, with the rounding of Pillow and torchvision.
//
// Red, green and blue of a pixel meet in every step (grey value, hue), so interleaved channels would fill vectors
// badly: blocks of 256 pixels are spread into an array for each channel, on the stack, where the compiler turns the
// loop over pixels into vectors of floats; ops/color_jitter.h holds the formulas, which the CUDA kernel shares. They
// contain selections and no branches. Contrast needs the mean grey value of the brightened image first, so each image
// is read twice. This file is compiled without fused multiply-adds (CMakeLists.txt): every instruction set and a GPU
// give the same levels. A thread takes images.
#include "ops/color_jitter.h"

namespace fastnas::FASTNAS_ISA {
namespace {

// Pixels that are spread into one array a channel, so that the loops over them become vectors.
constexpr int64_t kBlock = 256;

struct Block {
  alignas(64) float r[kBlock], g[kBlock], b[kBlock];

  void read(const uint8_t* pixels, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      r[i] = pixels[3 * i];
      g[i] = pixels[3 * i + 1];
      b[i] = pixels[3 * i + 2];
    }
  }
  void write(uint8_t* pixels, int64_t count) const {
    for (int64_t i = 0; i < count; ++i) {
      pixels[3 * i] = static_cast<uint8_t>(r[i]);
      pixels[3 * i + 1] = static_cast<uint8_t>(g[i]);
      pixels[3 * i + 2] = static_cast<uint8_t>(b[i]);
    }
  }
};

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

float mean_grey(const uint8_t* image, int64_t pixels, float brightness) {
  int64_t sum = 0;
  Block block;
  for (int64_t begin = 0; begin < pixels; begin += kBlock) {
    const int64_t count = smaller(kBlock, pixels - begin);
    block.read(image + 3 * begin, count);
    int32_t of_block = 0;
    for (int64_t i = 0; i < count; ++i) {
      of_block += static_cast<int32_t>(grey_of(scaled({block.r[i], block.g[i], block.b[i]}, brightness)));
    }
    sum += of_block;
  }
  return static_cast<float>(static_cast<double>(sum) / static_cast<double>(pixels));
}

}  // namespace

void color_jitter(const ColorJitter& args, uint8_t* result, int64_t first, int64_t last) {
  Block block;
  for (int64_t image = first; image < last; ++image) {
    const float* factors = args.factors + 4 * image;
    const uint8_t* in = args.images + 3 * image * args.pixels;
    uint8_t* out = result + 3 * image * args.pixels;
    const float mean = mean_grey(in, args.pixels, factors[0]);
    for (int64_t begin = 0; begin < args.pixels; begin += kBlock) {
      const int64_t count = smaller(kBlock, args.pixels - begin);
      block.read(in + 3 * begin, count);
      for (int64_t i = 0; i < count; ++i) {
        const Rgb color = jittered({block.r[i], block.g[i], block.b[i]}, factors, mean);
        block.r[i] = color.r;
        block.g[i] = color.g;
        block.b[i] = color.b;
      }
      block.write(out + 3 * begin, count);
    }
  }
}

}  // namespace fastnas::FASTNAS_ISA
