"""The Triton kernels; `fastpose.ops` imports them when an op runs on CUDA, nothing else does."""
