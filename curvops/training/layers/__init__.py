r"""Gradients of individual data, layer by layer, in the form that is smallest.

The weight of a linear layer has the gradients :math:`G_n = \sum_t \delta_{nt} a_{nt}^T`, a the
inputs and δ the gradients of the outputs, which the backward pass has anyway. With them

.. math::
    \langle G_n, D \rangle = \sum_t \delta_{nt}^T D a_{nt}, \qquad
    \langle G_n, G_m \rangle = \sum_{tu} (a_{nt}^T a_{mu}) (\delta_{nt}^T \delta_{mu})

take no tensor of the size of all G_n. A convolution is a linear layer of its unfolded input. What
is small (a small convolution, a scale) is kept as it is; what has no such form is summed up when
it is met.
"""

from __future__ import annotations

from curvops.training.layers.base import Layer, NotKept
from curvops.training.layers.convolution import ConvLayer, Windows
from curvops.training.layers.embedding import EmbeddingLayer
from curvops.training.layers.kept import KeptLayer, ReducedLayer
from curvops.training.layers.linear import LinearLayer

__all__ = [
    "ConvLayer",
    "EmbeddingLayer",
    "KeptLayer",
    "Layer",
    "LinearLayer",
    "NotKept",
    "ReducedLayer",
    "Windows",
]
