"""Pictures: one a file, results or arrays in, matplotlib axes out.

Each function draws into ``ax``, or into a new figure, and returns the axes. Colours follow
:func:`theme`: light by default, ``with curvops.plotting.theme("dark"):`` for dark paper.
matplotlib comes with the extra ``plot`` and is imported when the first picture is drawn.
"""

from __future__ import annotations

from curvops.plotting.bracket import bracket
from curvops.plotting.bridge import bridge, bridge_panel
from curvops.plotting.coefficient_sweep import coefficient_sweep
from curvops.plotting.cumulative import cumulative
from curvops.plotting.density import density
from curvops.plotting.eigenpairs import eigenpairs
from curvops.plotting.eigenvalues_over_steps import eigenvalues_over_steps
from curvops.plotting.estimate import estimates
from curvops.plotting.explained_variance import explained_variance
from curvops.plotting.grit import grit
from curvops.plotting.learning_coefficient import learning_coefficient
from curvops.plotting.line import line
from curvops.plotting.local_exponent import local_exponent
from curvops.plotting.logdet import logdet
from curvops.plotting.monitor import monitor, monitor_panel
from curvops.plotting.overlay import overlay
from curvops.plotting.path import path
from curvops.plotting.plane import plane
from curvops.plotting.ray import rays
from curvops.plotting.roughness import roughness
from curvops.plotting.scree import scree
from curvops.plotting.spectrum import spectrum
from curvops.plotting.star_radii import star_radii
from curvops.plotting.style import DARK, LIGHT, Theme, new_axes, theme
from curvops.plotting.surface import surface
from curvops.plotting.timing import timing
from curvops.plotting.trajectory import trajectory
from curvops.plotting.turning import turning
from curvops.plotting.volume_scaling import volume_scaling
from curvops.plotting.volume_terms import volume_terms
from curvops.plotting.volume_weights import volume_weights
from curvops.plotting.volumes import volumes

__all__ = [
    "DARK",
    "LIGHT",
    "Theme",
    "coefficient_sweep",
    "bracket",
    "bridge",
    "bridge_panel",
    "cumulative",
    "density",
    "eigenpairs",
    "eigenvalues_over_steps",
    "estimates",
    "explained_variance",
    "grit",
    "learning_coefficient",
    "line",
    "local_exponent",
    "logdet",
    "monitor",
    "monitor_panel",
    "new_axes",
    "overlay",
    "path",
    "plane",
    "rays",
    "roughness",
    "scree",
    "spectrum",
    "star_radii",
    "surface",
    "theme",
    "timing",
    "trajectory",
    "turning",
    "volume_scaling",
    "volume_terms",
    "volume_weights",
    "volumes",
]
