"""The compiled kernels, one folder each, and what they share: dispatch, checks, gradients, the border to C++."""
