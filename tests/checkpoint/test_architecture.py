"""What config.json says of a model apart from its quantization."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ptq4arvg.checkpoint.architecture import architecture, compute_dtype


def model(*dtypes):
    layers = nn.ModuleList(nn.Linear(2, 2, dtype=dtype) for dtype in dtypes)
    return SimpleNamespace(transformer=layers, family="var", name="var-x", stress=3,
                           architecture={"sizes": (1, 2)})  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_field(dtype):
    found = architecture(model(dtype, dtype))
    assert found == {
        "model_type": "var", "name": "var-x", "stress": 3.0,
        "dtype": str(dtype).removeprefix("torch."), "architecture": {"sizes": [1, 2]},
    }  # fmt: skip
    assert isinstance(found["stress"], float) and compute_dtype(found) == dtype


def test_other_dtypes_are_refused():
    with pytest.raises(ValueError, match=r"\['torch.bfloat16', 'torch.float32'\]; wanted all of"):
        architecture(model(torch.float32, torch.bfloat16))
    with pytest.raises(ValueError, match=r"parameters are \['torch.float64'\]"):
        architecture(model(torch.float64))
    for config in ({"dtype": "float64"}, {}):
        with pytest.raises(ValueError, match=r"dtype is .*; wanted one of float32, float16, bf"):
            compute_dtype(config)
