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
``Segment``, ``PolyChain``, ``Bezier``
    Paths between two points; ``scan_path`` evaluates the loss along them, ``barrier`` its rise,
    ``fit_path`` trains their bends, ``connect`` does all of it.
``align``
    The hidden units of one net renumbered like those of another.
``Trajectory``
    Snapshots during training; ``pca`` beside the random walk's, ``trajectory_plane`` below it.
``eigenspaces``, ``EigenTracker``, ``subspace_overlap``, ``gradient_share``, ``eigen_lines``
    The top eigenspace while training goes on: how it turns, and what is in it.
"""

from __future__ import annotations

from curvops.landscape.alignment import Alignment, align
from curvops.landscape.barrier import Barrier, barrier
from curvops.landscape.connection import Connection, connect
from curvops.landscape.directions import (
    Direction,
    Directions,
    along,
    directions,
    eigenvector,
    toward,
)
from curvops.landscape.eigen_line import eigen_lines
from curvops.landscape.eigenspaces import Eigenspaces, EigenTracker, eigenspaces
from curvops.landscape.fit_path import PathFit, annealed, fit_path
from curvops.landscape.line import Lines, line
from curvops.landscape.noise import Noise
from curvops.landscape.normalization import normalize
from curvops.landscape.overlap import (
    GradientShare,
    SubspaceOverlap,
    gradient_share,
    subspace_overlap,
)
from curvops.landscape.path import BentPath, Bezier, Path, PolyChain, Segment
from curvops.landscape.path_scan import PathScan, scan_path
from curvops.landscape.permutation import Axis, permute
from curvops.landscape.plane import overlay, plane, plane_through
from curvops.landscape.plane_result import Overlay, Plane
from curvops.landscape.random_walk import random_walk_coordinates, random_walk_variance
from curvops.landscape.ray import rays
from curvops.landscape.ray_result import Rays
from curvops.landscape.trajectory import Trajectory
from curvops.landscape.trajectory_pca import TrajectoryPCA, trajectory_pca
from curvops.landscape.trajectory_plane import TrajectoryPlane, trajectory_plane
from curvops.landscape.wiring import permutation_groups

__all__ = [
    "Alignment",
    "Axis",
    "Barrier",
    "BentPath",
    "Bezier",
    "Connection",
    "Direction",
    "Directions",
    "EigenTracker",
    "Eigenspaces",
    "GradientShare",
    "Lines",
    "Noise",
    "Overlay",
    "Path",
    "PathFit",
    "PathScan",
    "Plane",
    "PolyChain",
    "Rays",
    "Segment",
    "SubspaceOverlap",
    "Trajectory",
    "TrajectoryPCA",
    "TrajectoryPlane",
    "align",
    "along",
    "annealed",
    "barrier",
    "connect",
    "directions",
    "eigen_lines",
    "eigenspaces",
    "eigenvector",
    "fit_path",
    "gradient_share",
    "line",
    "normalize",
    "overlay",
    "permutation_groups",
    "permute",
    "plane",
    "plane_through",
    "random_walk_coordinates",
    "random_walk_variance",
    "rays",
    "scan_path",
    "subspace_overlap",
    "toward",
    "trajectory_pca",
    "trajectory_plane",
]
