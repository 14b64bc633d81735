// For functions that CPU and CUDA kernels share. Declare them static: each instruction set then gets a copy of its own.
#pragma once

#ifdef __CUDACC__
#define FASTNAS_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define FASTNAS_HOST_DEVICE inline
#endif
