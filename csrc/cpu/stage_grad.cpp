#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <optional>

#include "cpu/depthwise.h"
#include "cpu/memory.h"
#include "cpu/packed.h"
#include "cpu/pointwise.h"
#include "cpu/stage_plan.h"
#include "ops/stage.h"

namespace fastnas::FASTNAS_ISA {
namespace {

// The gradient of `pixels` output pixels of stage j, into the lanes of its slot.
template <typename T>
void fill_gradient(const Stage<T>& args, const StageGrads<T>& grads, int stage, int64_t pixel, int64_t pixels,
                   int64_t lanes, accumulate_t<T>* out) {
  using A = accumulate_t<T>;
  const int64_t channels = args.channels, stride = grads.grad_stride[stage];
  const T* grad = grads.grad[stage] + pixel * stride;
  if (!grads.bn_coeffs) return copy_pixels<A>(grad, stride, pixels, channels, out, lanes);
  const int64_t y_stride = grads.y_stride[stage];
  const T* y = grads.y[stage] + pixel * y_stride;
  const A* coefficients = grads.bn_coeffs + stage * 4 * channels;
  for_runs(channels, [&]<int W>(int64_t first, int64_t last) {
    using R = Run<A, W>;
    for (int64_t c = first; c < last; c += W) {
      const R scale = read<W, A>(coefficients + c), slope = read<W, A>(coefficients + channels + c);
      const R mean = read<W, A>(coefficients + 2 * channels + c);
      const R offset = read<W, A>(coefficients + 3 * channels + c);
      for (int64_t p = 0; p < pixels; ++p) {
        const R g = read<W, A>(grad + p * stride + c), value = read<W, A>(y + p * y_stride + c);
        write<W, A>(out + p * lanes + c, scale * g + slope * (value - mean) + offset);
      }
    }
  });
}

// The gradients of all stages of a group side by side, as far as whole vectors can be read; whether they can.
template <typename T>
bool weave_gradients(const Stage<T>& args, const StageGrads<T>& grads, const StagePlan<T>& plan,
                     const StageGroup& group, int images, int64_t pixel, int64_t pixels, accumulate_t<T>* out) {
  using A = accumulate_t<T>;
  const int64_t channels = plan.channels, image = args.out_height * args.out_width;
  for (int s = 0; s < group.size; ++s) {
    const int stage = plan.order[group.first + s];
    if (grads.grad_stride[stage] != channels) return false;
    if (grads.bn_coeffs && grads.y_stride[stage] != channels) return false;
  }
  return for_streams<A>(channels, pixels, [&]<int S>() {
    const T *grad[S] = {}, *y[S] = {};
    Vec<A> scale[S] = {}, slope[S] = {}, mean[S] = {}, offset[S] = {};
    plan.streams(group, images, [&](int stream, int copy, int stage) {
      grad[stream] = grads.grad[stage] + (pixel + copy * image) * channels;
      if (!grads.bn_coeffs) return;
      y[stream] = grads.y[stage] + (pixel + copy * image) * channels;
      const A* coefficients = grads.bn_coeffs + stage * 4 * channels;
      scale[stream] = repeated(coefficients, channels);
      slope[stream] = repeated(coefficients + channels, channels);
      mean[stream] = repeated(coefficients + 2 * channels, channels);
      offset[stream] = repeated(coefficients + 3 * channels, channels);
    });
    const auto values = [&](int s, int64_t p) {
      if (!grad[s]) return Vec<A>{};
      const Vec<A> g = read<kLanes<A>, A>(grad[s] + p * channels);
      if (!y[s]) return g;
      return scale[s] * g + slope[s] * (read<kLanes<A>, A>(y[s] + p * channels) - mean[s]) + offset[s];
    };
    weave<S, A>(pixels, values, out);
  });
}

// Rectifies the gradient of one row of the tile in place: it passes where the input was positive. Adds up Σ g and
// Σ g · x̂ where asked.
template <typename A>
void rectify_row(const A* x, int64_t lanes, int64_t pixels, A* grad, double* sums) {
  constexpr int kUnroll = 4;  // hides the latency of an addition
  for (int64_t c = 0; c < lanes; c += kLanes<A>) {
    Vec<A> sum[kUnroll] = {}, dot[kUnroll] = {};
    const auto pixel = [&](int64_t p, int u) {
      const Vec<A> value = load(x + p * lanes + c);
      const Vec<A> g = value <= 0 ? Vec<A>{} : load(grad + p * lanes + c);  // keeps NaN, as torch's ReLU does
      store(grad + p * lanes + c, g);
      sum[u] += g;
      dot[u] += g * value;
    };
    int64_t p = 0;
    for (; p + kUnroll <= pixels; p += kUnroll) {
      for (int u = 0; u < kUnroll; ++u) pixel(p + u, u);
    }
    for (; p < pixels; ++p) pixel(p, 0);
    if (!sums) continue;
    add_lanes<A>((sum[0] + sum[1]) + (sum[2] + sum[3]), sums + c);
    add_lanes<A>((dot[0] + dot[1]) + (dot[2] + dot[3]), sums + lanes + c);
  }
}

// One input read by stages side by side: their gradients add up.
template <typename T, typename A>
void fold(const A* from, int64_t lanes, int slots, int64_t pixels, int64_t channels, T* to) {
  for_runs(channels, [&]<int W>(int64_t first, int64_t last) {
    for (int64_t c = first; c < last; c += W) {
      for (int64_t p = 0; p < pixels; ++p) {
        Run<A, W> sum = read<W, A>(from + p * lanes + c);
        for (int s = 1; s < slots; ++s) sum += read<W, A>(from + p * lanes + s * channels + c);
        write<W, A>(to + p * channels + c, sum);
      }
    }
  });
}

template <typename A>
struct Buffers {
  A* x;          // tile
  A* grad_x;     // tile
  A* grad_z;     // tile of the output's size, bordered by zeros
  A* z;          // block
  A* g;          // block
  double* sums;  // [2, lanes]
};

template <typename T>
class StageBackward {
  using A = accumulate_t<T>;

 public:
  StageBackward(const Stage<T>& args, const void* prepared, const StageGrads<T>& grads, const StagePlan<T>& plan,
                int bundle)
      : args_(args),
        prepared_(prepared),
        grads_(grads),
        plan_(plan),
        bundle_(bundle),
        lanes_(plan.lanes),
        rows_(stage_block_rows<A>(args.out_height, args.out_width, plan.lanes)),
        tile_(plan.padding[bundle], args.height, args.width, plan.lanes),
        out_tile_(plan.padding[bundle], args.out_height, args.out_width, plan.lanes),
        fill_(args, plan, tile_) {
    const int64_t bytes = lay_out(Layout(nullptr));
    lay_out(Layout(cpu::scratch(bytes)));
    // Borders stay zero: only pixels of the image are written from here on.
    std::memset(buffers_.x, 0, tile_.size * sizeof(A));
    std::memset(buffers_.grad_z, 0, out_tile_.size * sizeof(A));
  }

  // `images` images from `image` on; adds to the bundle's part of `gradient`.
  void block(int64_t image, int images, A* gradient, double* sums) {
    image_ = image;
    images_ = images;
    fill_.begin(bundle_, image, images, buffers_.x);
    if (sums) std::memset(buffers_.sums, 0, 2 * lanes_ * sizeof(double));
    if (args_.stride > 1) std::memset(buffers_.grad_x, 0, tile_.size * sizeof(A));
    double* const summed = sums ? buffers_.sums : nullptr;
    const int first = plan_.first_group[bundle_], last = plan_.first_group[bundle_ + 1] - 1;
    for (int index = first; index <= last; ++index) {
      const StageGroup& group = plan_.group[index];
      A* const depthwise = gradient + group.gradient;
      if (images_ * group.size * plan_.channels < lanes_) {
        std::memset(buffers_.g, 0, rows_ * args_.out_width * lanes_ * sizeof(A));
      }
      int64_t done = 0;  // rows of the tile's gradient
      for (int64_t top = 0; top < args_.out_height; top += rows_) {
        const int64_t count = args_.out_height - top < rows_ ? args_.out_height - top : rows_;
        fill_.reach(group, top + count);
        outputs(top, count, group, depthwise, depthwise + group.taps() * lanes_);
        if (args_.stride > 1) {
          scatter(top, count, group);
          continue;
        }
        // As many rows as all gradients of z that go into them are there for.
        const int64_t end = top + count == args_.out_height ? args_.height : top + count - group.padding();
        for (; done < end; ++done) {
          A* const grad = grad_row(done);
          input_row(done, group, index > first, grad);
          if (index == last) finish_row(done, grad, summed);
        }
      }
    }
    for (int64_t y = 0; args_.stride > 1 && y < args_.height; ++y) finish_row(y, grad_row(y), summed);
    if (sums) write_sums(sums);
  }

 private:
  int64_t lay_out(Layout layout) {
    buffers_ = {layout.take<A>(tile_.size),
                layout.take<A>(tile_.size),
                layout.take<A>(out_tile_.size),
                layout.take<A>(rows_ * args_.out_width * lanes_),
                layout.take<A>(rows_ * args_.out_width * lanes_),
                layout.take<double>(2 * lanes_)};
    return layout.bytes();
  }

  Taps<A> taps_at(const A* tile, const StageGroup& group, int64_t out_row) const {
    const int64_t inset = tile_.padding - group.padding();
    return {tile + (out_row * args_.stride + inset) * tile_.row + inset * lanes_,
            tile_.row,
            lanes_,
            group.kernel,
            group.dilation,
            args_.stride};
  }

  // From the gradient of `count` rows of y to those of z and of the weights; z is computed again.
  void outputs(int64_t top, int64_t count, const StageGroup& group, A* depthwise, A* pointwise_gradient) {
    const int64_t channels = plan_.channels, width = args_.out_width;
    const int64_t pixel = (image_ * args_.out_height + top) * width;
    if (!plan_.packed || !weave_gradients(args_, grads_, plan_, group, images_, pixel, count * width, buffers_.g)) {
      plan_.streams(group, images_, [&](int stream, int copy, int stage) {
        fill_gradient(args_, grads_, stage, pixel + copy * args_.out_height * width, count * width, lanes_,
                      buffers_.g + stream * channels);
      });
    }
    A* const grad_z = buffers_.grad_z + out_tile_.at(top, 0, lanes_);
    Ahead ahead;
    read_ahead(top + count, count, group, ahead);
    for (int64_t r = 0; r < count; ++r) {
      depthwise_row(taps_at(buffers_.x, group, top + r), plan_.depthwise(prepared_, group), width,
                    buffers_.z + r * width * lanes_);
      if (plan_.packed) {
        packed_pointwise(buffers_.g + r * width * lanes_, channels, plan_.transposed(prepared_, group), width,
                         grad_z + r * out_tile_.row, ahead);
      }
    }
    if (plan_.packed) {
      packed_grad_weights(buffers_.z, channels, buffers_.g, count * width, pointwise_gradient, ahead);
    } else {
      const Lines rows{count, width, width * lanes_, out_tile_.row};
      pointwise(buffers_.g, lanes_, channels, plan_.transposed(prepared_, group), lanes_, rows, grad_z, ahead);
      pointwise_grad_weights(buffers_.z, lanes_, channels, buffers_.g, lanes_, count * width, pointwise_gradient,
                             ahead);
    }
    // Here, while the rows are in the first-level cache.
    depthwise_grad_weights(taps_at(buffers_.x, group, top), args_.stride * tile_.row, grad_z, out_tile_.row, count,
                           width, depthwise);
  }

  // What `count` rows of outputs from `top` on need; and where the gradients of inputs go that are finished meanwhile.
  void read_ahead(int64_t top, int64_t count, const StageGroup& group, Ahead& ahead) const {
    const int64_t image = args_.out_height * args_.out_width, pixels = count * args_.out_width;
    const auto pixel = [&](int copy) { return (image_ + copy) * image + top * args_.out_width; };
    plan_.streams(group, images_, [&](int, int copy, int stage) {
      ahead.add(grads_.grad[stage] + pixel(copy) * grads_.grad_stride[stage], pixels * grads_.grad_stride[stage]);
      if (!grads_.bn_coeffs) return;
      ahead.add(grads_.y[stage] + pixel(copy) * grads_.y_stride[stage], pixels * grads_.y_stride[stage]);
    });
    fill_.read_ahead(count, ahead);
    if (args_.stride > 1) return;
    const auto add_gradient = [&](int input, int copy) {
      ahead.add(grads_.grad_x[input] + (pixel(copy) - pixels) * plan_.channels, pixels * plan_.channels);
    };
    if (args_.shared) {
      for (int copy = 0; copy < images_; ++copy) add_gradient(0, copy);
      return;
    }
    plan_.streams(group, images_, [&](int, int copy, int stage) { add_gradient(stage, copy); });
  }

  // Rows that are finished at once take turns in one place.
  A* grad_row(int64_t y) const {
    const bool one_group = plan_.first_group[bundle_ + 1] - plan_.first_group[bundle_] == 1;
    return buffers_.grad_x + (one_group && args_.stride == 1 ? 0 : tile_.at(y, 0, lanes_));
  }

  // From the gradient of z to a row of that of the tile, with stride 1: tile_ and out_tile_ have one geometry.
  void input_row(int64_t y, const StageGroup& group, bool add, A* grad) {
    const Taps<A> taps = taps_at(buffers_.grad_z, group, y);
    if (add) {
      depthwise_row<true>(taps, plan_.turned(prepared_, group), args_.width, grad);
    } else {
      depthwise_row(taps, plan_.turned(prepared_, group), args_.width, grad);
    }
  }

  // The same from `count` rows of the gradient of z, with any other stride.
  void scatter(int64_t top, int64_t count, const StageGroup& group) {
    for (int64_t y = top; y < top + count; ++y) {
      depthwise_scatter_row(taps_at(buffers_.grad_x, group, y), plan_.depthwise(prepared_, group), args_.out_width,
                            buffers_.grad_z + out_tile_.at(y, 0, lanes_));
    }
  }

  void finish_row(int64_t y, A* grad, double* sums) {
    const StageGroup& group = plan_.group[plan_.first_group[bundle_]];
    rectify_row(buffers_.x + tile_.at(y, 0, lanes_), lanes_, args_.width, grad, sums);
    write_row(group, (image_ * args_.height + y) * args_.width, grad);
  }

  void write_sums(double* sums) const {
    const int64_t channels = plan_.channels;
    const StageGroup& group = plan_.group[plan_.first_group[bundle_]];
    for (int copy = 0; copy < images_; ++copy) {
      for (int s = 0; s < (args_.shared ? 1 : group.size); ++s) {
        const int64_t input = args_.shared ? 0 : plan_.order[group.first + s];
        double* const entry = sums + ((image_ + copy) * args_.inputs() + input) * 2 * channels;
        for (int64_t c = 0; c < channels; ++c) {
          entry[c] = entry[channels + c] = 0;
          for (int slot = s; slot < (args_.shared ? plan_.slots : s + 1); ++slot) {
            entry[c] += buffers_.sums[plan_.lane(copy, slot) + c];
            entry[channels + c] += buffers_.sums[lanes_ + plan_.lane(copy, slot) + c];
          }
        }
      }
    }
  }

  // A row of the inputs' gradients, from pixel `pixel` of the block's first image on.
  void write_row(const StageGroup& group, int64_t pixel, const A* grad) {
    const int64_t channels = plan_.channels, image = args_.height * args_.width;
    if (args_.shared) {
      for (int copy = 0; copy < images_; ++copy) {
        fold(grad + plan_.lane(copy, 0), lanes_, plan_.slots, args_.width, channels,
             grads_.grad_x[0] + (pixel + copy * image) * channels);
      }
      return;
    }
    T* to[kLanes<A>] = {};
    plan_.streams(group, images_, [&](int stream, int copy, int stage) {
      to[stream] = grads_.grad_x[stage] + (pixel + copy * image) * channels;
    });
    write_streams(grad, lanes_, channels, args_.width, to, plan_.slots * plan_.copies);
  }

  const Stage<T>& args_;
  const void* prepared_;
  const StageGrads<T>& grads_;
  const StagePlan<T>& plan_;
  int bundle_;
  int64_t image_ = 0;  // of the block: the first, and how many
  int images_ = 0;
  int64_t lanes_, rows_;
  StageTile tile_, out_tile_;
  StageFill<T> fill_;
  Buffers<A> buffers_;
};

}  // namespace

template <typename T>
int64_t stage_partial_bytes(const Stage<T>& args) {
  const StagePlan<T> plan(args);
  return plan.gradient * plan.parts(args.count) * static_cast<int64_t>(sizeof(accumulate_t<T>));
}

template <typename T>
void stage_grad(const Stage<T>& args, const void* prepared, const StageGrads<T>& grads, void* partial, double* sums,
                int64_t first, int64_t last) {
  using A = accumulate_t<T>;
  const StagePlan<T> plan(args);
  const int64_t parts = plan.parts(args.count), blocks = plan.blocks(args.count);
  std::optional<StageBackward<T>> backward;
  int laid_out = -1;  // for which bundle
  for (int64_t item = first; item < last; ++item) {
    const int64_t part = item / plan.bundles;
    const int bundle = static_cast<int>(item % plan.bundles);
    A* const gradient = static_cast<A*>(partial) + part * plan.gradient;
    const int end = plan.first_group[bundle + 1];
    const int64_t from = plan.group[plan.first_group[bundle]].gradient;
    const int64_t to = end < plan.groups ? plan.group[end].gradient : plan.gradient;
    std::memset(gradient + from, 0, (to - from) * sizeof(A));
    if (bundle != laid_out) backward.emplace(args, prepared, grads, plan, laid_out = bundle);
    for (int64_t block = part * blocks / parts; block < (part + 1) * blocks / parts; ++block) {
      const int64_t image = block * plan.copies, left = args.count - image;
      backward->block(image, left < plan.copies ? static_cast<int>(left) : plan.copies, gradient, sums);
    }
  }
}

template <typename T>
void stage_grad_merge(const Stage<T>& args, const StageGrads<T>& grads, const void* partial, int64_t first,
                      int64_t last) {
  using A = accumulate_t<T>;
  const StagePlan<T> plan(args);
  const int64_t channels = plan.channels, lanes = plan.lanes, parts = plan.parts(args.count);
  Layout layout(cpu::scratch(lanes * sizeof(double)));
  double* const sum = layout.take<double>(lanes);
  for (int64_t index = first; index < last; ++index) {
    const StageGroup& group = plan.group[index];
    const int64_t taps = group.taps();
    for (int64_t line = 0; line < taps + channels; ++line) {
      std::memset(sum, 0, lanes * sizeof(double));
      for (int64_t part = 0; part < parts; ++part) {
        const A* row = static_cast<const A*>(partial) + part * plan.gradient + group.gradient + line * lanes;
        for (int64_t lane = 0; lane < lanes; ++lane) sum[lane] += row[lane];
      }
      for (int s = 0; s < group.size; ++s) {
        const int stage = plan.order[group.first + s];
        for (int64_t c = 0; c < channels; ++c) {
          double total = 0;
          for (int copy = 0; copy < plan.copies; ++copy) total += sum[plan.lane(copy, s) + c];
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
