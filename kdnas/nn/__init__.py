"""Torch building blocks that know nothing of studies: blocks, feature taps, normalisation."""
