// An image stays in the cache from its first reading to the sums: tiles of the state (as it is for the pools, rectified
// and padded for the convolutions), then for each group of edges the tiles between the two stages of a candidate, then
// rows of all terms and of their sum. Edges of few channels share a vector, as the stages of `stage` do.
#include "ops/edge_sum.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "cpu/channels.h"
#include "cpu/depthwise.h"
#include "cpu/memory.h"
#include "cpu/packed.h"
#include "cpu/pointwise.h"
#include "cpu/pool_rows.h"
#include "cpu/stage_plan.h"
#include "cpu/weave.h"

namespace fastnas::FASTNAS_ISA {
namespace {

/// How edges lie in vectors. `slots` edges form a group; lanes that are left take further images.
template <typename T>
struct EdgePlan {
  using A = accumulate_t<T>;

  int64_t channels, lanes;
  bool packed;
  int slots, copies, groups;
  int64_t weights[kMaxSumStages];  // where the stages' prepared weights begin, in those of a group
  int64_t inner;                   // where scales and offsets of first stages begin
  int64_t size = 0;                // of a group

  explicit EdgePlan(const EdgeSum<T>& args) : channels(args.channels) {
    packed = 2 * channels <= kLanes<A>;
    lanes = packed ? kLanes<A> : padded<A>(channels);
    const int fit = packed ? static_cast<int>(lanes / channels) : 1;
    slots = args.edges < fit ? args.edges : fit;
    copies = packed ? static_cast<int>(lanes / (channels * slots)) : 1;
    groups = (args.edges + slots - 1) / slots;
    for (int s = 0; s < args.stages; ++s) {
      weights[s] = size;
      size += (args.kernel[s] * args.kernel[s] + channels) * lanes;
    }
    inner = size;
    size += 2 * (args.stages - args.candidates) * lanes;
  }

  int64_t lane(int copy, int slot) const { return (copy * slots + slot) * channels; }
  int64_t blocks(int64_t images) const { return (images + copies - 1) / copies; }
  /// Edges of a group, of which it is the last that may have fewer than slots.
  int edges_of(int group, int edges) const { return edges - group * slots < slots ? edges - group * slots : slots; }
};

// --- rows of terms ---------------------------------------------------------------------------------------------------

/// Adds up, and compares, three rows of an image [.., width, lanes] into columns [2, width + 2, lanes], with what
/// changes neither beside them: zeros, and the first and the last maximum again. A missing row is null.
template <typename A>
void pool_columns(const A* above, const A* middle, const A* below, int64_t width, int64_t lanes, A* columns) {
  const int64_t line = width * lanes;
  A* const sums = columns + lanes;
  A* const most = sums + line + 2 * lanes;
  for (int64_t i = 0; i < line; i += kLanes<A>) {
    const Vec<A> value = load(middle + i);
    Vec<A> sum = value, maximum = value;
    if (above) {
      sum += load(above + i);
      maximum = larger<A>(load(above + i), maximum);
    }
    if (below) {
      sum += load(below + i);
      maximum = larger<A>(load(below + i), maximum);
    }
    store(sums + i, sum);
    store(most + i, maximum);
  }
  std::memset(sums - lanes, 0, lanes * sizeof(A));
  std::memset(sums + line, 0, lanes * sizeof(A));
  std::memcpy(most - lanes, most, lanes * sizeof(A));
  std::memcpy(most + line, most + line - lanes, lanes * sizeof(A));
}

/// One row of 3×3 windows, centred on every `stride`-th pixel of row `centre` of x [height, width, lanes] → average and
/// maximum [windows, lanes]. columns: scratch of `pool_columns`.
template <typename A>
void pool_row(const A* x, int64_t height, int64_t width, int64_t lanes, int64_t centre, int64_t stride, int64_t windows,
              A* columns, A* average, A* maximum) {
  const int64_t line = width * lanes;
  const A* middle = x + centre * line;
  const bool first = centre == 0, last = centre + 1 == height;
  pool_columns(first ? nullptr : middle - line, middle, last ? nullptr : middle + line, width, lanes, columns);
  const int rows = 3 - first - last;
  const auto window = [&](int64_t w, A inverse) {
    for (int64_t c = 0; c < lanes; c += kLanes<A>) {
      const A* sums = columns + w * stride * lanes + c;
      const A* most = sums + line + 2 * lanes;
      store(average + w * lanes + c, (load(sums) + load(sums + lanes) + load(sums + 2 * lanes)) * inverse);
      store(maximum + w * lanes + c, larger<A>(load(most + 2 * lanes), larger<A>(load(most + lanes), load(most))));
    }
  };
  const auto inverse = [&](int64_t w) {
    const int64_t column = w * stride;
    return A(1) / A(rows * (1 + (column > 0) + (column + 1 < width)));
  };
  const A inside = A(1) / A(3 * rows);
  window(0, inverse(0));
  for (int64_t w = 1; w + 1 < windows; ++w) window(w, inside);
  if (windows > 1) window(windows - 1, inverse(windows - 1));
}

/// result = offset + Σ scale_m ⊙ term_m over `pixels` pixels. scales [count, lanes].
template <typename A>
void sum_terms(const A* const* terms, const A* const* scales, int count, const A* offset, int64_t lanes, int64_t pixels,
               A* result) {
  constexpr int kPixels = 4;
  for (int64_t c = 0; c < lanes; c += kLanes<A>) {
    int64_t p = 0;
    for (; p + kPixels <= pixels; p += kPixels) {
      Vec<A> sum[kPixels];
      for (int i = 0; i < kPixels; ++i) sum[i] = load(offset + c);
      for (int m = 0; m < count; ++m) {
        const Vec<A> scale = load(scales[m] + c);
        const A* term = terms[m] + p * lanes + c;
        for (int i = 0; i < kPixels; ++i) sum[i] += scale * load(term + i * lanes);
      }
      for (int i = 0; i < kPixels; ++i) store(result + (p + i) * lanes + c, sum[i]);
    }
    for (; p < pixels; ++p) {
      Vec<A> sum = load(offset + c);
      for (int m = 0; m < count; ++m) sum += load(scales[m] + c) * load(terms[m] + p * lanes + c);
      store(result + p * lanes + c, sum);
    }
  }
}

// --- one block of images ---------------------------------------------------------------------------------------------

template <typename T>
class EdgeSums {
  using A = accumulate_t<T>;

 public:
  EdgeSums(const EdgeSum<T>& args, const void* prepared)
      : args_(args),
        plan_(args),
        prepared_(static_cast<const A*>(prepared)),
        tables_(args.shared ? args.individuals : 1),
        rows_(stage_block_rows<A>(args.out_height, args.out_width, plan_.lanes)),
        tile_(first_padding(), args.height, args.width, plan_.lanes) {
    lay_out(Layout(cpu::scratch(lay_out(Layout(nullptr)))));
    std::memset(rectified_, 0, tile_.size * sizeof(A));
    for (int j = 0; j < args.candidates; ++j) {
      if (inner_[j]) std::memset(inner_[j], 0, inner_tile(j).size * sizeof(A));
    }
    const int terms = args.terms();
    for (int64_t edge = 0; edge < args.individuals * args.edges; ++edge) {
      const A* scales = args.scales + (edge * terms + args.candidates) * plan_.channels;
      for (int64_t c = 0; c < 2 * plan_.channels; ++c) pools_ |= scales[c] != 0;
    }
  }

  void block(int64_t image, int images) {
    fill(image, images);
    const int64_t lanes = plan_.lanes, width = args_.out_width;
    for (int64_t y = 0; pools_ && y < args_.out_height; ++y) {
      pool_row(raw_, args_.height, args_.width, lanes, y * args_.stride, args_.stride, width, columns_,
               average_ + y * width * lanes, maximum_ + y * width * lanes);
    }
    for (int group = 0; group < plan_.groups; ++group) {
      const int edges = plan_.edges_of(group, args_.edges);
      enter_tables(group, edges, image, images);
      for (int j = 0; j < args_.candidates; ++j) {
        if (used_[j] && args_.depth[j] == 2) first_stage(group, j);
      }
      for (int64_t top = 0; top < args_.out_height; top += rows_) {
        const int64_t left = args_.out_height - top;
        sum_rows(group, edges, image, images, top, left < rows_ ? left : rows_);
      }
    }
  }

 private:
  int64_t first_padding() const {
    int64_t padding = 0;
    for (int j = 0; j < args_.candidates; ++j) {
      const int64_t of_stage = padding_of(first_stage_of(j));
      padding = of_stage > padding ? of_stage : padding;
    }
    return padding;
  }
  int first_stage_of(int candidate) const {
    int stage = 0;
    for (int j = 0; j < candidate; ++j) stage += args_.depth[j];
    return stage;
  }
  int64_t padding_of(int stage) const { return args_.dilation[stage] * (args_.kernel[stage] - 1) / 2; }
  StageTile inner_tile(int candidate) const {
    return {padding_of(first_stage_of(candidate) + 1), args_.out_height, args_.out_width, plan_.lanes};
  }

  int64_t lay_out(Layout layout) {
    const int64_t lanes = plan_.lanes, block = rows_ * args_.out_width * lanes;
    raw_ = layout.take<A>(args_.height * args_.width * lanes);
    rectified_ = layout.take<A>(tile_.size);
    for (int j = 0; j < args_.candidates; ++j) {
      inner_[j] = args_.depth[j] == 2 ? layout.take<A>(inner_tile(j).size) : nullptr;
    }
    for (int j = 0; j < args_.candidates; ++j) term_[j] = layout.take<A>(block);
    average_ = layout.take<A>(args_.out_height * args_.out_width * lanes);
    maximum_ = layout.take<A>(args_.out_height * args_.out_width * lanes);
    z_ = layout.take<A>(block);
    sum_ = layout.take<A>(block);
    columns_ = layout.take<A>(2 * (args_.width + 2) * lanes);
    scales_ = layout.take<A>(tables_ * (args_.terms() + 1) * lanes);
    return layout.bytes();
  }

  void fill(int64_t image, int images) {
    for (int copy = 0; copy < images; ++copy) {
      const int64_t first = (image + copy) * args_.height * args_.width;
      if (plan_.packed && plan_.channels == 4 && plan_.slots == kLanes<A> / 4) {
        fill_slots<4, kLanes<A> / 4>(first, 0);
      } else {
        for_run(plan_.channels, [&]<int W>() { fill_slots<W, 0>(first, plan_.lane(copy, 0)); });
      }
    }
  }

  /// The image whose first pixel is `first` goes, as it is and rectified, to each slot. SLOTS is their number where
  /// that and all channels as one run are known, else 0.
  template <int W, int SLOTS>
  void fill_slots(int64_t first, int64_t lane) {
    using R = Run<A, W>;
    const int64_t channels = SLOTS ? W : plan_.channels, lanes = plan_.lanes;
    const int slots = SLOTS ? SLOTS : plan_.slots;
    for (int64_t y = 0; y < args_.height; ++y) {
      const T* x = args_.x + (first + y * args_.width) * args_.x_stride;
      A* raw = raw_ + y * args_.width * lanes + lane;
      A* rectified = rectified_ + tile_.at(y, 0, lanes) + lane;
      for (int64_t p = 0; p < args_.width; ++p) {
        for (int64_t c = 0; c < channels; c += W) {
          const R value = read<W, A>(x + p * args_.x_stride + c), positive = value < 0 ? R{} : value;  // keeps NaN
          for (int s = 0; s < slots; ++s) write<W, A>(raw + p * lanes + s * channels + c, value);
          for (int s = 0; s < slots; ++s) write<W, A>(rectified + p * lanes + s * channels + c, positive);
        }
      }
    }
  }

  /// Scales and offsets of a group, repeated for its images; which terms count.
  void enter_tables(int group, int edges, int64_t image, int images) {
    const int64_t channels = plan_.channels, lanes = plan_.lanes;
    const int terms = args_.terms();
    const int64_t each = args_.images / (args_.shared ? 1 : args_.individuals);  // images of an individual
    std::memset(scales_, 0, tables_ * (terms + 1) * lanes * sizeof(A));
    for (int m = 0; m < terms; ++m) used_[m] = false;
    for (int64_t table = 0; table < tables_; ++table) {
      A* const to = scales_ + table * (terms + 1) * lanes;
      for (int copy = 0; copy < images; ++copy) {
        const int64_t p = args_.shared ? table : (image + copy) / each;
        for (int s = 0; s < edges; ++s) {
          const int64_t edge = p * args_.edges + group * plan_.slots + s, lane = plan_.lane(copy, s);
          for (int m = 0; m < terms; ++m) {
            const A* scale = args_.scales + (edge * terms + m) * channels;
            for (int64_t c = 0; c < channels; ++c) {
              to[m * lanes + lane + c] = scale[c];
              used_[m] |= scale[c] != 0;
            }
          }
          std::memcpy(to + terms * lanes + lane, args_.offsets + edge * channels, channels * sizeof(A));
        }
      }
    }
  }

  /// Rows of a stage's output.
  void convolve(int group, int stage, const A* x, const StageTile& tile, int64_t stride, int64_t top, int64_t rows,
                A* y) {
    const int64_t lanes = plan_.lanes, width = args_.out_width, inset = tile.padding - padding_of(stage);
    const A* depthwise = prepared_ + group * plan_.size + plan_.weights[stage];
    const A* matrix = depthwise + args_.kernel[stage] * args_.kernel[stage] * lanes;
    for (int64_t r = 0; r < rows; ++r) {
      const Taps<A> taps{x + ((top + r) * stride + inset) * tile.row + inset * lanes,
                         tile.row,
                         lanes,
                         args_.kernel[stage],
                         args_.dilation[stage],
                         stride};
      depthwise_row(taps, depthwise, width, z_ + r * width * lanes);
    }
    if (plan_.packed) {
      Ahead nothing;
      packed_pointwise(z_, plan_.channels, matrix, rows * width, y, nothing);
    } else {
      pointwise(z_, lanes, plan_.channels, matrix, lanes, rows * width, y);
    }
  }

  /// The input of candidate j's second stage: normalised and rectified.
  void first_stage(int group, int j) {
    const int64_t lanes = plan_.lanes, width = args_.out_width;
    const StageTile tile = inner_tile(j);
    const int index = first_stage_of(j) - j;  // among the candidates of two stages
    const A* scale = prepared_ + group * plan_.size + plan_.inner + 2 * index * lanes;
    for (int64_t top = 0; top < args_.out_height; top += rows_) {
      const int64_t rows = args_.out_height - top < rows_ ? args_.out_height - top : rows_;
      convolve(group, first_stage_of(j), rectified_, tile_, args_.stride, top, rows, sum_);
      for (int64_t r = 0; r < rows; ++r) {
        const A* y = sum_ + r * width * lanes;
        A* to = inner_[j] + tile.at(top + r, 0, lanes);
        for (int64_t c = 0; c < lanes; c += kLanes<A>) {
          const Vec<A> a = load(scale + c), b = load(scale + lanes + c);
          for (int64_t p = 0; p < width; ++p) {
            const Vec<A> value = a * load(y + p * lanes + c) + b;
            store(to + p * lanes + c, value < 0 ? Vec<A>{} : value);
          }
        }
      }
    }
  }

  void sum_rows(int group, int edges, int64_t image, int images, int64_t top, int64_t rows) {
    const int64_t lanes = plan_.lanes, width = args_.out_width;
    const int J = args_.candidates, terms = args_.terms();
    const A* term[kMaxSumCandidates + 3];
    int which[kMaxSumCandidates + 3];
    int count = 0;
    for (int j = 0; j < J; ++j) {
      if (!used_[j]) continue;
      const int stage = first_stage_of(j);
      if (args_.depth[j] == 2) {
        convolve(group, stage + 1, inner_[j], inner_tile(j), 1, top, rows, term_[j]);
      } else {
        convolve(group, stage, rectified_, tile_, args_.stride, top, rows, term_[j]);
      }
      which[count] = j;
      term[count++] = term_[j];
    }
    const A* const images_of[] = {average_, maximum_, raw_};  // the same for all edges
    for (int m = J; m < terms; ++m) {
      if (!used_[m]) continue;
      which[count] = m;
      term[count++] = images_of[m - J] + top * width * lanes;
    }
    for (int64_t table = 0; table < tables_; ++table) {
      const A* const scales = scales_ + table * (terms + 1) * lanes;
      const A* scale[kMaxSumCandidates + 3];
      for (int i = 0; i < count; ++i) scale[i] = scales + which[i] * lanes;
      sum_terms<A>(term, scale, count, scales + terms * lanes, lanes, rows * width, sum_);
      write_sums(group, edges, table * args_.images + image, images, top, rows * width);
    }
  }

  void write_sums(int group, int edges, int64_t image, int images, int64_t top, int64_t pixels) {
    T* to[kLanes<A>] = {};
    for (int copy = 0; copy < images; ++copy) {
      const int64_t pixel = ((image + copy) * args_.out_height + top) * args_.out_width;
      for (int s = 0; s < edges; ++s) {
        to[copy * plan_.slots + s] = args_.result[group * plan_.slots + s] + pixel * plan_.channels;
      }
    }
    write_streams(sum_, plan_.lanes, plan_.channels, pixels, to, plan_.slots * plan_.copies);
  }

  const EdgeSum<T>& args_;
  const EdgePlan<T> plan_;
  const A* prepared_;
  int64_t tables_;  // of scales: one for each individual that the images serve
  int64_t rows_;
  StageTile tile_;
  bool pools_ = false;  // whether any edge wants them
  A *raw_, *rectified_, *average_, *maximum_, *z_, *sum_, *columns_, *scales_;
  A* inner_[kMaxSumCandidates];
  A* term_[kMaxSumCandidates];
  bool used_[kMaxSumCandidates + 3];
};

}  // namespace

template <typename T>
int64_t edge_sum_blocks(const EdgeSum<T>& args) {
  return EdgePlan<T>(args).blocks(args.images);
}

template <typename T>
int64_t edge_sum_prepared_bytes(const EdgeSum<T>& args) {
  const EdgePlan<T> plan(args);
  return plan.groups * plan.size * static_cast<int64_t>(sizeof(accumulate_t<T>));
}

template <typename T>
void edge_sum_prepare(const EdgeSum<T>& args, void* prepared) {
  using A = accumulate_t<T>;
  const EdgePlan<T> plan(args);
  const int64_t channels = plan.channels, lanes = plan.lanes;
  const int inner = args.stages - args.candidates;
  std::memset(prepared, 0, plan.groups * plan.size * sizeof(A));
  for (int edge = 0; edge < args.edges; ++edge) {
    A* const group = static_cast<A*>(prepared) + edge / plan.slots * plan.size;
    for (int copy = 0; copy < plan.copies; ++copy) {
      const int64_t lane = plan.lane(copy, edge % plan.slots);
      for (int s = 0; s < args.stages; ++s) {
        const int64_t taps = args.kernel[s] * args.kernel[s];
        A* const depthwise = group + plan.weights[s] + lane;
        A* const pointwise = depthwise + taps * lanes;
        for (int64_t c = 0; c < channels; ++c) {
          for (int64_t t = 0; t < taps; ++t) depthwise[t * lanes + c] = args.depthwise[edge][s][c * taps + t];
          for (int64_t i = 0; i < channels; ++i) pointwise[i * lanes + c] = args.pointwise[edge][s][c * channels + i];
        }
      }
      for (int i = 0; i < inner; ++i) {
        A* const scale = group + plan.inner + 2 * i * lanes + lane;
        const int64_t from = (edge * inner + i) * channels;
        for (int64_t c = 0; c < channels; ++c) {
          scale[c] = args.inner_scales[from + c];
          scale[lanes + c] = args.inner_offsets[from + c];
        }
      }
    }
  }
}

template <typename T>
void edge_sum_forward(const EdgeSum<T>& args, const void* prepared, int64_t first, int64_t last) {
  EdgeSums<T> sums(args, prepared);
  const int copies = EdgePlan<T>(args).copies;
  for (int64_t block = first; block < last; ++block) {
    const int64_t image = block * copies, left = args.images - image;
    sums.block(image, left < copies ? static_cast<int>(left) : copies);
  }
}

#define INSTANTIATE(T)                                         \
  template int64_t edge_sum_blocks(const EdgeSum<T>&);         \
  template int64_t edge_sum_prepared_bytes(const EdgeSum<T>&); \
  template void edge_sum_prepare(const EdgeSum<T>&, void*);    \
  template void edge_sum_forward(const EdgeSum<T>&, const void*, int64_t, int64_t);
INSTANTIATE(double)
INSTANTIATE(float)
INSTANTIATE(c10::BFloat16)
INSTANTIATE(c10::Half)

}  // namespace fastnas::FASTNAS_ISA
