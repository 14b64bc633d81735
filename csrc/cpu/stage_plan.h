// How the stages of a call are laid out in vectors, for the forward and the backward kernel.
//
// Stages of few channels are packed side by side into the lanes of a vector: those of one kernel size and dilation form
// a group, whose depthwise and pointwise weights become vectors of lanes. Lanes that are left take further images, so a
// single stage fills a vector as well. From more than half a vector of channels on, a group is one stage of one image.
// The groups that read one tile, the padded and rectified copy of a block of images, form a bundle: all of them where
// the stages share an input, otherwise each group is one, and its tile holds the inputs of its stages side by side.
#pragma once

#include "cpu/ahead.h"
#include "cpu/channels.h"
#include "cpu/vec.h"
#include "cpu/weave.h"
#include "ops/stage.h"

namespace fastnas::FASTNAS_ISA {

struct StageGroup {
  int first, size;  // stages order[first] … order[first + size - 1]
  int64_t kernel, dilation;
  int64_t weights;   // where its prepared weights begin
  int64_t gradient;  // where its part of a gradient begins

  int64_t taps() const { return kernel * kernel; }
  int64_t padding() const { return dilation * (kernel - 1) / 2; }
};

template <typename T>
struct StagePlan {
  using A = accumulate_t<T>;

  int64_t channels;  // C of a stage
  int64_t lanes;     // of a pixel in scratch memory
  bool packed;
  int slots;   // stages side by side, at most
  int copies;  // images side by side: a block
  int groups = 0, bundles = 0;
  StageGroup group[kMaxStages];
  int first_group[kMaxStages + 1];  // of each bundle
  int64_t padding[kMaxStages];      // of each bundle's tile
  int order[kMaxStages];
  int64_t weights = 0, gradient = 0;  // values in all

  explicit StagePlan(const Stage<T>& args) : channels(args.channels) {
    packed = 2 * channels <= kLanes<A>;
    lanes = packed ? kLanes<A> : padded<A>(channels);
    const int fit = packed ? static_cast<int>(lanes / channels) : 1;
    slots = 1;
    bool placed[kMaxStages] = {};
    int ordered = 0;
    for (int j = 0; j < args.stages; ++j) {
      if (placed[j]) continue;
      StageGroup& g = group[groups++];
      g = {ordered, 0, args.kernel[j], args.dilation[j], weights, gradient};
      for (int other = j; other < args.stages && g.size < fit; ++other) {
        if (placed[other] || args.kernel[other] != g.kernel || args.dilation[other] != g.dilation) continue;
        placed[other] = true;
        order[ordered++] = other;
        ++g.size;
      }
      slots = g.size > slots ? g.size : slots;
      weights += 2 * (g.taps() + channels) * lanes;
      gradient += (g.taps() + channels) * lanes;
    }
    copies = packed ? static_cast<int>(lanes / (channels * slots)) : 1;
    bundles = args.shared ? (groups > 0) : groups;
    for (int b = 0; b <= bundles; ++b) first_group[b] = args.shared && b > 0 ? groups : b;
    for (int b = 0; b < bundles; ++b) {
      padding[b] = 0;
      for (int g = first_group[b]; g < first_group[b + 1]; ++g) {
        padding[b] = group[g].padding() > padding[b] ? group[g].padding() : padding[b];
      }
    }
  }

  int64_t lane(int copy, int slot) const { return (copy * slots + slot) * channels; }
  /// use(stream, copy, stage) for everything that lies side by side in a vector, at the lane stream · C.
  template <typename F>
  void streams(const StageGroup& g, int images, const F& use) const {
    for (int copy = 0; copy < images; ++copy) {
      for (int s = 0; s < g.size; ++s) use(copy * slots + s, copy, order[g.first + s]);
    }
  }
  int64_t blocks(int64_t images) const { return (images + copies - 1) / copies; }
  /// Gradients of weights are summed in so many parts of the batch, whatever the number of threads.
  int64_t parts(int64_t images) const { return blocks(images) < 16 ? blocks(images) : 16; }

  // Prepared weights of a group, [.., lanes] each: depthwise [taps], the same turned by 180°, pointwise [inputs] of the
  // forward pass, pointwise [outputs] of the backward pass.
  const A* depthwise(const void* prepared, const StageGroup& g) const {
    return static_cast<const A*>(prepared) + g.weights;
  }
  const A* turned(const void* prepared, const StageGroup& g) const { return depthwise(prepared, g) + g.taps() * lanes; }
  const A* pointwise(const void* prepared, const StageGroup& g) const { return turned(prepared, g) + g.taps() * lanes; }
  const A* transposed(const void* prepared, const StageGroup& g) const {
    return pointwise(prepared, g) + channels * lanes;
  }
};

/// The padded copy of an image that a bundle reads.
struct StageTile {
  int64_t padding, columns, row, size;  // row: elements from one row to the next

  StageTile(int64_t padding, int64_t height, int64_t width, int64_t lanes)
      : padding(padding),
        columns(width + 2 * padding),
        row(columns * lanes),
        size((height + 2 * padding) * columns * lanes) {}

  /// Offset of the pixel (y, x) of the image.
  int64_t at(int64_t y, int64_t x, int64_t lanes) const { return (y + padding) * row + (x + padding) * lanes; }
};

namespace detail {

struct Rows {
  int64_t begin, end;
};

// SLOTS: their number where it is known at compile time, else 0.
template <int W, int SLOTS, typename T>
void stage_fill(const Stage<T>& args, int input, int64_t image, int64_t slot_count, int64_t lanes,
                const StageTile& tile, Rows rows, int64_t first, int64_t last, accumulate_t<T>* out) {
  using A = accumulate_t<T>;
  using R = Run<A, W>;
  const int64_t channels = args.channels, stride = args.x_stride[input], slots = SLOTS ? SLOTS : slot_count;
  const int64_t individual = image / (args.count / args.individuals);
  const A* mean = args.mean ? args.mean + (input * args.individuals + individual) * channels : nullptr;
  const A* rstd = args.mean ? args.rstd + (input * args.individuals + individual) * channels : nullptr;
  for (int64_t c = first; c < last; c += W) {
    const R shift = mean ? read<W, A>(mean + c) : R{}, scale = mean ? read<W, A>(rstd + c) : R{};
    for (int64_t y = rows.begin; y < rows.end; ++y) {
      const T* x = args.x[input] + (image * args.height + y) * args.width * stride + c;
      A* row = out + tile.at(y, 0, lanes) + c;
      const auto fill = [&](auto value_of) {
        for (int64_t p = 0; p < args.width; ++p) {
          const R value = value_of(read<W, A>(x + p * stride)), positive = value < 0 ? R{} : value;  // keeps NaN
          for (int64_t s = 0; s < slots; ++s) write<W, A>(row + p * lanes + s * channels, positive);
        }
      };
      if (mean) {
        fill([&](R value) { return (value - shift) * scale; });
      } else {
        fill([](R value) { return value; });
      }
    }
  }
}

}  // namespace detail

/// The rectified, normalised rows of input `input` go to `slots` places side by side in every pixel of the tile.
template <typename T>
void stage_fill(const Stage<T>& args, int input, int64_t image, int slots, int64_t lanes, const StageTile& tile,
                detail::Rows rows, accumulate_t<T>* out) {
  constexpr int kFour = kLanes<accumulate_t<T>> / 4;  // slots of four channels: one store for a pixel
  if (args.channels == 4 && slots == kFour)
    return detail::stage_fill<4, kFour>(args, input, image, slots, lanes, tile, rows, 0, 4, out);
  for_runs(args.channels, [&]<int W>(int64_t first, int64_t last) {
    detail::stage_fill<W, 0>(args, input, image, slots, lanes, tile, rows, first, last, out);
  });
}

/// Rows of the inputs of a bundle side by side in the tile, as far as whole vectors can be read; whether they can.
template <typename T>
bool stage_weave(const Stage<T>& args, const StagePlan<T>& plan, const StageGroup& group, int64_t image, int images,
                 const StageTile& tile, detail::Rows rows, accumulate_t<T>* out) {
  using A = accumulate_t<T>;
  const int64_t channels = args.channels, row = args.width * channels;
  for (int s = 0; s < group.size; ++s) {
    if (args.x_stride[plan.order[group.first + s]] != channels) return false;
  }
  return for_streams<A>(channels, args.width, [&]<int S>() {
    const T* x[S] = {};
    Vec<A> shift[S] = {}, scale[S] = {};
    plan.streams(group, images, [&](int stream, int copy, int stage) {
      x[stream] = args.x[stage] + (image + copy) * args.height * row;
      if (!args.mean) return;
      const int64_t individual = (image + copy) / (args.count / args.individuals);
      const int64_t at = (stage * args.individuals + individual) * channels;
      shift[stream] = repeated(args.mean + at, channels);
      scale[stream] = repeated(args.rstd + at, channels);
    });
    for (int64_t y = rows.begin; y < rows.end; ++y) {
      const auto values = [&](int s, int64_t p) {
        if (!x[s]) return Vec<A>{};
        Vec<A> value = read<kLanes<A>, A>(x[s] + y * row + p * channels);
        if (args.mean) value = (value - shift[s]) * scale[s];
        return value < 0 ? Vec<A>{} : value;  // keeps NaN
      };
      weave<S, A>(args.width, values, out + tile.at(y, 0, plan.lanes));
    }
  });
}

/// The tile of a bundle for some images, which gets its rows shortly before they are read. Its border is zero already.
template <typename T>
class StageFill {
 public:
  StageFill(const Stage<T>& args, const StagePlan<T>& plan, const StageTile& tile)
      : args_(args), plan_(plan), tile_(tile) {}

  void begin(int bundle, int64_t image, int images, accumulate_t<T>* out) {
    out_ = out;
    bundle_ = bundle;
    image_ = image;
    images_ = images;
    filled_ = 0;
  }

  /// All rows that a group reads for output rows before `end`.
  void reach(const StageGroup& group, int64_t end) {
    const int64_t rows = (end - 1) * args_.stride + group.padding() + 1;
    const int64_t reached = rows < args_.height ? rows : args_.height;
    if (reached <= filled_) return;
    fill({filled_, reached});
    filled_ = reached;
  }

  /// The pixels of as many rows as `count` output rows need from here on; behind the last there is the next image.
  void read_ahead(int64_t count, Ahead& ahead) const {
    const auto add = [&](int input, int64_t image) {
      const int64_t stride = args_.x_stride[input], row = args_.width * stride;
      if (plan_.packed && stride > args_.channels) return;  // most of the lines would be others'
      ahead.add(args_.x[input] + (image * args_.height + filled_) * row, count * args_.stride * row);
    };
    if (args_.shared) {
      for (int copy = 0; copy < images_; ++copy) add(0, image_ + copy);
      return;
    }
    plan_.streams(plan_.group[plan_.first_group[bundle_]], images_,
                  [&](int, int copy, int stage) { add(stage, image_ + copy); });
  }

 private:
  void fill(detail::Rows rows) {
    const StageGroup& group = plan_.group[plan_.first_group[bundle_]];
    if (!args_.shared && plan_.packed && stage_weave(args_, plan_, group, image_, images_, tile_, rows, out_)) return;
    for (int copy = 0; copy < images_; ++copy) {
      if (args_.shared) {
        stage_fill(args_, 0, image_ + copy, plan_.slots, plan_.lanes, tile_, rows, out_ + plan_.lane(copy, 0));
        continue;
      }
      for (int s = 0; s < group.size; ++s) {
        stage_fill(args_, plan_.order[group.first + s], image_ + copy, 1, plan_.lanes, tile_, rows,
                   out_ + plan_.lane(copy, s));
      }
    }
  }

  const Stage<T>& args_;
  const StagePlan<T>& plan_;
  const StageTile& tile_;
  accumulate_t<T>* out_ = nullptr;
  int bundle_ = 0, images_ = 0;
  int64_t image_ = 0, filled_ = 0;  // rows from the top
};

/// Rows of output pixels that are worked on together, so that their buffers stay in the first-level cache, but not so
/// few that the weights of wide stages are read for a handful of pixels.
template <typename A>
int64_t stage_block_rows(int64_t height, int64_t width, int64_t lanes) {
  constexpr int64_t kBytes = 8192, kPixels = 32;
  const int64_t fitting = kBytes / (width * lanes * static_cast<int64_t>(sizeof(A)));
  const int64_t least = (kPixels + width - 1) / width;
  const int64_t rows = fitting < least ? least : fitting;
  return rows > height ? height : rows;
}

}  // namespace fastnas::FASTNAS_ISA
