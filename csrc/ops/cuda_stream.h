// The CUDA stream on which torch launches.
#pragma once

#include <cstdint>

struct CUstream_st;

namespace fastnas {

/// Whether the torch of this process can tell: whether it was built with CUDA, and what is called is where it belongs.
bool has_current_cuda_stream();

/// torch's current stream on a device. Throws where has_current_cuda_stream() is false.
CUstream_st* current_cuda_stream(int32_t device);

}  // namespace fastnas
