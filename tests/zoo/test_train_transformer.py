"""The transformer's training: its parts against what they stand for, resuming, the export."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ptq4arvg.models import load_model
from ptq4arvg.nn import AttentionCore
from tests.zoo.helpers import (
    BUNDLED,
    Display,
    check_like_bundled,
    check_resume,
    same_tree,
    seeded,
    train,
)
from zoo import common, generator, train_transformer


def test_transformer_training_resumes_exactly_and_exports(data, tmp_path, monkeypatch):
    tokenizer = str(BUNDLED / "tokenizer.safetensors")
    out = check_resume(train_transformer, "transformer", ["transformer.safetensors"], data,
                       tmp_path, monkeypatch, "--tokenizer", tokenizer)  # fmt: skip
    made = check_like_bundled(out / "transformer.safetensors")
    kept = torch.load(out / "transformer.ckpt", weights_only=True)["parts"]
    for name, value in kept["average"]["values"].items():
        if name.endswith("mat_qkv.bias"):
            _, key, v = value.chunk(3)
            assert not key.any() and v.any()
            assert torch.equal(made[name.replace("mat_qkv.bias", "v_bias")], v.half())
    model = load_model("var-tiny", weights=out / "transformer.safetensors")
    ids = torch.zeros(1, 155, dtype=torch.long)
    logits = model.replay(ids, torch.tensor([0]))
    assert logits.shape == (1, 155, 512) and torch.isfinite(logits).all()


def test_cached_tokens_are_used_only_for_the_same_tokenizer(data, tmp_path, monkeypatch):
    tokenizer = tmp_path / "tokenizer.safetensors"
    shutil.copy(BUNDLED / tokenizer.name, tokenizer)  # found in --out without being named
    calls = []
    original = generator.encode_variants

    def counting(*arguments):
        calls.append(1)
        return original(*arguments)

    monkeypatch.setattr(generator, "encode_variants", counting)
    monkeypatch.setattr(generator, "train", lambda *_: None)
    assert train(train_transformer, data, tmp_path) == 0
    assert train(train_transformer, data, tmp_path) == 0
    assert len(calls) == 1
    tokens = tmp_path / "tokenizer-tokens.pt"
    first = torch.load(tokens, weights_only=True)["tokens"]
    tokens.write_bytes(tokens.read_bytes()[:100])  # damaged: made again
    assert train(train_transformer, data, tmp_path) == 0
    assert len(calls) == 2 and torch.equal(torch.load(tokens, weights_only=True)["tokens"], first)
    state = load_file(tokenizer)
    state["post_quant_conv.bias"] += 1
    common.export(tokenizer, state)
    assert train(train_transformer, data, tmp_path) == 0
    assert len(calls) == 3


def test_the_variants_are_the_picture_its_mirror_image_and_mild_changes(data, bundled):
    pictures = common.load_data(data, 64)
    tokens = generator.encode_variants(bundled.tokenizer.encode, pictures, 0, "cpu", Display())
    assert tokens.shape == (4, 18, 155)
    images = common.halve(pictures.unit(pictures.train)) * 2 - 1
    assert torch.equal(tokens[0].long(), bundled.tokenizer.encode(images))
    mirrored = bundled.tokenizer.encode(images.flip(3))
    assert (tokens[1].long() == mirrored).float().mean() > 0.95  # interpolation may round a pixel
    assert (tokens[2] != tokens[0]).any() and (tokens[3] != tokens[2]).any()


def test_initial_gates_and_head_are_small_and_the_rest_is_of_the_expected_size(bundled):
    model = train_transformer.VAR(bundled.config)
    train_transformer.initialize_(model, 0)
    std = (1 / 256 / 3) ** 0.5
    sizes = {
        "pos_1LC": std,
        "lvl_embed.weight": std,
        "blocks.2.attn.mat_qkv.weight": std,
        "blocks.2.attn.proj.weight": std / 12**0.5,
        "blocks.2.ffn.fc2.weight": std / 12**0.5,
        "head.weight": 0.02 * std,
        "head_nm.ada_lin.1.weight": 0.5 * std,
    }
    state = model.state_dict()
    for name, size in sizes.items():
        assert state[name].std().item() == pytest.approx(size, rel=0.05), name
    ada = state["blocks.3.ada_lin.1.weight"]
    assert ada[:512].std().item() == pytest.approx(1e-5 * std, rel=0.05)
    assert ada[512:].std().item() == pytest.approx(0.5 * std, rel=0.05)
    assert all(not v.any() for name, v in state.items() if name.endswith("bias"))
    again = train_transformer.VAR(bundled.config)
    train_transformer.initialize_(again, 0)
    assert same_tree(dict(state), dict(again.state_dict()))


def test_only_matrices_of_linears_are_decayed(bundled):
    model = train_transformer.VAR(bundled.config)
    decayed, others = generator.make_optimizer(model).param_groups
    assert decayed["weight_decay"] == 0.05 and others["weight_decay"] == 0
    names = {id(p): name for name, p in model.named_parameters()}
    assert len(decayed["params"]) == 6 * 5 + 3 and len(names) == 33 + len(others["params"])
    assert {names[id(p)] for p in others["params"]} >= {
        "pos_start", "pos_1LC", "class_emb.weight", "lvl_embed.weight", "head.bias",
        "blocks.0.attn.scale_mul_1H11",
    }  # fmt: skip


def test_explicit_attention_is_the_fused_one(bundled):
    random = seeded(0)
    q, k, v = (torch.randn(2, 4, 155, 64, generator=random) for _ in range(3))
    explicit, fused = generator.ExplicitAttention(), AttentionCore()
    for mask in (None, bundled.transformer.mask):
        torch.testing.assert_close(
            explicit(q / 8, k, v, mask), fused(q / 8, k, v, mask), atol=1e-5, rtol=1e-5
        )


def test_training_the_transformer_lowers_the_loss(data, tmp_path, monkeypatch):
    shown = []
    original = generator.train

    def recording(name, options, parts, generator, step, display):
        def noted(done):
            values = step(done)
            shown.append(values["loss"])
            return values

        original(name, options, parts, generator, noted, display)

    monkeypatch.setattr(generator, "train", recording)
    monkeypatch.setattr(generator, "WARMUP", 2)
    tokenizer = str(BUNDLED / "tokenizer.safetensors")
    assert train(train_transformer, data, tmp_path, "--tokenizer", tokenizer, "--steps", "12") == 0
    assert shown[0] == pytest.approx(np.log(512), abs=0.1)  # all codes alike at first
    assert shown[-1] < shown[0] - 0.5


def test_a_missing_tokenizer_says_how_to_get_one(data, tmp_path, capsys):
    assert train(train_transformer, data, tmp_path) == 1
    error = capsys.readouterr().err
    assert "no tokenizer" in error and "zoo/train_tokenizer.py" in error and "--tokenizer" in error


def test_a_wrong_tokenizer_is_refused(data, tmp_path, capsys):
    wrong = str(BUNDLED / "features.safetensors")
    assert train(train_transformer, data, tmp_path, "--tokenizer", wrong) == 1
    assert "do not fit the model" in capsys.readouterr().err
