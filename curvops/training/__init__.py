"""Curvature and noise while training, from the loop one has.

:class:`Monitor` watches the forward and backward pass of every step and measures quantities:

=========================  =====================================================================
:class:`Alpha`             did the step stop before or behind the minimum along it?
:class:`ExactAlpha`        the same on the risk itself, without noise
:class:`GradientNoise`     tr Σ, the noise scale, three tests of the batch size, signal to noise
:class:`EarlyStopping`     is the gradient more than noise?
:class:`Sharpness`         the top of the Hessian's spectrum beside the bound of stability
:class:`HessianTrace`      its trace, layer by layer
:class:`SubspaceOverlap`   how still its top eigenvectors stand, and their part of the gradient
:class:`TIC`               gradient noise over curvature
=========================  =====================================================================
"""

from __future__ import annotations

from curvops.training.alpha import Alpha, ExactAlpha
from curvops.training.block import Step
from curvops.training.early_stopping import EarlyStopping, EarlyStoppingResult
from curvops.training.gradient_noise import GradientNoise, GradientNoiseResult
from curvops.training.hugging_face import hugging_face_callback
from curvops.training.journal import JournalWarning, read_journal
from curvops.training.lightning import lightning_callback
from curvops.training.monitor import Monitor
from curvops.training.quantity import Measured, Quantity
from curvops.training.recorder import MonitorWarning
from curvops.training.run import Record, Run
from curvops.training.sharpness import Sharpness, SharpnessResult
from curvops.training.stability import Stability, stability
from curvops.training.step_size import StepSize, exact_step, fit_step
from curvops.training.subspace import SubspaceOverlap, SubspaceOverlapResult
from curvops.training.tic import TIC, TICResult
from curvops.training.trace import HessianTrace, HessianTraceResult

__all__ = [
    # the monitor
    "Monitor",
    "Record",
    "Run",
    "Step",
    "hugging_face_callback",
    "lightning_callback",
    "read_journal",
    # quantities
    "Alpha",
    "EarlyStopping",
    "ExactAlpha",
    "GradientNoise",
    "HessianTrace",
    "Measured",
    "Quantity",
    "Sharpness",
    "SubspaceOverlap",
    "TIC",
    # functions
    "exact_step",
    "fit_step",
    "stability",
    # answers
    "EarlyStoppingResult",
    "GradientNoiseResult",
    "HessianTraceResult",
    "JournalWarning",
    "MonitorWarning",
    "SharpnessResult",
    "Stability",
    "StepSize",
    "SubspaceOverlapResult",
    "TICResult",
]
