"""Measured speed: a clock with intervals, whole-model runs with real kernels, and kernel benchmarks against the machine's own floor."""
