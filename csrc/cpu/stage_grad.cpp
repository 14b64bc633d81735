// stage, backward: the gradients of inputs and of both weights, and the sums that the inputs' BatchNorm needs.
//
// As in the forward pass, a thread takes blocks of images and a tile group, rebuilds the padded tile of the input and
// then works on some rows of outputs at a time, all in the lanes of stage_packing.h. The gradient of y (with
// BatchNorm's backward applied as it is read) times the transposed matrix is that of z, which gets a bordered tile of
// its own; z itself is computed again, so that no forward pass has to store it. From the two come the gradients of the
// weights, and a convolution of z's gradient with the flipped kernel gives the input's, row by row, as soon as all rows
// that go into it are there. Each block of images adds to one of at most 16 parts of the weights' gradients; they are
// merged in a fixed order, so results do not depend on the number of threads.
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <optional>

#include "cpu/bn_backward.h"
#include "cpu/depthwise.h"
#include "cpu/packed.h"
#include "cpu/pointwise.h"
#include "cpu/scratch_arena.h"
#include "cpu/stage_packing.h"
#include "cpu/stage_tile.h"
#include "ops/stage.h"

namespace fastnas::FASTNAS_ISA {
namespace {

// The gradient of `pixels` output pixels of a stage, into the lanes of its slot.
template <typename T>
void copy_gradient(const Stage<T>& args, const StageGrads<T>& grads, int stage, int64_t pixel, int64_t pixels,
                   int64_t lanes, accumulate_t<T>* out) {
  using A = accumulate_t<T>;
  const int64_t channels = args.channels, stride = grads.grad_stride[stage];
  const T* grad = grads.grad[stage] + pixel * stride;
  if (!grads.bn_coeffs) return copy_pixels<A>(grad, stride, pixels, channels, out, lanes);
  const int64_t y_stride = grads.y_stride[stage];
  const T* y = grads.y[stage] + pixel * y_stride;
  const A* bn_coeffs = grads.bn_coeffs + stage * 4 * channels;
  for_runs<A>(channels, [&]<int W>(int64_t first, int64_t last) {
    for (int64_t c = first; c < last; c += W) {
      const auto bn_backward = load_bn_backward<W>(bn_coeffs, channels, c);
      for (int64_t p = 0; p < pixels; ++p) {
        const Run<A, W> dy = load_run<W, A>(grad + p * stride + c), value = load_run<W, A>(y + p * y_stride + c);
        store_run<W, A>(out + p * lanes + c, bn_backward(dy, value));
      }
    }
  });
}

// The gradients of all stages of a group, interleaved, as far as whole vectors can be read; whether they can.
template <typename T>
bool interleave_gradients(const Stage<T>& args, const StageGrads<T>& grads, const StagePacking<T>& packing,
                          const StageGroup& group, int images, int64_t pixel, int64_t pixels, accumulate_t<T>* out) {
  using A = accumulate_t<T>;
  const int64_t channels = packing.channels, image_pixels = args.out_height * args.out_width;
  for (int m = 0; m < group.size; ++m) {
    const int stage = packing.order[group.first + m];
    if (grads.grad_stride[stage] != channels) return false;
    if (grads.bn_coeffs && grads.y_stride[stage] != channels) return false;
  }
  return with_slot_count<A>(channels, pixels, [&]<int S>() {
    const T *grad[S] = {}, *y[S] = {};
    BnBackward<Vec<A>> bn_backward[S] = {};
    packing.for_slots(group, images, [&](int slot, int i, int stage) {
      grad[slot] = grads.grad[stage] + (pixel + i * image_pixels) * channels;
      if (!grads.bn_coeffs) return;
      y[slot] = grads.y[stage] + (pixel + i * image_pixels) * channels;
      const A* table = grads.bn_coeffs + stage * 4 * channels;
      bn_backward[slot] = {repeated(table, channels), repeated(table + channels, channels),
                           repeated(table + 2 * channels, channels), repeated(table + 3 * channels, channels)};
    });
    const auto values = [&](int s, int64_t p) {
      if (!grad[s]) return Vec<A>{};
      const Vec<A> dy = load_run<kLanes<A>, A>(grad[s] + p * channels);
      if (!y[s]) return dy;
      return bn_backward[s](dy, load_run<kLanes<A>, A>(y[s] + p * channels));
    };
    interleave<S, A>(pixels, values, out);
  });
}

// Rectifies the gradient of one row of the tile in place: it passes where the input was positive. Adds to sums [2,
// lanes] of dy and of dy · x̂ where asked: a rectified x̂ will do, as it is x̂ wherever dy is not zero.
template <typename A>
void rectify_row(const A* x, int64_t lanes, int64_t pixels, A* grad, double* sums) {
  constexpr int kUnroll = 4;  // hides the latency of an addition
  for (int64_t c = 0; c < lanes; c += kLanes<A>) {
    Vec<A> sum_dy[kUnroll] = {}, sum_dy_xhat[kUnroll] = {};
    const auto pixel = [&](int64_t p, int u) {
      const Vec<A> xhat = load(x + p * lanes + c);
      const Vec<A> dy = xhat <= 0 ? Vec<A>{} : load(grad + p * lanes + c);  // keeps NaN, as torch's ReLU does
      store(grad + p * lanes + c, dy);
      sum_dy[u] += dy;
      sum_dy_xhat[u] += dy * xhat;
    };
    int64_t p = 0;
    for (; p + kUnroll <= pixels; p += kUnroll) {
      for (int u = 0; u < kUnroll; ++u) pixel(p + u, u);
    }
    for (; p < pixels; ++p) pixel(p, 0);
    if (!sums) continue;
    add_lanes<A>((sum_dy[0] + sum_dy[1]) + (sum_dy[2] + sum_dy[3]), sums + c);
    add_lanes<A>((sum_dy_xhat[0] + sum_dy_xhat[1]) + (sum_dy_xhat[2] + sum_dy_xhat[3]), sums + lanes + c);
  }
}

// One input read by `members` stages side by side: their gradients add up.
template <typename T, typename A>
void add_up_members(const A* from, int64_t lanes, int members, int64_t pixels, int64_t channels, T* to) {
  for_runs<A>(channels, [&]<int W>(int64_t first, int64_t last) {
    for (int64_t c = first; c < last; c += W) {
      for (int64_t p = 0; p < pixels; ++p) {
        Run<A, W> sum = load_run<W, A>(from + p * lanes + c);
        for (int m = 1; m < members; ++m) sum += load_run<W, A>(from + p * lanes + m * channels + c);
        store_run<W, A>(to + p * channels + c, sum);
      }
    }
  });
}

template <typename T>
class StageBackward {
  using A = accumulate_t<T>;

 public:
  StageBackward(const Stage<T>& args, const void* prepared, const StageGrads<T>& grads, const StagePacking<T>& packing,
                int tile_group)
      : args_(args),
        prepared_(prepared),
        grads_(grads),
        packing_(packing),
        tile_group_(tile_group),
        lanes_(packing.lanes),
        rows_(rows_worked_on<A>(args.out_height, args.out_width, packing.lanes)),
        tile_(packing.padding[tile_group], args.height, args.width, packing.lanes),
        out_tile_(packing.padding[tile_group], args.out_height, args.out_width, packing.lanes),
        input_(args, packing, tile_),
        x_(scratch_.take<A>(tile_.size)),
        grad_x_(scratch_.take<A>(tile_.size)),
        grad_z_(scratch_.take<A>(out_tile_.size)),
        z_(scratch_.take<A>(rows_ * args.out_width * lanes_)),
        grad_y_(scratch_.take<A>(rows_ * args.out_width * lanes_)),
        sums_(scratch_.take<double>(2 * lanes_)) {
    // Borders stay zero: only pixels of the image are written from here on.
    std::memset(x_, 0, tile_.size * sizeof(A));
    std::memset(grad_z_, 0, out_tile_.size * sizeof(A));
  }

  // `images` images from `image` on; adds to the tile group's part of `gradient`, and fills in
  // the images' sums.
  void block(int64_t image, int images, A* gradient, double* sums) {
    image_ = image;
    images_ = images;
    input_.begin(tile_group_, image, images, x_);
    if (sums) std::memset(sums_, 0, 2 * lanes_ * sizeof(double));
    double* const summed = sums ? sums_ : nullptr;
    const int first = packing_.first_group[tile_group_], last = packing_.first_group[tile_group_ + 1] - 1;
    for (int index = first; index <= last; ++index) {
      const StageGroup& group = packing_.group[index];
      A* const depthwise = gradient + group.gradient;
      if (images_ * group.size * packing_.channels < lanes_) {
        std::memset(grad_y_, 0, rows_ * args_.out_width * lanes_ * sizeof(A));
      }
      int64_t done = 0;  // rows of the tile's gradient
      for (int64_t top = 0; top < args_.out_height; top += rows_) {
        const int64_t count = args_.out_height - top < rows_ ? args_.out_height - top : rows_;
        input_.fill_until(group, top + count);
        outputs(top, count, group, depthwise, depthwise + group.taps() * lanes_);
        // The rows for which all gradients of z that go into them are there.
        const int64_t next = top + count;
        const int64_t end = next == args_.out_height ? args_.height : next * args_.stride - group.padding();
        for (; done < end; ++done) {
          A* const grad = grad_row(done);
          input_row(done, group, index > first, grad);
          if (index == last) finish_row(done, grad, summed);
        }
      }
    }
    if (sums) write_sums(sums);
  }

 private:
  Taps<A> taps_at(const A* tile, const StageGroup& group, int64_t out_row) const {
    return tile_.taps(tile, group.kernel, group.dilation, args_.stride, out_row);
  }

  // From the gradient of `count` rows of y to those of z and of the weights; z is computed again.
  void outputs(int64_t top, int64_t count, const StageGroup& group, A* depthwise, A* pointwise_gradient) {
    const int64_t channels = packing_.channels, width = args_.out_width;
    const int64_t pixel = (image_ * args_.out_height + top) * width;
    if (!packing_.packed ||
        !interleave_gradients(args_, grads_, packing_, group, images_, pixel, count * width, grad_y_)) {
      packing_.for_slots(group, images_, [&](int slot, int i, int stage) {
        copy_gradient(args_, grads_, stage, pixel + i * args_.out_height * width, count * width, lanes_,
                      grad_y_ + slot * channels);
      });
    }
    A* const grad_z = grad_z_ + out_tile_.at(top, 0);
    Prefetcher prefetcher;
    prefetch(top + count, count, group, prefetcher);
    for (int64_t r = 0; r < count; ++r) {
      depthwise_row(taps_at(x_, group, top + r), packing_.depthwise(prepared_, group), width, z_ + r * width * lanes_);
      if (packing_.packed) {
        packed_pointwise(grad_y_ + r * width * lanes_, channels, packing_.transposed(prepared_, group), width,
                         grad_z + r * out_tile_.row, prefetcher);
      }
    }
    if (packing_.packed) {
      packed_grad_weights(z_, channels, grad_y_, count * width, pointwise_gradient, prefetcher);
    } else {
      const Lines rows{count, width, width * lanes_, out_tile_.row};
      pointwise(grad_y_, lanes_, channels, packing_.transposed(prepared_, group), lanes_, rows, grad_z, prefetcher);
      pointwise_grad_weights(z_, lanes_, channels, grad_y_, lanes_, count * width, pointwise_gradient, prefetcher);
    }
    // Here, while the rows are in the first-level cache.
    depthwise_grad_weights(taps_at(x_, group, top), args_.stride * tile_.row, grad_z, out_tile_.row, count, width,
                           depthwise);
  }

  // What `count` rows of outputs from `top` on need; and where the gradients of inputs go that are finished meanwhile.
  void prefetch(int64_t top, int64_t count, const StageGroup& group, Prefetcher& prefetcher) const {
    const int64_t image = args_.out_height * args_.out_width, pixels = count * args_.out_width;
    const auto pixel = [&](int i) { return (image_ + i) * image + top * args_.out_width; };
    packing_.for_slots(group, images_, [&](int, int i, int stage) {
      prefetcher.add(grads_.grad[stage] + pixel(i) * grads_.grad_stride[stage], pixels * grads_.grad_stride[stage]);
      if (!grads_.bn_coeffs) return;
      prefetcher.add(grads_.y[stage] + pixel(i) * grads_.y_stride[stage], pixels * grads_.y_stride[stage]);
    });
    input_.prefetch(count, prefetcher);
    const auto add_gradient = [&](int input, int i) {
      const int64_t first_row = (image_ + i) * args_.height + (top - count) * args_.stride;
      prefetcher.add(grads_.grad_x[input] + first_row * args_.width * packing_.channels,
                     count * args_.stride * args_.width * packing_.channels);
    };
    if (args_.shared) {
      for (int i = 0; i < images_; ++i) add_gradient(0, i);
      return;
    }
    packing_.for_slots(group, images_, [&](int, int i, int stage) { add_gradient(stage, i); });
  }

  // Rows that are finished at once take turns in one place.
  A* grad_row(int64_t y) const {
    const bool one_group = packing_.first_group[tile_group_ + 1] - packing_.first_group[tile_group_] == 1;
    return grad_x_ + (one_group ? 0 : tile_.at(y, 0));
  }

  // From the gradient of z to a row of that of the tile.
  void input_row(int64_t y, const StageGroup& group, bool add, A* grad) {
    const auto row = [&]<bool kAdd>() {
      if (args_.stride == 1) {  // tile_ and out_tile_ have one geometry
        return depthwise_row<kAdd>(taps_at(grad_z_, group, y), packing_.flipped(prepared_, group), args_.width, grad);
      }
      const Taps<A> taps{
          grad_z_ + out_tile_.at(0, 0), out_tile_.row, lanes_, group.kernel, group.dilation, args_.stride};
      depthwise_grad_input_row<kAdd>(taps, y, packing_.depthwise(prepared_, group), args_.width, grad);
    };
    if (add) {
      row.template operator()<true>();
    } else {
      row.template operator()<false>();
    }
  }

  void finish_row(int64_t y, A* grad, double* sums) {
    const StageGroup& group = packing_.group[packing_.first_group[tile_group_]];
    rectify_row(x_ + tile_.at(y, 0), lanes_, args_.width, grad, sums);
    write_row(group, (image_ * args_.height + y) * args_.width, grad);
  }

  void write_sums(double* sums) const {
    const int64_t channels = packing_.channels;
    const StageGroup& group = packing_.group[packing_.first_group[tile_group_]];
    for (int i = 0; i < images_; ++i) {
      for (int m = 0; m < (args_.shared ? 1 : group.size); ++m) {
        const int input = args_.shared ? 0 : packing_.order[group.first + m];
        double* const sum_dy = sums + ((image_ + i) * args_.inputs() + input) * 2 * channels;
        double* const sum_dy_xhat = sum_dy + channels;
        for (int64_t c = 0; c < channels; ++c) {
          sum_dy[c] = sum_dy_xhat[c] = 0;
          for (int member = m; member < (args_.shared ? packing_.members : m + 1); ++member) {
            sum_dy[c] += sums_[packing_.lane(i, member) + c];
            sum_dy_xhat[c] += sums_[lanes_ + packing_.lane(i, member) + c];
          }
        }
      }
    }
  }

  // A row of the inputs' gradients, from pixel `pixel` of the block's first image on.
  void write_row(const StageGroup& group, int64_t pixel, const A* grad) {
    const int64_t channels = packing_.channels, image = args_.height * args_.width;
    if (args_.shared) {
      for (int i = 0; i < images_; ++i) {
        add_up_members(grad + packing_.lane(i, 0), lanes_, packing_.members, args_.width, channels,
                       grads_.grad_x[0] + (pixel + i * image) * channels);
      }
      return;
    }
    T* to[kLanes<A>] = {};
    packing_.for_slots(group, images_, [&](int slot, int i, int stage) {
      to[slot] = grads_.grad_x[stage] + (pixel + i * image) * channels;
    });
    store_slots(grad, lanes_, channels, args_.width, to, packing_.slots());
  }

  const Stage<T>& args_;
  const void* prepared_;
  const StageGrads<T>& grads_;
  const StagePacking<T>& packing_;
  int tile_group_;
  int64_t image_ = 0;  // of the block: the first, and how many
  int images_ = 0;
  int64_t lanes_, rows_;
  PaddedTile tile_, out_tile_;
  StageTile<T> input_;
  cpu::ScratchArena scratch_;
  A* x_;          // tile
  A* grad_x_;     // tile
  A* grad_z_;     // tile of the output's size, bordered by zeros
  A* z_;          // rows_ of outputs
  A* grad_y_;     // rows_ of outputs
  double* sums_;  // [2, lanes] of dy and dy · x̂ of the block
};

}  // namespace

template <typename T>
int64_t stage_partial_bytes(const Stage<T>& args) {
  const StagePacking<T> packing(args);
  return packing.gradient * packing.parts(args.count) * static_cast<int64_t>(sizeof(accumulate_t<T>));
}

template <typename T>
void stage_grad(const Stage<T>& args, const void* prepared, const StageGrads<T>& grads, void* partial, double* sums,
                int64_t first, int64_t last) {
  using A = accumulate_t<T>;
  const StagePacking<T> packing(args);
  const int64_t parts = packing.parts(args.count), blocks = packing.blocks(args.count);
  std::optional<StageBackward<T>> backward;
  int set_up_for = -1;  // which tile group
  for (int64_t item = first; item < last; ++item) {
    const int64_t part = item / packing.tile_groups;
    const int tile_group = static_cast<int>(item % packing.tile_groups);
    A* const gradient = static_cast<A*>(partial) + part * packing.gradient;
    const int end = packing.first_group[tile_group + 1];
    const int64_t from = packing.group[packing.first_group[tile_group]].gradient;
    const int64_t to = end < packing.groups ? packing.group[end].gradient : packing.gradient;
    std::memset(gradient + from, 0, (to - from) * sizeof(A));
    if (tile_group != set_up_for) backward.emplace(args, prepared, grads, packing, set_up_for = tile_group);
    for (int64_t block = part * blocks / parts; block < (part + 1) * blocks / parts; ++block) {
      const int64_t image = block * packing.block_images;
      backward->block(image, packing.images_of_block(image, args.count), gradient, sums);
    }
  }
}

template <typename T>
void stage_grad_merge(const Stage<T>& args, const StageGrads<T>& grads, const void* partial, int64_t first,
                      int64_t last) {
  using A = accumulate_t<T>;
  const StagePacking<T> packing(args);
  const int64_t channels = packing.channels, lanes = packing.lanes, parts = packing.parts(args.count);
  cpu::ScratchArena scratch;
  double* const sum = scratch.take<double>(lanes);
  for (int64_t index = first; index < last; ++index) {
    const StageGroup& group = packing.group[index];
    const int64_t taps = group.taps();
    for (int64_t line = 0; line < taps + channels; ++line) {
      std::memset(sum, 0, lanes * sizeof(double));
      for (int64_t part = 0; part < parts; ++part) {
        const A* row = static_cast<const A*>(partial) + part * packing.gradient + group.gradient + line * lanes;
        for (int64_t lane = 0; lane < lanes; ++lane) sum[lane] += row[lane];
      }
      for (int m = 0; m < group.size; ++m) {
        const int stage = packing.order[group.first + m];
        for (int64_t c = 0; c < channels; ++c) {
          double total = 0;
          for (int i = 0; i < packing.block_images; ++i) total += sum[packing.lane(i, m) + c];
          if (line < taps) {
            grads.grad_depthwise[stage][c * taps + line] = A(total);
          } else {
            grads.grad_pointwise[stage][c * channels + line - taps] = A(total);
          }
        }
      }
    }
  }
}

#define INSTANTIATE(T)                                                                                            \
  template int64_t stage_partial_bytes(const Stage<T>&);                                                          \
  template void stage_grad(const Stage<T>&, const void*, const StageGrads<T>&, void*, double*, int64_t, int64_t); \
  template void stage_grad_merge(const Stage<T>&, const StageGrads<T>&, const void*, int64_t, int64_t);
INSTANTIATE(double)
INSTANTIATE(float)
INSTANTIATE(c10::BFloat16)
INSTANTIATE(c10::Half)

}  // namespace fastnas::FASTNAS_ISA
