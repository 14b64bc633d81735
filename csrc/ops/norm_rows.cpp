#include "ops/norm_rows.h"

#include <algorithm>
#include <numeric>
#include <optional>

#include "ops/backend.h"
#include "ops/checks.h"
#include "ops/layout.h"

namespace fastnas {
namespace {

// --- checks ----------------------------------------------------------------------------------------------------------

/// A table in the dtype of sums; others are tables like it.
void check_sums(const char* op, const Argument& argument, const Tensor& t) {
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float || t.scalar_type() == ScalarType::Double, op, ": ", argument,
                  " must be float32 or float64");
  check_extent(op, argument, t);
}

void check_written(const char* op, const char* name, const Tensor& t) {
  STD_TORCH_CHECK(has_memory_format(t, MemoryFormat::contiguous), op, ": ", name,
                  " is written, and must be contiguous");
}

/// The numbers 0 to count - 1 where there are none; each must be below `most`.
std::vector<int64_t> checked_indices(const char* op, const char* name, std::optional<std::vector<int64_t>> indices,
                                     int64_t count, int64_t most) {
  if (!indices) {
    indices.emplace(count);
    std::iota(indices->begin(), indices->end(), 0);
  }
  for (size_t i = 0; i < indices->size(); ++i) {
    STD_TORCH_CHECK((*indices)[i] >= 0 && (*indices)[i] < most, op, ": ", name, "[", i, "] is ", (*indices)[i],
                    ", expected 0 to ", most - 1);
  }
  return *std::move(indices);
}

/// [K, C] or [C] whose values follow each other; rows may be at any distance.
Tensor rows_of(const Tensor& t) {
  const int64_t last = t.dim() - 1;
  return t.size(last) <= 1 || t.stride(last) == 1 ? t : as_contiguous(t);
}

template <typename A>
RowsOf<A> rows_in(const Tensor& t) {
  return {t.const_data_ptr<A>(), t.dim() == 1 ? 0 : t.stride(0)};
}

// --- kernels ---------------------------------------------------------------------------------------------------------

struct Cpu : OnCpu {
  using OnCpu::OnCpu;

  template <typename A>
  void forward(const NormRows<A>& args, A* table) const {
    for (int64_t of = 0; of < args.count; ++of) {
      for (int64_t p = 0; p < args.individuals; ++p) {
        for (int64_t c = 0; c < args.channels; ++c) norm_row(args, of, p, c, table);
      }
    }
  }

  template <typename A>
  void backward(const NormRowsGrad<A>& args, A* coeffs) const {
    for (int64_t row = 0; row < args.rows; ++row) {
      for (int64_t c = 0; c < args.channels; ++c) norm_row_grad(args, row, c, coeffs);
    }
  }
};

struct Cuda : OnCuda {
  using OnCuda::OnCuda;

  template <typename A>
  void forward(const NormRows<A>& args, A* table) const {
    cuda::norm_rows(args, table, stream());
  }

  template <typename A>
  void backward(const NormRowsGrad<A>& args, A* coeffs) const {
    cuda::norm_rows_grad(args, coeffs, stream());
  }
};

// --- operators -------------------------------------------------------------------------------------------------------

template <typename Backend>
void forward(Tensors mean, Tensors variance, std::optional<std::vector<int64_t>> places,
             std::optional<std::vector<int64_t>> rows, double eps, Tensor table) {
  constexpr auto op = "fastnas::norm_rows";
  check_sums(op, {"table"}, table);
  STD_TORCH_CHECK(table.dim() == 4 && table.size(0) == 3, op, ": table must be [3, K, P, C], got shape ",
                  shape_of(table));
  check_written(op, "table", table);
  STD_TORCH_CHECK(eps >= 0 && std::isfinite(eps), op, ": eps is ", eps, ", expected a finite number from 0 on");
  STD_TORCH_CHECK(mean.size() == variance.size(), op, ": got ", mean.size(), " mean and ", variance.size(),
                  " variance, expected one of each for every list of statistics");
  int64_t statistics = 0;
  for (size_t j = 0; j < mean.size(); ++j) {
    STD_TORCH_CHECK(mean[j].dim() == 3, op, ": mean[", j, "] must be [norms, P, C], got shape ", shape_of(mean[j]));
    const bool shared = mean[j].size(1) == 1;
    const Sizes expected{mean[j].size(0), shared ? 1 : table.size(2), table.size(3)};
    for (const auto& [name, tensor] : {std::pair{"mean", mean[j]}, std::pair{"variance", variance[j]}}) {
      check_sizes(op, nth(name, j), tensor, expected);
      check_like(op, nth(name, j), tensor, "table", table);
      check_extent(op, nth(name, j), tensor);
    }
    statistics += mean[j].size(0);
  }
  const int64_t written = places ? static_cast<int64_t>(places->size()) : statistics;
  STD_TORCH_CHECK(written <= table.size(1) && (!rows || written == static_cast<int64_t>(rows->size())), op, ": got ",
                  written, " statistics for ", rows ? static_cast<int64_t>(rows->size()) : table.size(1), " rows");
  const int64_t values = table.size(2) * table.size(3);
  if (written == 0 || values == 0) return;
  const std::vector<int64_t> from = checked_indices(op, "places", std::move(places), statistics, statistics);
  const std::vector<int64_t> to = checked_indices(op, "rows", std::move(rows), written, table.size(1));

  const Backend backend(table);
  const Tensors means = to_memory_format(mean, MemoryFormat::contiguous);
  const Tensors variances = to_memory_format(variance, MemoryFormat::contiguous);
  THO_DISPATCH_V2(table.scalar_type(), op, AT_WRAP([&] {
                    std::vector<NormRow<scalar_t>> all;
                    for (size_t j = 0; j < means.size(); ++j) {
                      const int64_t own = means[j].size(1) * means[j].size(2);
                      for (int64_t norm = 0; norm < means[j].size(0); ++norm) {
                        all.push_back({means[j].const_data_ptr<scalar_t>() + norm * own,
                                       variances[j].const_data_ptr<scalar_t>() + norm * own, means[j].size(1) == 1, 0});
                      }
                    }
                    NormRows<scalar_t> args{};
                    args.individuals = table.size(2);
                    args.channels = table.size(3);
                    args.table_rows = table.size(1);
                    args.eps = static_cast<scalar_t>(eps);
                    for (size_t first = 0; first < from.size(); first += kRowsOfLaunch) {
                      args.count = std::min<int64_t>(kRowsOfLaunch, from.size() - first);
                      for (int64_t i = 0; i < args.count; ++i) {
                        args.rows[i] = all[from[first + i]];
                        args.rows[i].row = to[first + i];
                      }
                      backend.forward(args, table.mutable_data_ptr<scalar_t>());
                    }
                  }),
                  AT_EXPAND(AT_FLOATING_TYPES));
}

template <typename Backend>
void backward(const Tensor& sum_dy, const Tensor& sum_dy_xhat, const Tensor& mean, const Tensor& rstd,
              const Tensor& scale, int64_t count, Tensor coeffs) {
  constexpr auto op = "fastnas::norm_rows_grad";
  check_sums(op, {"coeffs"}, coeffs);
  STD_TORCH_CHECK(coeffs.dim() == 3 && coeffs.size(1) == 4, op, ": coeffs must be [K, 4, C], got shape ",
                  shape_of(coeffs));
  check_written(op, "coeffs", coeffs);
  STD_TORCH_CHECK(count >= 0, op, ": count is ", count, ", expected 0 or more");
  const int64_t K = coeffs.size(0), C = coeffs.size(2);
  const bool shared = sum_dy.dim() == 1;
  const std::pair<const char*, const Tensor*> rows[] = {
      {"sum_dy_xhat", &sum_dy_xhat}, {"mean", &mean}, {"rstd", &rstd}, {"scale", &scale}};
  for (const auto& [name, tensor] : rows) {
    check_sizes(op, {name}, *tensor, {K, C});
    check_like(op, {name}, *tensor, "coeffs", coeffs);
  }
  check_sizes(op, {"sum_dy"}, sum_dy, shared ? Sizes{C} : Sizes{K, C});
  check_like(op, {"sum_dy"}, sum_dy, "coeffs", coeffs);
  if (K * C == 0) return;

  const Backend backend(coeffs);
  const Tensor dy = rows_of(sum_dy), dy_xhat = rows_of(sum_dy_xhat), means = rows_of(mean), rstds = rows_of(rstd),
               scales = rows_of(scale);
  THO_DISPATCH_V2(coeffs.scalar_type(), op, AT_WRAP([&] {
                    NormRowsGrad<scalar_t> args{};
                    args.sum_dy = rows_in<scalar_t>(dy);
                    args.sum_dy_xhat = rows_in<scalar_t>(dy_xhat);
                    args.mean = rows_in<scalar_t>(means);
                    args.rstd = rows_in<scalar_t>(rstds);
                    args.scale = rows_in<scalar_t>(scales);
                    args.rows = K;
                    args.channels = C;
                    args.share = count ? scalar_t(-1.0 / static_cast<double>(count)) : scalar_t(0);
                    backend.backward(args, coeffs.mutable_data_ptr<scalar_t>());
                  }),
                  AT_EXPAND(AT_FLOATING_TYPES));
}

}  // namespace

FASTNAS_SCHEMAS(m) {
  m.def("norm_rows(Tensor[] mean, Tensor[] variance, int[]? places, int[]? rows, float eps, Tensor(a!) table) -> ()");
  m.def(
      "norm_rows_grad(Tensor sum_dy, Tensor sum_dy_xhat, Tensor mean, Tensor rstd, Tensor scale, int count, "
      "Tensor(a!) coeffs) -> ()");
}

FASTNAS_IMPLEMENTATIONS(m, Backend) {
  m.impl("norm_rows", TORCH_BOX(&forward<Backend>));
  m.impl("norm_rows_grad", TORCH_BOX(&backward<Backend>));
}

}  // namespace fastnas
