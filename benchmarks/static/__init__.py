"""What is counted, not measured: the resources of the compiled CUDA kernels, and the roofline of a weight step."""
