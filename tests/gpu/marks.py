"""Marks of tests by the number of GPUs that they need."""

import pytest
import torch

GPUS = torch.cuda.device_count()


def needs_gpus(count: int) -> list[pytest.MarkDecorator]:
    """Return the marks of a test that needs so many GPUs."""
    reason = f"needs {count} GPU{'s' * (count > 1)}; torch finds {GPUS}"
    return [pytest.mark.gpu, pytest.mark.skipif(count > GPUS, reason=reason), pytest.mark.timeout(1800)]
