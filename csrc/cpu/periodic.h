// Channels along flat runs of values: tables that repeat with a period.
//
// Dense pixels of C channels are one flat run of values, in which value i belongs to channel i % C. Loops over such a
// run fill whole vectors, whatever C is, if what belongs to a channel (a mean, a scale, a sum) is repeated in a table
// as long as a *period*: the smallest number of values that is a whole number of pixels and of vectors. A loop then
// goes with one vector of the table over every period of the run, and the table's vector stays in a register. Where C
// divides the vector, the period is one vector; for C = 20 and 8 lanes it is 40 values.
#pragma once

#include <cstdint>

#include "cpu/vec.h"

namespace fastnas::FASTNAS_ISA {

/// Values in a whole number of pixels and of blocks of `vectors` vectors.
template <typename A, int vectors = 1>
inline int64_t period_of(int64_t channels) {
  int64_t period = channels;
  while (period % (vectors * kLanes<A>) != 0) period += channels;
  return period;
}

template <typename A>
inline void fill(A* to, A value, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = value;
}

/// The entries of one channel in a table [period].
template <typename A>
inline void fill_channel(A* table, A value, int64_t channel, int64_t channels, int64_t period) {
  for (int64_t i = channel; i < period; i += channels) table[i] = value;
}

/// rows [count, C] → tables [count, period].
template <typename A>
inline void repeat_rows(const A* rows, int64_t count, int64_t channels, int64_t period, A* tables) {
  for (int64_t row = 0; row < count; ++row) {
    for (int64_t i = 0; i < period; ++i) tables[row * period + i] = rows[row * channels + i % channels];
  }
}

/// One vector of C values, again and again.
template <typename A>
inline Vec<A> repeated(const A* values, int64_t channels) {
  Vec<A> result;
  for (int lane = 0; lane < kLanes<A>; ++lane) result[lane] = values[lane % channels];
  return result;
}

/// result[c] = Σ of the entries of channel c in a table [period], which is used up.
template <typename A>
void sum_channels(A* table, int64_t channels, int64_t period, double* result) {
  while (period % (2 * kLanes<A>) == 0 && period / 2 % channels == 0) {
    period /= 2;
    for (int64_t i = 0; i < period; i += kLanes<A>) store(table + i, load(table + i) + load(table + period + i));
  }
  for (int64_t c = 0; c < channels; ++c) {
    double sum = 0;
    for (int64_t i = c; i < period; i += channels) sum += table[i];
    result[c] = sum;
  }
}

}  // namespace fastnas::FASTNAS_ISA
