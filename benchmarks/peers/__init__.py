"""The peers, by the names the command line takes."""

from __future__ import annotations

from benchmarks.peers.base import Peer
from benchmarks.peers.curvlinops import CompiledCurvlinops, Curvlinops
from benchmarks.peers.hessian_eigenthings import HessianEigenthings
from benchmarks.peers.pyhessian import PyHessian

PEERS: dict[str, Peer] = {
    "curvlinops": Curvlinops(),
    "curvlinops-compiled": CompiledCurvlinops(),
    "hessian-eigenthings": HessianEigenthings(),
    "pyhessian": PyHessian(),
}
