"""Adapters that let models and loaders of other libraries be used as they are."""

from __future__ import annotations

from curvops.adapters.hugging_face import huggingface, huggingface_batches

__all__ = ["huggingface", "huggingface_batches"]
