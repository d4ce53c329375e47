"""Faster execution of the same arithmetic: CUDA graphs, layouts, kernels, CPU attention."""
