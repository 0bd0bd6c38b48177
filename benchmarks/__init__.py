"""What curvops costs, beside its peers: ``python -m benchmarks --help``."""
