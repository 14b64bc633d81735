// The input of `stage` on its way into a tile: normalised, rectified, and in the lanes of every member that reads it.
//
// A tile (padded_tile.h) holds a block of images for a tile group (stage_packing.h). A shared input is written once for
// each member, side by side in every pixel, so that a depthwise tap of all members is one aligned load. Inputs of their
// own go into the members' slots: by whole vectors where these are dense and fill them (interleave.h), otherwise in
// runs of channels. Rows are filled shortly before the first convolution that reads them, and are in the first-level
// cache when it does; a row that several groups of the tile group read is filled once.
#pragma once

#include "cpu/channels.h"
#include "cpu/interleave.h"
#include "cpu/padded_tile.h"
#include "cpu/periodic.h"
#include "cpu/prefetcher.h"
#include "cpu/stage_packing.h"

namespace fastnas::FASTNAS_ISA {
namespace detail {

struct RowRange {
  int64_t begin, end;
};

// MEMBERS: their number where it is known at compile time, else 0.
template <int W, int MEMBERS, typename T>
void fill_stage_rows(const Stage<T>& args, int input, int64_t image, int64_t member_count, const PaddedTile& tile,
                     RowRange rows, int64_t first, int64_t last, accumulate_t<T>* out) {
  using A = accumulate_t<T>;
  using R = Run<A, W>;
  const int64_t channels = args.channels, stride = args.x_stride[input], lanes = tile.lanes;
  const int64_t members = MEMBERS ? MEMBERS : member_count;
  const int64_t individual = image / (args.count / args.individuals);
  const A* mean = args.mean ? args.mean + (input * args.individuals + individual) * channels : nullptr;
  const A* rstd = args.mean ? args.rstd + (input * args.individuals + individual) * channels : nullptr;
  for (int64_t c = first; c < last; c += W) {
    const R shift = mean ? load_run<W, A>(mean + c) : R{}, scale = mean ? load_run<W, A>(rstd + c) : R{};
    for (int64_t y = rows.begin; y < rows.end; ++y) {
      const T* x = args.x[input] + (image * args.height + y) * args.width * stride + c;
      A* row = out + tile.at(y, 0) + c;
      const auto fill_row = [&](auto value_of) {
        for (int64_t p = 0; p < args.width; ++p) {
          const R value = value_of(load_run<W, A>(x + p * stride)), positive = value < 0 ? R{} : value;  // keeps NaN
          for (int64_t m = 0; m < members; ++m) store_run<W, A>(row + p * lanes + m * channels, positive);
        }
      };
      if (mean) {
        fill_row([&](R value) { return (value - shift) * scale; });
      } else {
        fill_row([](R value) { return value; });
      }
    }
  }
}

}  // namespace detail

/// Rows of input `input` go to `members` places side by side in every pixel of the tile.
template <typename T>
void fill_stage_rows(const Stage<T>& args, int input, int64_t image, int members, const PaddedTile& tile,
                     detail::RowRange rows, accumulate_t<T>* out) {
  using A = accumulate_t<T>;
  constexpr int kFour = kLanes<A> / 4;  // members of four channels: one store for a pixel
  if constexpr (kFour > 0) {
    if (args.channels == 4 && members == kFour)
      return detail::fill_stage_rows<4, kFour>(args, input, image, members, tile, rows, 0, 4, out);
  }
  for_runs<A>(args.channels, [&]<int W>(int64_t first, int64_t last) {
    detail::fill_stage_rows<W, 0>(args, input, image, members, tile, rows, first, last, out);
  });
}

/// Rows of the inputs of a group, interleaved, as far as whole vectors can be read; whether they can.
template <typename T>
bool interleave_stage_rows(const Stage<T>& args, const StagePacking<T>& packing, const StageGroup& group, int64_t image,
                           int images, const PaddedTile& tile, detail::RowRange rows, accumulate_t<T>* out) {
  using A = accumulate_t<T>;
  const int64_t channels = args.channels, row = args.width * channels;
  for (int m = 0; m < group.size; ++m) {
    if (args.x_stride[packing.order[group.first + m]] != channels) return false;
  }
  return with_slot_count<A>(channels, args.width, [&]<int S>() {
    const T* x[S] = {};
    Vec<A> shift[S] = {}, scale[S] = {};
    packing.for_slots(group, images, [&](int slot, int i, int stage) {
      x[slot] = args.x[stage] + (image + i) * args.height * row;
      if (!args.mean) return;
      const int64_t individual = (image + i) / (args.count / args.individuals);
      const int64_t at = (stage * args.individuals + individual) * channels;
      shift[slot] = repeated(args.mean + at, channels);
      scale[slot] = repeated(args.rstd + at, channels);
    });
    for (int64_t y = rows.begin; y < rows.end; ++y) {
      const auto values = [&](int s, int64_t p) {
        if (!x[s]) return Vec<A>{};
        Vec<A> value = load_run<kLanes<A>, A>(x[s] + y * row + p * channels);
        if (args.mean) value = (value - shift[s]) * scale[s];
        return value < 0 ? Vec<A>{} : value;  // keeps NaN
      };
      interleave<S, A>(args.width, values, out + tile.at(y, 0));
    }
  });
}

/// The tile of a tile group, which gets the rows of a block of images as they are needed. Its border is zero already.
template <typename T>
class StageTile {
 public:
  StageTile(const Stage<T>& args, const StagePacking<T>& packing, const PaddedTile& tile)
      : args_(args), packing_(packing), tile_(tile) {}

  /// From here on the tile at `out` is that of `images` images from `image` on; none of their rows is there yet.
  void begin(int tile_group, int64_t image, int images, accumulate_t<T>* out) {
    out_ = out;
    tile_group_ = tile_group;
    image_ = image;
    images_ = images;
    filled_ = 0;
  }

  /// Fills all rows that a group reads for output rows before `end`.
  void fill_until(const StageGroup& group, int64_t end) {
    const int64_t rows = (end - 1) * args_.stride + group.padding() + 1;
    const int64_t reached = rows < args_.height ? rows : args_.height;
    if (reached <= filled_) return;
    fill_rows({filled_, reached});
    filled_ = reached;
  }

  /// The pixels of as many rows as `count` output rows need from here on; after the last comes the next image.
  void prefetch(int64_t count, Prefetcher& prefetcher) const {
    const auto add = [&](int input, int64_t image) {
      const int64_t stride = args_.x_stride[input], width = args_.width;
      prefetcher.add_pixels(args_.x[input] + (image * args_.height + filled_) * width * stride, args_.channels, stride,
                            count * args_.stride * width);
    };
    if (args_.shared) {
      for (int i = 0; i < images_; ++i) add(0, image_ + i);
      return;
    }
    packing_.for_slots(packing_.group[packing_.first_group[tile_group_]], images_,
                       [&](int, int i, int stage) { add(stage, image_ + i); });
  }

 private:
  void fill_rows(detail::RowRange rows) {
    const StageGroup& group = packing_.group[packing_.first_group[tile_group_]];
    if (!args_.shared && packing_.packed &&
        interleave_stage_rows(args_, packing_, group, image_, images_, tile_, rows, out_)) {
      return;
    }
    for (int i = 0; i < images_; ++i) {
      if (args_.shared) {
        fill_stage_rows(args_, 0, image_ + i, packing_.members, tile_, rows, out_ + packing_.lane(i, 0));
        continue;
      }
      for (int m = 0; m < group.size; ++m) {
        fill_stage_rows(args_, packing_.order[group.first + m], image_ + i, 1, tile_, rows, out_ + packing_.lane(i, m));
      }
    }
  }

  const Stage<T>& args_;
  const StagePacking<T>& packing_;
  const PaddedTile& tile_;
  accumulate_t<T>* out_ = nullptr;
  int tile_group_ = 0, images_ = 0;
  int64_t image_ = 0, filled_ = 0;  // rows from the top
};

}  // namespace fastnas::FASTNAS_ISA
