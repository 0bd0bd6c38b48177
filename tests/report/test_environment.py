"""Versions, devices, and attention kernels found by trying."""

from __future__ import annotations

import json

import torch

from curvops.report.environment import attention_kernels, environment, versions


def test_versions_name_what_is_missing() -> None:
    found = versions()
    assert found["torch"] == torch.__version__
    assert all(value is None or value[0].isdigit() for value in found.values())


def test_environment_is_json() -> None:
    assert json.loads(json.dumps(environment(), allow_nan=False)) == environment()


def test_the_math_kernel_is_safe_and_trying_changes_nothing(global_rng_untouched: None) -> None:
    before = torch.backends.cuda.flash_sdp_enabled()
    kernels = {(k.device, k.kernel): k for k in attention_kernels()}
    math = kernels["cpu", "math"]
    assert math.runs
    assert math.first
    assert math.second
    assert math.reason == ""
    for kernel in kernels.values():
        assert kernel.second or kernel.reason
        assert not kernel.second or kernel.first
        assert not kernel.first or kernel.runs
    assert torch.backends.cuda.flash_sdp_enabled() == before
