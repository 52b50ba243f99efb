"""The training of rar-tiny: random orders, resuming, the export."""

from __future__ import annotations

import pytest
import torch

from ptq4arvg.models import load_model
from ptq4arvg.models.registry import DATA
from tests.zoo.helpers import check_like_bundled, check_resume, seeded, train
from zoo import train_rar
from zoo.common import architecture

TOKENIZER = DATA / "vq-tiny" / "tokenizer.safetensors"


def test_rar_training_resumes_exactly_and_exports(data, tmp_path, monkeypatch):
    out = check_resume(train_rar, "rar", ["rar.safetensors"], data, tmp_path, monkeypatch,
                       "--tokenizer", str(TOKENIZER))  # fmt: skip
    check_like_bundled(out / "rar.safetensors", DATA / "rar-tiny" / "transformer.safetensors")
    model = load_model("rar-tiny", weights=out / "rar.safetensors")
    logits = model.replay(torch.zeros(1, 64, dtype=torch.long), torch.tensor([0]))
    assert logits.shape == (1, 64, 1024) and torch.isfinite(logits).all()


def test_orders_are_permutations_and_the_given_share_of_them_is_random():
    orders = train_rar.draw_orders(400, 16, 0.25, seeded(0))
    assert orders.sort(1).values.eq(torch.arange(16)).all()
    random = (orders != torch.arange(16)).any(1).float().mean().item()
    assert random == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 400) ** 0.5)
    assert not (train_rar.draw_orders(9, 16, 0.0, seeded(0)) != torch.arange(16)).any()


def test_orders_turn_from_random_to_raster():
    shares = [train_rar.random_share(p) for p in (0.0, 0.5, 0.625, 0.75, 1.0)]
    assert shares == pytest.approx([1, 1, 0.5, 0, 0])


def test_blocks_begin_as_identities():
    model = train_rar.RAR(architecture("rar-tiny").config)
    train_rar.initialize_(model, 0)
    x = torch.randn(2, 3, 192, generator=seeded(0))
    assert torch.equal(model.blocks[0](x, c=torch.randn(2, 3, 192, generator=seeded(1))), x)
    assert model.blocks[0].attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_a_missing_tokenizer_says_how_to_get_one(data, tmp_path, capsys):
    assert train(train_rar, data, tmp_path) == 1
    error = capsys.readouterr().err
    assert "no tokenizer" in error and "zoo/train_vq.py" in error and "--tokenizer" in error
