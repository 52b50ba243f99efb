"""What the tests of operators' error messages share.

A case is (operators, arguments to change, message); message None: it has to pass.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from ptq4arvg import ops

__all__ = ["call_fake", "check_fake_refusal", "check_refusal", "each"]


def each(cases: list) -> list:
    """One parameter for each operator of each case."""
    return [
        pytest.param(op, spoiled, message, id=f"{op}-{','.join(spoiled)}-{str(message)[:60]}")
        for names, spoiled, message in cases
        for op in names
    ]


def check_refusal(op: str, arguments: dict[str, Any], message: str | None, left_out: str = ""):
    """The face's ValueError and the operator's RuntimeError, before any kernel ran. left_out: an
    end that the message may have besides."""
    if message is None:  # the good neighbour of a bad argument
        getattr(ops, op)(**arguments)
        return
    before = ops.last_kernel()
    with pytest.raises(ValueError) as caught:
        getattr(ops, op)(**arguments)
    assert str(caught.value).removesuffix(left_out) == f"{op}: {message}"
    with pytest.raises(RuntimeError, match=re.escape(f"{op}: {message}")):
        getattr(torch.ops.ptq4arvg, op)(**arguments)
    assert ops.last_kernel() == before


def call_fake(op: str, arguments: dict[str, Any]) -> Tensor | None:
    """What the fake kernel makes of these arguments."""
    mode = torch._subclasses.FakeTensorMode()
    fakes = {
        name: mode.from_tensor(value) if isinstance(value, Tensor) else value
        for name, value in arguments.items()
    }
    with mode:
        return getattr(ops, op)(**fakes)


def check_fake_refusal(op: str, arguments: dict[str, Any], message: str):
    """The fake kernel's refusal, in the words of the real one."""
    with pytest.raises((RuntimeError, ValueError), match=re.escape(f"{op}: {message}")):
        call_fake(op, arguments)
