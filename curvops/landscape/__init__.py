"""The shape of the loss around a point.

``directions``
    Ascent, descent, radial, random, eigenvectors, towards another point; whole, or on the
    parameters whose names match; of length one, or normalised by filter.
``rays``
    The loss at distances that double, with roughness, grit, curvature and their noise floors.
``line``
    The loss along straight lines through the point, beside what its quadratic model predicts.
``plane``, ``plane_through``, ``overlay``
    The loss on a plane through a point or three, and what lies above it.
"""

from __future__ import annotations

from curvops.landscape.directions import (
    Direction,
    Directions,
    along,
    directions,
    eigenvector,
    toward,
)
from curvops.landscape.line import Lines, line
from curvops.landscape.noise import Noise
from curvops.landscape.normalization import normalize
from curvops.landscape.plane import overlay, plane, plane_through
from curvops.landscape.plane_result import Overlay, Plane
from curvops.landscape.ray import rays
from curvops.landscape.ray_result import Rays

__all__ = [
    "Direction",
    "Directions",
    "Lines",
    "Noise",
    "Overlay",
    "Plane",
    "Rays",
    "along",
    "directions",
    "eigenvector",
    "line",
    "normalize",
    "overlay",
    "plane",
    "plane_through",
    "rays",
    "toward",
]
