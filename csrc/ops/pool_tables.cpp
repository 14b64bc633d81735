#include "ops/pool_tables.h"

#include <algorithm>
#include <tuple>

#include "ops/backend.h"
#include "ops/checks.h"
#include "ops/layout.h"
#include "ops/pool.h"

namespace fastnas {
namespace {

struct Cpu : OnCpu {
  using OnCpu::OnCpu;

  template <typename A>
  void run(const PoolTables<A>& args) const {
    for (int64_t place = 0; place < args.places(); ++place) {
      for (int64_t c = 0; c < args.channels; ++c) pool_table(args, place, c);
    }
  }
};

struct Cuda : OnCuda {
  using OnCuda::OnCuda;

  template <typename A>
  void run(const PoolTables<A>& args) const {
    cuda::pool_tables(args, stream());
  }
};

template <typename Backend>
std::tuple<Tensor, Tensor, Tensor> pool_tables(const Tensor& coeffs, std::vector<int64_t> rows,
                                               std::vector<int64_t> places, int64_t nodes) {
  constexpr auto op = "fastnas::pool_tables";
  STD_TORCH_CHECK(coeffs.scalar_type() == ScalarType::Float || coeffs.scalar_type() == ScalarType::Double, op,
                  ": coeffs must be float32 or float64");
  STD_TORCH_CHECK(coeffs.dim() == 3 && coeffs.size(1) == 4, op, ": coeffs must be [K, 4, C], got shape ",
                  shape_of(coeffs));
  check_extent(op, {"coeffs"}, coeffs);
  STD_TORCH_CHECK(nodes >= 0 && nodes <= kMaxPoolGrads, op, ": nodes is ", nodes, ", expected 0 to ", kMaxPoolGrads);
  STD_TORCH_CHECK(rows.size() == places.size(), op, ": got ", rows.size(), " rows and ", places.size(), " places");
  const int64_t last = 3 * nodes + 1, C = coeffs.size(2);
  std::vector<PoolEntry> entries;
  for (size_t i = 0; i < rows.size(); ++i) {
    STD_TORCH_CHECK(rows[i] >= 0 && rows[i] < coeffs.size(0), op, ": rows[", i, "] is ", rows[i], ", expected 0 to ",
                    coeffs.size(0) - 1);
    STD_TORCH_CHECK(places[i] >= 0 && places[i] <= last, op, ": places[", i, "] is ", places[i], ", expected 0 to ",
                    last);
    entries.push_back({static_cast<int32_t>(rows[i]), static_cast<int32_t>(places[i])});
  }
  const Backend backend(coeffs);
  const Tensor from = as_contiguous(coeffs);
  const auto table = [&](const Sizes& sizes) {
    return empty(coeffs, sizes, MemoryFormat::contiguous, coeffs.scalar_type());
  };
  Tensor scales = table({2, nodes, C}), bn_coeffs = table({2, 3, C}), skip = table({nodes, C});
  THO_DISPATCH_V2(coeffs.scalar_type(), op, AT_WRAP([&] {
                    if (C == 0) return;
                    PoolTables<scalar_t> args{};
                    args.coeffs = from.const_data_ptr<scalar_t>();
                    args.channels = C;
                    args.nodes = nodes;
                    args.scales = scales.mutable_data_ptr<scalar_t>();
                    args.bn_coeffs = bn_coeffs.mutable_data_ptr<scalar_t>();
                    args.skip = skip.mutable_data_ptr<scalar_t>();
                    for (size_t first = 0; first == 0 || first < entries.size(); first += kPoolEntries) {
                      args.adds = first > 0;
                      args.count = std::min<int64_t>(kPoolEntries, entries.size() - first);
                      std::copy_n(entries.begin() + first, args.count, args.entries);
                      backend.run(args);
                    }
                  }),
                  AT_EXPAND(AT_FLOATING_TYPES));
  return {scales, bn_coeffs, skip};
}

}  // namespace

FASTNAS_SCHEMAS(m) {
  m.def(
      "pool_tables(Tensor coeffs, int[] rows, int[] places, int nodes) -> (Tensor scales, Tensor bn_coeffs, Tensor "
      "skip)");
}

FASTNAS_IMPLEMENTATIONS(m, Backend) { m.impl("pool_tables", TORCH_BOX(&pool_tables<Backend>)); }

}  // namespace fastnas
