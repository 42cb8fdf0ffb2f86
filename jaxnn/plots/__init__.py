"""The pictures of a training run, with matplotlib's objects alone: NumPy arrays in, files out, no display needed."""

from jaxnn.plots.training import confusion as confusion
from jaxnn.plots.training import curves as curves
from jaxnn.plots.training import filters as filters
