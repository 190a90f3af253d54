"""Torch building blocks, independent of studies: blocks, feature taps, normalisation."""
