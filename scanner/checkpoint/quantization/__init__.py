"""Quantized weights: which stored tensors belong together, and how they are decoded."""
