#include "ops/stage.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "cpu/depthwise.h"
#include "cpu/memory.h"
#include "cpu/packed.h"
#include "cpu/pointwise.h"
#include "cpu/stage_plan.h"
#include "cpu/statistics.h"

namespace fastnas::FASTNAS_ISA {
namespace {

// `pixels` pixels [pixels, lanes] to the outputs that lie side by side in them, from pixel `pixel` of the first image
// on.
template <typename T>
void write_outputs(const Stage<T>& args, const StagePlan<T>& plan, const StageGroup& group, int images, int64_t pixel,
                   int64_t pixels, const accumulate_t<T>* y, const StageOutputs<T>& out) {
  T* to[kLanes<accumulate_t<T>>] = {};
  plan.streams(group, images, [&](int stream, int copy, int stage) {
    to[stream] = out.y[stage] + (pixel + copy * args.out_height * args.out_width) * plan.channels;
  });
  write_streams(y, plan.lanes, plan.channels, pixels, to, plan.slots * plan.copies);
}

}  // namespace

template <typename T>
int64_t stage_prepared_bytes(const Stage<T>& args) {
  return StagePlan<T>(args).weights * static_cast<int64_t>(sizeof(accumulate_t<T>));
}

template <typename T>
StageWork stage_work(const Stage<T>& args) {
  const StagePlan<T> plan(args);
  return {plan.blocks(args.count) * plan.bundles, plan.parts(args.count) * plan.bundles, plan.groups};
}

template <typename T>
void stage_prepare(const Stage<T>& args, void* prepared, int64_t first, int64_t last) {
  using A = accumulate_t<T>;
  const StagePlan<T> plan(args);
  const int64_t channels = plan.channels, lanes = plan.lanes;
  A* const weights = static_cast<A*>(prepared);
  for (int64_t index = first; index < last; ++index) {
    const StageGroup& group = plan.group[index];
    const int64_t taps = group.taps();
    std::memset(weights + group.weights, 0, 2 * (taps + channels) * lanes * sizeof(A));
    A* const depthwise = weights + group.weights;
    A* const turned = depthwise + taps * lanes;
    A* const pointwise = turned + taps * lanes;
    A* const transposed = pointwise + channels * lanes;
    for (int s = 0; s < group.size; ++s) {
      const int stage = plan.order[group.first + s];
      for (int64_t copy = 0; copy < plan.copies; ++copy) {
        for (int64_t c = 0; c < channels; ++c) {
          const int64_t lane = plan.lane(copy, s) + c;
          for (int64_t t = 0; t < taps; ++t) {
            depthwise[t * lanes + lane] = args.depthwise[stage][c * taps + t];
            turned[(taps - 1 - t) * lanes + lane] = args.depthwise[stage][c * taps + t];
          }
        }
        for (int64_t other = 0; other < channels; ++other) {
          A* const row = pointwise + other * lanes + plan.lane(copy, s);
          for (int64_t c = 0; c < channels; ++c) row[c] = args.pointwise[stage][c * channels + other];
          std::memcpy(transposed + other * lanes + plan.lane(copy, s), args.pointwise[stage] + other * channels,
                      channels * sizeof(A));
        }
      }
    }
  }
}

template <typename T>
void stage_forward(const Stage<T>& args, const void* prepared, const StageOutputs<T>& out, double* table, int64_t first,
                   int64_t last) {
  using A = accumulate_t<T>;
  const StagePlan<T> plan(args);
  const int64_t channels = plan.channels, lanes = plan.lanes, width = args.out_width;
  const int64_t rows = stage_block_rows<A>(args.out_height, width, lanes);
  int64_t padding = 0;
  for (int b = 0; b < plan.bundles; ++b) padding = plan.padding[b] > padding ? plan.padding[b] : padding;
  const StageTile tile(padding, args.height, args.width, lanes);
  const auto buffers = [&](Layout layout, auto use) {
    A* const x = layout.take<A>(tile.size);
    A* const z = layout.take<A>(rows * width * lanes);
    A* const y = layout.take<A>(rows * width * lanes);
    MomentSums<A> moments(layout, lanes);
    return use(x, z, y, moments, layout.bytes());
  };
  const int64_t bytes = buffers(Layout(nullptr), [](auto*, auto*, auto*, auto&, int64_t size) { return size; });
  buffers(Layout(cpu::scratch(bytes)), [&](A* x, A* z, A* block, MomentSums<A>& moments, int64_t) {
    std::memset(x, 0, tile.size * sizeof(A));
    StageFill<T> fill(args, plan, tile);
    for (int64_t item = first; item < last; ++item) {
      const int64_t image = item / plan.bundles * plan.copies;
      const int64_t left = args.count - image;
      const int images = left < plan.copies ? static_cast<int>(left) : plan.copies;
      const int bundle = static_cast<int>(item % plan.bundles);
      fill.begin(bundle, image, images, x);
      for (int index = plan.first_group[bundle]; index < plan.first_group[bundle + 1]; ++index) {
        const StageGroup& group = plan.group[index];
        const int64_t inset = tile.padding - group.padding();
        const A* depthwise = plan.depthwise(prepared, group);
        const A* pointwise_weights = plan.pointwise(prepared, group);
        T* const direct = out.y[plan.order[group.first]];
        const bool in_place =
            std::is_same_v<T, A> && lanes == channels && reinterpret_cast<uintptr_t>(direct) % kVectorBytes == 0;
        moments.begin();
        for (int64_t top = 0; top < args.out_height; top += rows) {
          const int64_t count = args.out_height - top < rows ? args.out_height - top : rows;
          const int64_t pixel = (image * args.out_height + top) * width;  // in the outputs
          fill.reach(group, top + count);
          for (int64_t r = 0; r < count; ++r) {
            const Taps<A> taps{x + ((top + r) * args.stride + inset) * tile.row + inset * lanes,
                               tile.row,
                               lanes,
                               group.kernel,
                               group.dilation,
                               args.stride};
            depthwise_row(taps, depthwise, width, z + r * width * lanes);
          }
          A* y = block;
          if constexpr (std::is_same_v<T, A>) y = in_place ? direct + pixel * channels : block;
          Ahead ahead;
          if (!in_place) {
            plan.streams(group, images, [&](int, int copy, int stage) {
              ahead.add(out.y[stage] + (pixel + copy * args.out_height * width) * channels, count * width * channels);
            });
          }
          fill.read_ahead(rows, ahead);
          if (plan.packed) {
            packed_pointwise(z, channels, pointwise_weights, count * width, y, ahead);
          } else {
            pointwise(z, lanes, channels, pointwise_weights, lanes, Lines{1, count * width, 0, 0}, y, ahead);
          }
          if (table) moments.add(y, count * width);
          if (in_place) continue;
          write_outputs(args, plan, group, images, pixel, count * width, y, out);
        }
        for (int copy = 0; table && copy < images; ++copy) {
          for (int s = 0; s < group.size; ++s) {
            const int64_t entry = (image + copy) * args.stages + plan.order[group.first + s];
            moments.finish(plan.lane(copy, s), channels, table + entry * 2 * channels);
          }
        }
      }
    }
    return 0;
  });
}

#define INSTANTIATE(T)                                                   \
  template int64_t stage_prepared_bytes(const Stage<T>&);                \
  template StageWork stage_work(const Stage<T>&);                        \
  template void stage_prepare(const Stage<T>&, void*, int64_t, int64_t); \
  template void stage_forward(const Stage<T>&, const void*, const StageOutputs<T>&, double*, int64_t, int64_t);
INSTANTIATE(double)
INSTANTIATE(float)
INSTANTIATE(c10::BFloat16)
INSTANTIATE(c10::Half)

}  // namespace fastnas::FASTNAS_ISA
