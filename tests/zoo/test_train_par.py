"""The training of par-tiny: its loss, resuming, the export under the published names."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from ptq4arvg.models import load_model
from ptq4arvg.models.registry import DATA
from tests.zoo.helpers import check_like_bundled, check_resume, seeded, train
from zoo import generator, train_par

TOKENIZER = DATA / "vq-tiny" / "tokenizer.safetensors"


def test_par_training_resumes_exactly_and_exports(data, tmp_path, monkeypatch):
    out = check_resume(train_par, "par", ["par.safetensors"], data, tmp_path, monkeypatch,
                       "--tokenizer", str(TOKENIZER))  # fmt: skip
    made = check_like_bundled(
        out / "par.safetensors", DATA / "par-tiny" / "transformer.safetensors"
    )
    model = load_model("par-tiny", weights=out / "par.safetensors")
    joined = torch.cat([made[f"layers.0.feed_forward.{part}.weight"] for part in ("w1", "w3")])
    assert torch.equal(model.transformer.layers[0].feed_forward.w13.weight, joined.float())


def test_a_share_of_the_context_is_random():
    ids = torch.zeros(400, 60, dtype=torch.long)
    changed = (train_par.disturb(ids, 1024, seeded(0)) != ids).double().mean(1)
    assert changed.mean().item() == pytest.approx(0.125, abs=0.02)  # half of the most
    assert 0.2 < changed.max() < 0.45 and changed.min() < 0.02
    again = train_par.disturb(ids, 1024, seeded(0))
    assert torch.equal(again, train_par.disturb(ids, 1024, seeded(0)))


def test_the_loss_that_training_lowers_is_that_of_a_replay(data, tmp_path, monkeypatch):
    shown = []
    original = generator.train

    def recording(name, options, parts, draws, step, display):
        def noted(done):
            values = step(done)
            shown.append(values["loss"])
            return values

        original(name, options, parts, draws, noted, display)

    monkeypatch.setattr(generator, "train", recording)
    monkeypatch.setattr(generator, "WARMUP", 2)
    extra = ("--tokenizer", str(TOKENIZER), "--steps", "16", "--float32")
    assert train(train_par, data, tmp_path, *extra) == 0
    assert shown[0] == pytest.approx(6.93, abs=0.01)  # all 1024 codes alike at first
    assert shown[-1] < shown[0] - 0.2
    # Replaying the training pictures with the trained weights, in raster order.
    model = load_model("par-tiny", weights=tmp_path / "par.safetensors", tokenizer=TOKENIZER)
    tokens = torch.load(tmp_path / "tokenizer-tokens.pt", weights_only=True)["tokens"]
    state = torch.load(tmp_path / "par.ckpt", weights_only=True)["parts"]["model"]
    assert load_file(tmp_path / "par.safetensors").keys() != state.keys()
    logits = model.replay(tokens[0].long(), torch.arange(18) % 4 * 5)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[0].long().flatten())
    assert loss.item() < 6.93
