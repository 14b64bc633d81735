"""The steps of `tools/gpu_check.py`: a module each, with a function `run(ground)`."""
