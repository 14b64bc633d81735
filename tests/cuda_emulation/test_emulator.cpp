// emulator_test <case>: exits with 0 if the case went well. Built plain and with each sanitizer; CMakeLists.txt says
// what each of them must find.
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <vector>

#include "kernels.h"

using namespace fastnas::cuda;

namespace {

void expect(bool condition, const char* what) {
  if (!condition) throw std::logic_error(std::string("expected ") + what);
}

// The launch must fail with a message that holds all of these.
void expect_failure(const std::function<void()>& run, const std::vector<std::string>& parts) {
  try {
    run();
  } catch (const std::runtime_error& error) {
    for (const std::string& part : parts) {
      if (std::string(error.what()).find(part) == std::string::npos) {
        throw std::logic_error(std::string("'") + error.what() + "' does not say '" + part + "'");
      }
    }
    return;
  }
  throw std::logic_error("nothing failed; expected " + parts[0]);
}

void sum_rows(void (*kernel)(const float*, float*, int), int offset = 0) {
  std::vector<float> x(4 * 1024 + 4), y(4);
  std::iota(x.begin(), x.end(), 0.0f);
  launch("row_sum", kernel, 4, 256, 0, nullptr, x.data() + offset, y.data(), 1024);
  for (int r = 0; r < 4; ++r) expect(y[r] == 1024.0f * (1024 * r) + 1023.0f * 512, "the sum of the row");
}

void reverse(int shared_shift = 0, int global_shift = 0) {
  std::vector<float> x(3 * 128);
  std::iota(x.begin(), x.end(), 0.0f);
  std::unique_ptr<float[]> y(new float[x.size()]);
  launch("reverse_rows", reverse_rows, 3, 128, 128 * sizeof(float), nullptr, x.data(), y.get(), shared_shift,
         global_shift);
  for (int i = 0; i < 3 * 128; ++i) expect(y[i] == x[i / 128 * 128 + 127 - i % 128], "the row backwards");
}

void count_values(void (*kernel)(const int*, float*, int)) {
  std::vector<int> x(1000);
  for (int i = 0; i < 1000; ++i) x[i] = i % 16;
  std::vector<float> bins(16);
  launch("histogram", kernel, 4, 256, 0, nullptr, x.data(), bins.data(), 1000);
  for (int b = 0; b < 16; ++b) expect(bins[b] == (b < 8 ? 63 : 62), "all values counted");
}

void pass(void (*kernel)(float*)) {
  std::vector<float> values(kWarp);
  std::iota(values.begin(), values.end(), 0.0f);
  launch("pass_on", kernel, 1, kWarp, 0, nullptr, values.data());
  for (int i = 0; i < kWarp; ++i) expect(values[i] == float((i + 1) % kWarp), "the next lane's value");
}

void meet(Mistake mistake, unsigned from, unsigned threads = 64) {
  std::vector<float> y(threads);
  launch("meeting", meeting, 2, threads, 0, nullptr, mistake, from, y.data());
}

void exchange_lanes() {
  std::vector<int> r(12 * kWarp);
  launch("exchanges", exchanges, 1, kWarp, 0, nullptr, r.data());
  for (int l = 0; l < kWarp; ++l) {
    const int wanted[12] = {5,
                            l / 8 * 8 + (l + 1) % 8,
                            l < 3 ? l : l - 3,
                            l % 4 < 1 ? l : l - 1,
                            l + 3 < 32 ? l + 3 : l,
                            l % 4 < 3 ? l + 1 : l,
                            l ^ 16,
                            l ^ 1,
                            int(0xaaaaaaaa),
                            1,
                            1,
                            l < 8 ? l ^ 1 : l ^ 2};
    for (int i = 0; i < 12; ++i) {
      expect(r[i * kWarp + l] == wanted[i],
             ("exchange " + std::to_string(i) + " of lane " + std::to_string(l)).c_str());
    }
  }
}

void count_indices() {
  std::vector<unsigned> seen(2 * 3 * 4 * (5 * 3 * 2));
  launch("indices", indices, dim3(2, 3, 4), dim3(5, 3, 2), 0, nullptr, seen.data());
  for (unsigned count : seen) expect(count == 1, "every thread of every block once");
}

void everything() {
  sum_rows(row_sum<256>);
  reverse();
  count_values(histogram<16, true>);
  pass(pass_on<false>);
  meet(Mistake::none, 32);
  exchange_lanes();
  count_indices();
}

void orders() {
  for (auto order : {emulator::Order::forward, emulator::Order::reverse, emulator::Order::shuffled}) {
    emulator::set_order(order, 1);
    everything();
  }
  // With real blocks any may win; the order makes that visible.
  int winner = -1;
  emulator::set_order(emulator::Order::forward, 0);
  launch("last_block_wins", last_block_wins, 9, 1, 0, nullptr, &winner);
  expect(winner == 8, "the last block last");
  emulator::set_order(emulator::Order::reverse, 0);
  launch("last_block_wins", last_block_wins, 9, 1, 0, nullptr, &winner);
  expect(winner == 0, "the first block last");
}

void failures() {
  for (int again = 0; again < 2; ++again) {  // a failure leaves nothing behind
    expect_failure([] { meet(Mistake::barrier, 40); }, {"block (0, 0, 0)", "__syncthreads", "kernels.h"});
    expect_failure([] { meet(Mistake::two_barriers, 40); }, {"all threads of a block must come to the same one"});
    expect_failure([] { meet(Mistake::exit, 40); },
                   {"waits at __syncthreads", "thread (40, 0, 0) has left the kernel"});
    expect_failure([] { meet(Mistake::shuffle, 16); }, {"waits at __syncthreads", "waits at a shuffle in kernels.h"});
    expect_failure([] { meet(Mistake::lane, 0); }, {"reads lane 20, which is not in its mask 0x0000ffff"});
    expect_failure([] { meet(Mistake::mask, 33); }, {"thread (33, 0, 0)", "by a lane that is not in its mask"});
    expect_failure([] { meet(Mistake::shuffle, 99, 48); }, {"lane 16 does not exist"});
    expect_failure([] { meet(Mistake::index, 1); },
                   {"thread (7, 0, 0)", "index 8 is outside of its array in kernels.h"});
    expect_failure([] { sum_rows(row_sum<256>, 1); }, {"misaligned address", "device.h"});
    everything();
  }
}

void refusals() {
  float* none = nullptr;
  const auto reverse_with = [&](dim3 grid, dim3 block, size_t bytes) {
    launch("reverse_rows", reverse_rows, grid, block, bytes, nullptr, none, none, 0, 0);
  };
  expect_failure([&] { reverse_with(1, 1025, 0); },
                 {"launch of reverse_rows", "1025 threads", "invalid configuration"});
  expect_failure([&] { reverse_with(0, 32, 0); }, {"grid (0, 1, 1)"});
  expect_failure([&] { reverse_with(dim3(1, 65536), 32, 0); }, {"grid (1, 65536, 1)"});
  expect_failure([&] { reverse_with(1, 32, 200 << 10); }, {"204800 bytes of shared memory", "invalid argument"});
  std::vector<float> x(32), y(32);
  launch("reverse_rows", reverse_rows, 1, 32, 100 << 10, nullptr, x.data(), y.data(), 0, 0);
}

const std::map<std::string, std::function<void()>> kCases = {
    {"everything", everything},
    {"orders", orders},
    {"failures", failures},
    {"refusals", refusals},
    {"global_write", [] { reverse(0, 1); }},
    {"dynamic_shared_write", [] { reverse(1, 0); }},
    {"static_shared_write", [] { count_values(histogram<15, true>); }},
    {"misaligned_load", [] { sum_rows(row_sum<256>, 1); }},
    {"missing_barrier", [] { sum_rows(row_sum<256, true>); }},
    {"missing_warp_barrier", [] { pass(pass_on<true>); }},
    {"missing_atomic", [] { count_values(histogram<16, false>); }},
};

}  // namespace

int main(int count, char** arguments) {
  const auto test = kCases.find(count == 2 ? arguments[1] : "");
  if (test == kCases.end()) {
    std::printf("usage: %s CASE; cases:", arguments[0]);
    for (const auto& [name, run] : kCases) std::printf(" %s", name.c_str());
    std::printf("\n");
    return 2;
  }
  try {
    test->second();
  } catch (const std::exception& error) {
    std::printf("failed: %s\n", error.what());
    return 1;
  }
  std::printf("went well\n");
  return 0;
}
