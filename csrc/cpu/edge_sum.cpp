// edge_sum: for every edge that leaves a state, the weighted sum of its normalised candidates.
//
// An image stays in the cache from its first reading to the sums. A thread takes a block of images at a time: tiles of
// the state (as it is for the pools, rectified and padded for the convolutions), then for each group of edges the tiles
// between the two stages of a candidate, then rows of all terms and of their sum; only the sums go to memory. Edges of
// few channels share a vector, and so do images where edges leave lanes (lane_packing.h), as the stages of `stage` do:
// every edge reads the same state, so it is written once for each of them, and one depthwise and one matrix product
// compute a candidate of all edges of a group. Meanwhile the products prefetch the state of the next block and the
// lines of the sums. The statistics are constants, so normalisation is a scale and an offset for each term, and a term
// whose scale is zero for a whole block is not computed.
#include "ops/edge_sum.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "cpu/channels.h"
#include "cpu/depthwise.h"
#include "cpu/interleave.h"
#include "cpu/lane_packing.h"
#include "cpu/packed.h"
#include "cpu/padded_tile.h"
#include "cpu/pointwise.h"
#include "cpu/pool_rows.h"
#include "cpu/scratch_arena.h"

namespace fastnas::FASTNAS_ISA {
namespace {

/// How edges lie in vectors, and where the prepared weights of a group of edges lie.
template <typename T>
struct EdgePacking : LanePacking<accumulate_t<T>> {
  using A = accumulate_t<T>;
  using LanePacking<A>::channels, LanePacking<A>::lanes, LanePacking<A>::members;

  int groups;
  int64_t weights[kMaxSumStages];  // where the stages' weights begin, in those of a group
  int64_t inner;                   // where scales and offsets of first stages begin
  int64_t size = 0;                // of a group

  explicit EdgePacking(const EdgeSum<T>& args) : LanePacking<A>(args.channels, args.edges) {
    groups = (args.edges + members - 1) / members;
    for (int s = 0; s < args.stages; ++s) {
      weights[s] = size;
      size += (args.kernel[s] * args.kernel[s] + channels) * lanes;
    }
    inner = size;
    size += 2 * (args.stages - args.candidates) * lanes;
  }

  /// Edges of a group, of which it is the last that may have fewer than members.
  int edges_of(int group, int edges) const {
    return edges - group * members < members ? edges - group * members : members;
  }
};

// --- rows of terms ---------------------------------------------------------------------------------------------------

/// One row of 3×3 windows, centred on every `stride`-th pixel of row `centre` of x [height, width, lanes] → average and
/// maximum [windows, lanes].
template <typename A>
void pool_row(const A* x, int64_t height, int64_t width, int64_t lanes, int64_t centre, int64_t stride, int64_t windows,
              const PoolColumns<A>& columns, A* average, A* maximum) {
  const int64_t line = width * lanes;
  const A* middle = x + centre * line;
  columns.set(centre > 0 ? middle - line : nullptr, middle, centre + 1 < height ? middle + line : nullptr);
  const int rows = pixels_of_window(centre, height);
  const auto window = [&](int64_t w, A inverse) {
    for (int64_t c = 0; c < lanes; c += kLanes<A>) {
      const A* sum = columns.sum + w * stride * lanes + c;
      const A* most = columns.maximum + w * stride * lanes + c;
      store(average + w * lanes + c, (load(sum - lanes) + load(sum) + load(sum + lanes)) * inverse);
      store(maximum + w * lanes + c, larger<A>(load(most + lanes), larger<A>(load(most), load(most - lanes))));
    }
  };
  const auto inverse = [&](int64_t w) { return A(1) / A(rows * pixels_of_window(w * stride, width)); };
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
        packing_(args),
        prepared_(static_cast<const A*>(prepared)),
        tables_(args.shared ? args.individuals : 1),
        rows_(rows_worked_on<A>(args.out_height, args.out_width, packing_.lanes)),
        tile_(first_padding(), args.height, args.width, packing_.lanes),
        columns_(scratch_, args.width * packing_.lanes, packing_.lanes) {
    const int64_t lanes = packing_.lanes, rows = rows_ * args.out_width * lanes;
    raw_ = scratch_.take<A>(args.height * args.width * lanes);
    rectified_ = scratch_.take<A>(tile_.size);
    std::memset(rectified_, 0, tile_.size * sizeof(A));
    for (int j = 0; j < args.candidates; ++j) {
      if (args.depth[j] != 2) continue;
      inner_[j] = scratch_.take<A>(inner_tile(j).size);
      std::memset(inner_[j], 0, inner_tile(j).size * sizeof(A));
    }
    for (int j = 0; j < args.candidates; ++j) term_[j] = scratch_.take<A>(rows);
    average_ = scratch_.take<A>(args.out_height * args.out_width * lanes);
    maximum_ = scratch_.take<A>(args.out_height * args.out_width * lanes);
    z_ = scratch_.take<A>(rows);
    sum_ = scratch_.take<A>(rows);
    scales_ = scratch_.take<A>(tables_ * (args.terms() + 1) * lanes);
    const int terms = args.terms();
    for (int64_t edge = 0; edge < args.individuals * args.edges; ++edge) {
      const A* scales = args.scales + (edge * terms + args.candidates) * packing_.channels;
      for (int64_t c = 0; c < 2 * packing_.channels; ++c) pools_ |= scales[c] != 0;
    }
  }

  void block(int64_t image, int images) {
    fill_tiles(image, images);
    Prefetcher next_block;
    const int64_t pixels = args_.height * args_.width;
    next_block.add_pixels(args_.x + (image + images) * pixels * args_.x_stride, packing_.channels, args_.x_stride,
                          packing_.block_images * pixels);
    const int64_t lanes = packing_.lanes, width = args_.out_width;
    for (int64_t y = 0; pools_ && y < args_.out_height; ++y) {
      pool_row(raw_, args_.height, args_.width, lanes, y * args_.stride, args_.stride, width, columns_,
               average_ + y * width * lanes, maximum_ + y * width * lanes);
    }
    for (int group = 0; group < packing_.groups; ++group) {
      const int edges = packing_.edges_of(group, args_.edges);
      enter_tables(group, edges, image, images);
      for (int j = 0; j < args_.candidates; ++j) {
        if (used_[j] && args_.depth[j] == 2) first_stage(group, j, next_block);
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
  PaddedTile inner_tile(int candidate) const {
    return {padding_of(first_stage_of(candidate) + 1), args_.out_height, args_.out_width, packing_.lanes};
  }

  void fill_tiles(int64_t image, int images) {
    for (int i = 0; i < images; ++i) {
      const int64_t first = (image + i) * args_.height * args_.width;
      if constexpr (kLanes<A> >= 8) {
        if (packing_.channels == 4 && packing_.members == kLanes<A> / 4) {
          fill_members<4, kLanes<A> / 4>(first, 0);
          continue;
        }
      }
      for_run<A>(packing_.channels, [&]<int W>() { fill_members<W, 0>(first, packing_.lane(i, 0)); });
    }
  }

  /// The image whose first pixel is `first` goes, as it is and rectified, to each member's lanes. MEMBERS is their
  /// number where that and all channels as one run are known, else 0.
  template <int W, int MEMBERS>
  void fill_members(int64_t first, int64_t lane) {
    using R = Run<A, W>;
    const int64_t channels = MEMBERS ? W : packing_.channels, lanes = packing_.lanes;
    const int members = MEMBERS ? MEMBERS : packing_.members;
    for (int64_t y = 0; y < args_.height; ++y) {
      const T* x = args_.x + (first + y * args_.width) * args_.x_stride;
      A* raw = raw_ + y * args_.width * lanes + lane;
      A* rectified = rectified_ + tile_.at(y, 0) + lane;
      for (int64_t p = 0; p < args_.width; ++p) {
        for (int64_t c = 0; c < channels; c += W) {
          const R value = load_run<W, A>(x + p * args_.x_stride + c), positive = value < 0 ? R{} : value;  // keeps NaN
          for (int m = 0; m < members; ++m) store_run<W, A>(raw + p * lanes + m * channels + c, value);
          for (int m = 0; m < members; ++m) store_run<W, A>(rectified + p * lanes + m * channels + c, positive);
        }
      }
    }
  }

  /// Scales and offsets of a group, repeated for its images; which terms count.
  void enter_tables(int group, int edges, int64_t image, int images) {
    const int64_t channels = packing_.channels, lanes = packing_.lanes;
    const int terms = args_.terms();
    const int64_t each = args_.images / (args_.shared ? 1 : args_.individuals);  // images of an individual
    std::memset(scales_, 0, tables_ * (terms + 1) * lanes * sizeof(A));
    for (int m = 0; m < terms; ++m) used_[m] = false;
    for (int64_t table = 0; table < tables_; ++table) {
      A* const to = scales_ + table * (terms + 1) * lanes;
      for (int i = 0; i < images; ++i) {
        const int64_t p = args_.shared ? table : (image + i) / each;
        for (int e = 0; e < edges; ++e) {
          const int64_t edge = p * args_.edges + group * packing_.members + e, lane = packing_.lane(i, e);
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
  void convolve(int group, int stage, const A* x, const PaddedTile& tile, int64_t stride, int64_t top, int64_t rows,
                A* y, Prefetcher& prefetcher) {
    const int64_t lanes = packing_.lanes, width = args_.out_width;
    const int64_t kernel = args_.kernel[stage], dilation = args_.dilation[stage];
    const A* depthwise = prepared_ + group * packing_.size + packing_.weights[stage];
    const A* matrix = depthwise + kernel * kernel * lanes;
    for (int64_t r = 0; r < rows; ++r) {
      depthwise_row(tile.taps(x, kernel, dilation, stride, top + r), depthwise, width, z_ + r * width * lanes);
    }
    if (packing_.packed) {
      packed_pointwise(z_, packing_.channels, matrix, rows * width, y, prefetcher);
    } else {
      pointwise(z_, lanes, packing_.channels, matrix, lanes, Lines{1, rows * width, 0, 0}, y, prefetcher);
    }
  }

  /// The input of candidate j's second stage: normalised and rectified.
  void first_stage(int group, int j, Prefetcher& prefetcher) {
    const int64_t lanes = packing_.lanes, width = args_.out_width;
    const PaddedTile tile = inner_tile(j);
    const int index = first_stage_of(j) - j;  // among the candidates of two stages
    const A* scale = prepared_ + group * packing_.size + packing_.inner + 2 * index * lanes;
    for (int64_t top = 0; top < args_.out_height; top += rows_) {
      const int64_t rows = args_.out_height - top < rows_ ? args_.out_height - top : rows_;
      convolve(group, first_stage_of(j), rectified_, tile_, args_.stride, top, rows, sum_, prefetcher);
      for (int64_t r = 0; r < rows; ++r) {
        const A* y = sum_ + r * width * lanes;
        A* to = inner_[j] + tile.at(top + r, 0);
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
    const int64_t lanes = packing_.lanes, width = args_.out_width;
    const int J = args_.candidates, terms = args_.terms();
    const A* term[kMaxSumCandidates + 3];
    int which[kMaxSumCandidates + 3];
    int count = 0;
    Prefetcher prefetcher;
    for_results(group, edges, image, images, top,
                [&](int, T* to) { prefetcher.add(to, rows * width * packing_.channels); });
    for (int j = 0; j < J; ++j) {
      if (!used_[j]) continue;
      const int stage = first_stage_of(j);
      if (args_.depth[j] == 2) {
        convolve(group, stage + 1, inner_[j], inner_tile(j), 1, top, rows, term_[j], prefetcher);
      } else {
        convolve(group, stage, rectified_, tile_, args_.stride, top, rows, term_[j], prefetcher);
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

  /// use(slot, to): where row `top` of each result goes.
  template <typename F>
  void for_results(int group, int edges, int64_t image, int images, int64_t top, const F& use) const {
    for (int i = 0; i < images; ++i) {
      const int64_t pixel = ((image + i) * args_.out_height + top) * args_.out_width;
      for (int e = 0; e < edges; ++e) {
        use(packing_.slot(i, e), args_.result[group * packing_.members + e] + pixel * packing_.channels);
      }
    }
  }

  void write_sums(int group, int edges, int64_t image, int images, int64_t top, int64_t pixels) {
    T* to[kLanes<A>] = {};
    for_results(group, edges, image, images, top, [&](int slot, T* row) { to[slot] = row; });
    store_slots(sum_, packing_.lanes, packing_.channels, pixels, to, packing_.slots());
  }

  const EdgeSum<T>& args_;
  const EdgePacking<T> packing_;
  const A* prepared_;
  int64_t tables_;  // of scales: one for each individual that the images serve
  int64_t rows_;    // of outputs that are worked on together
  PaddedTile tile_;
  cpu::ScratchArena scratch_;
  PoolColumns<A> columns_;
  A* raw_;                            // [H, W, lanes], the state
  A* rectified_;                      // tile_ of it
  A* inner_[kMaxSumCandidates];       // tile between the two stages of a candidate
  A* term_[kMaxSumCandidates];        // rows_ of a candidate's output
  A *average_, *maximum_;             // [H', W', lanes]
  A *z_, *sum_;                       // rows_ of a depthwise convolution, of the terms' sum
  A* scales_;                         // [tables_, terms + 1, lanes], offsets last
  bool pools_ = false;                // whether any edge wants them
  bool used_[kMaxSumCandidates + 3];  // terms whose scales are not all zero
};

}  // namespace

template <typename T>
int64_t edge_sum_blocks(const EdgeSum<T>& args) {
  return EdgePacking<T>(args).blocks(args.images);
}

template <typename T>
int64_t edge_sum_prepared_bytes(const EdgeSum<T>& args) {
  const EdgePacking<T> packing(args);
  return packing.groups * packing.size * static_cast<int64_t>(sizeof(accumulate_t<T>));
}

template <typename T>
void edge_sum_prepare(const EdgeSum<T>& args, void* prepared) {
  using A = accumulate_t<T>;
  const EdgePacking<T> packing(args);
  const int64_t channels = packing.channels, lanes = packing.lanes;
  const int inner = args.stages - args.candidates;
  std::memset(prepared, 0, packing.groups * packing.size * sizeof(A));
  for (int edge = 0; edge < args.edges; ++edge) {
    A* const group = static_cast<A*>(prepared) + edge / packing.members * packing.size;
    for (int image = 0; image < packing.block_images; ++image) {
      const int64_t lane = packing.lane(image, edge % packing.members);
      for (int s = 0; s < args.stages; ++s) {
        const int64_t taps = args.kernel[s] * args.kernel[s];
        A* const depthwise = group + packing.weights[s] + lane;
        pack_weights(args.depthwise[edge][s], taps, args.pointwise[edge][s], channels, lanes, depthwise,
                     depthwise + taps * lanes);
      }
      for (int i = 0; i < inner; ++i) {
        A* const scale = group + packing.inner + 2 * i * lanes + lane;
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
  const EdgePacking<T> packing(args);
  for (int64_t block = first; block < last; ++block) {
    const int64_t image = block * packing.block_images;
    sums.block(image, packing.images_of_block(image, args.images));
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
