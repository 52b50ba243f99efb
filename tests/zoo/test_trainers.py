"""The three trainers on random pictures: parts against what they stand for, resuming, exports."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from ptq4arvg.evaluation import FeatureNetwork, load_features, load_reference
from ptq4arvg.models import load_model
from ptq4arvg.models.registry import DATA
from ptq4arvg.models.vqvae import VQVAE
from ptq4arvg.nn import AttentionCore
from zoo import (
    check,
    common,
    loop,
    prepare_data,
    train_features,
    train_tokenizer,
    train_transformer,
)

from .test_loop import Display

BUNDLED = DATA / "var-tiny"


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def bundled():
    return load_model("var-tiny")


def train(module, data, out, *extra, stop=None, monkeypatch=None):
    """Run a trainer for 4 steps of 2 pictures; Ctrl-C after ``stop`` steps if given."""
    if stop is not None:
        monkeypatch.setattr(loop, "make_progress", lambda: Display(stop))
    argv = ["--data", str(data), "--out", str(out), "--steps", "4", "--batch", "2", *extra]
    code = module.main(argv)
    if stop is not None:
        monkeypatch.undo()
    return code


def same_tree(a, b):
    """Whether two nests of dicts, lists and tensors are equal bit for bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_tree(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same_tree, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def check_resume(module, name, files, data, tmp_path, monkeypatch, *extra):
    """A run stopped after two steps and resumed gives the files of an uninterrupted one."""
    assert train(module, data, tmp_path / "whole", *extra) == 0
    out = tmp_path / "parts"
    assert train(module, data, out, *extra, stop=2, monkeypatch=monkeypatch) == 130
    assert not any((out / file).exists() for file in files)
    assert train(module, data, out, *extra, "--resume") == 0
    kept = [
        torch.load(tmp_path / x / f"{name}.ckpt", weights_only=True) for x in ("whole", "parts")
    ]
    assert kept[0]["step"] == 4 and same_tree(*kept)
    for file in files:
        assert (tmp_path / "whole" / file).read_bytes() == (out / file).read_bytes()
    assert not list(out.glob("*.part"))
    return tmp_path / "whole"


def check_like_bundled(path):
    """Names, shapes and types are those of the bundled file, the values are not."""
    made, wanted = load_file(path), load_file(BUNDLED / path.name)
    assert {n: (v.shape, v.dtype) for n, v in made.items()} == {
        n: (v.shape, v.dtype) for n, v in wanted.items()
    }
    assert not all(torch.equal(made[name], wanted[name]) for name in made)
    return made


# Tokenizer.


def test_tokenizer_training_resumes_exactly_and_exports(data, tmp_path, monkeypatch, bundled):
    monkeypatch.setattr(train_tokenizer, "REPLACE_EVERY", 1)  # in the second step with codes
    monkeypatch.setattr(train_tokenizer, "RARE", 1.0)
    replaced = []
    original = train_tokenizer.replace_rare_

    def counting(*arguments):
        replaced.append(original(*arguments))

    with monkeypatch.context() as patch:
        patch.setattr(train_tokenizer, "replace_rare_", counting)
        out = check_resume(train_tokenizer, "tokenizer", ["tokenizer.safetensors"], data, tmp_path,
                           patch)  # fmt: skip
    assert replaced and min(replaced) > 0
    check_like_bundled(out / "tokenizer.safetensors")
    model = load_model("var-tiny", tokenizer=out / "tokenizer.safetensors")
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    ids = model.tokenizer.encode(images)
    assert ids.shape == (1, 155) and len(ids.unique()) > 5
    assert torch.isfinite(model.tokenizer.decode(ids)).all()
    assert not torch.equal(ids, bundled.tokenizer.encode(images))


def test_quantizing_gives_the_codes_of_the_tokenizer_and_passes_the_gradient(bundled):
    quantizer = bundled.tokenizer.quantize
    f = torch.randn(2, 16, 8, 8, generator=seeded(0)).requires_grad_()
    f_hat, loss, ids = train_tokenizer.quantize(quantizer, f)
    assert torch.equal(ids, quantizer.encode(f.detach()))
    torch.testing.assert_close(f_hat, quantizer.latents_and_inputs(ids)[0], atol=1e-5, rtol=1e-5)
    (gradient,) = torch.autograd.grad(f_hat.sum(), f)
    assert torch.equal(gradient, torch.ones_like(f))
    # Each scale: 1.25 times the mean square error of what is known so far.
    total, known = 0.0, torch.zeros_like(f)
    for scale, part in enumerate(quantizer.split(ids)):
        known = known + quantizer.contribution(scale, part)
        total += 1.25 * F.mse_loss(known, f).item() / 7
    _, loss, _ = train_tokenizer.quantize(quantizer, f)
    assert loss.item() == pytest.approx(total, rel=1e-5)


def test_the_codebook_is_filled_from_the_latents(bundled):
    quantizer = VQVAE(bundled.tokenizer.config).quantize
    f = torch.randn(16, 16, 8, 8, generator=seeded(0))
    train_tokenizer.fill_codebook_(quantizer, f, seeded(0))
    codes = quantizer.embedding.weight.detach()
    assert len(codes.unique(dim=0)) > 500  # the corners of 4x4 and 5x5 means are the same
    vectors = f.permute(0, 2, 3, 1).reshape(-1, 16)

    def nearest(a, b):
        # Exactly, not by matrix products, which leave a rest of 1e-3 between equal vectors.
        return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").amin(1)

    assert nearest(codes[:150], vectors).max() < 1e-5
    means = F.adaptive_avg_pool2d(f, 1).flatten(1)
    assert nearest(means, codes[230:330]).min() < 1e-5
    assert nearest(codes[330:], vectors).min() > 1e-3  # residuals


def test_rare_codes_are_replaced_and_forgotten_by_the_optimizer(bundled):
    model = VQVAE(bundled.tokenizer.config)
    quantizer = model.quantize
    weight = quantizer.embedding.weight
    optimizer = train_tokenizer.make_optimizer(model)
    f = torch.randn(2, 16, 8, 8, generator=seeded(0))
    train_tokenizer.quantize(quantizer, f)[1].backward()
    optimizer.step()
    use = train_tokenizer.CodeUse(512, "cpu")
    use.start(512 * 20)
    use.hits[[3, 400]] = 0.5
    before, moments = weight.detach().clone(), optimizer.state[weight]
    moments["exp_avg"].fill_(1)
    ids = quantizer.encode(f)
    count = train_tokenizer.replace_rare_(quantizer, f, ids, use, optimizer, seeded(0))
    changed = (weight != before).any(1).nonzero().flatten().tolist()
    assert count == 2 and changed == [3, 400]
    assert moments["exp_avg"][[3, 400]].eq(0).all() and moments["exp_avg"].sum() == 510 * 16
    assert use.rare().numel() == 0


def test_hits_are_averaged_over_batches():
    use = train_tokenizer.CodeUse(4, "cpu")
    use.start(8)
    use.count(torch.tensor([[0, 0, 0, 1], [0, 0, 0, 1]]))
    assert use.hits.tolist() == pytest.approx([2 * 0.98 + 6 * 0.02, 2.0, 1.96, 1.96])
    for _ in range(400):
        use.count(torch.tensor([0, 0, 1, 2]))
    assert use.rare().tolist() == [3]


def test_the_picture_loss_counts_errors_and_edges():
    wanted = torch.zeros(1, 3, 4, 4)
    loss, absolute = train_tokenizer.picture_loss(wanted + 0.5, wanted)
    assert absolute.item() == 0.5 and loss.item() == pytest.approx(0.75)  # an even error: no edges
    striped = wanted.clone()
    striped[..., ::2] = 1.0
    assert train_tokenizer.picture_loss(striped, wanted)[0].item() == pytest.approx(1 + 0.5)


# Transformer.


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
    original = train_transformer.encode_variants

    def counting(*arguments):
        calls.append(1)
        return original(*arguments)

    monkeypatch.setattr(train_transformer, "encode_variants", counting)
    monkeypatch.setattr(train_transformer, "train", lambda *_: None)
    assert train(train_transformer, data, tmp_path) == 0
    assert train(train_transformer, data, tmp_path) == 0
    assert len(calls) == 1
    tokens = tmp_path / "tokens.pt"
    first = torch.load(tokens, weights_only=True)["ids"]
    tokens.write_bytes(tokens.read_bytes()[:100])  # damaged: made again
    assert train(train_transformer, data, tmp_path) == 0
    assert len(calls) == 2 and torch.equal(torch.load(tokens, weights_only=True)["ids"], first)
    state = load_file(tokenizer)
    state["post_quant_conv.bias"] += 1
    common.export(tokenizer, state)
    assert train(train_transformer, data, tmp_path) == 0
    assert len(calls) == 3


def test_the_variants_are_the_picture_its_mirror_image_and_mild_changes(data, bundled):
    pictures = common.load_data(data, 64)
    tokens = train_transformer.encode_variants(bundled.tokenizer, pictures, 0, "cpu", Display())
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
    decayed, others = train_transformer.make_optimizer(model).param_groups
    assert decayed["weight_decay"] == 0.05 and others["weight_decay"] == 0
    names = {id(p): name for name, p in model.named_parameters()}
    assert len(decayed["params"]) == 6 * 5 + 3 and len(names) == 33 + len(others["params"])
    assert {names[id(p)] for p in others["params"]} >= {
        "pos_start", "pos_1LC", "class_emb.weight", "lvl_embed.weight", "head.bias",
        "blocks.0.attn.scale_mul_1H11",
    }  # fmt: skip


def test_explicit_attention_is_the_fused_one(bundled):
    generator = seeded(0)
    q, k, v = (torch.randn(2, 4, 155, 64, generator=generator) for _ in range(3))
    explicit, fused = train_transformer.ExplicitAttention(), AttentionCore()
    for mask in (None, bundled.transformer.mask):
        torch.testing.assert_close(
            explicit(q / 8, k, v, mask), fused(q / 8, k, v, mask), atol=1e-5, rtol=1e-5
        )


def test_training_the_transformer_lowers_the_loss(data, tmp_path, monkeypatch):
    shown = []
    original = train_transformer.train

    def recording(name, options, parts, generator, step, display):
        def noted(done):
            values = step(done)
            shown.append(values["loss"])
            return values

        original(name, options, parts, generator, noted, display)

    monkeypatch.setattr(train_transformer, "train", recording)
    monkeypatch.setattr(train_transformer, "WARMUP", 2)
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


# Feature network.


def test_feature_training_resumes_exactly_and_exports(data, tmp_path, monkeypatch):
    files = ["features.safetensors", "fd_stats.safetensors"]
    out = check_resume(train_features, "features", files, data, tmp_path, monkeypatch)
    for file in files:
        check_like_bundled(out / file)
    network, (mean, covariance) = load_features(out), load_reference(out)
    pictures = common.load_data(data, 32)
    features = network.features(pictures.unit(pictures.train)).double()
    torch.testing.assert_close(mean, features.mean(0))
    torch.testing.assert_close(covariance, torch.cov(features.T))
    assert load_file(out / files[1])["n"].tolist() == [18]


def test_folding_keeps_the_logits():
    with common.fresh_weights(0):
        model = train_features.TrainingNetwork(FeatureNetwork(32))
        images = torch.rand(8, 3, 32, 32)
    for norm in model.norms:
        torch.nn.init.uniform_(norm.weight, 0.5, 2, generator=seeded(1))
        torch.nn.init.uniform_(norm.bias, -1, 1, generator=seeded(2))
    for _ in range(3):
        model(images)  # running statistics
    network = FeatureNetwork(32)
    network.load_state_dict(model.fold())
    wanted = model.eval()(images)
    assert wanted.std() > 0.05
    torch.testing.assert_close(network(images), wanted, atol=1e-4, rtol=1e-4)


def test_features_are_dropped_by_the_given_generator():
    with common.fresh_weights(0):
        model = train_features.TrainingNetwork(FeatureNetwork(32)).eval()
        images = torch.rand(8, 3, 8, 8)
    first, again = (model(images, seeded(3)) for _ in range(2))
    assert torch.equal(first, again) and not torch.allclose(first, model(images))
    draws = torch.stack([model(images, seeded(i)) for i in range(64)])
    torch.testing.assert_close(draws.mean(0), model(images), atol=0.05, rtol=0)  # no bias


def test_the_classifier_learns_to_tell_colours(data, tmp_path):
    argv = ["--data", str(data), "--out", str(tmp_path), "--steps", "60", "--batch", "16"]
    assert train_features.main(argv) == 0
    pictures = common.load_data(data, 32)
    network = load_features(tmp_path)
    predicted = network(pictures.unit(pictures.heldout)).argmax(1)
    assert (predicted == pictures.labels[pictures.heldout]).float().mean() > 0.8


# All three.

TRAINERS = [train_tokenizer, train_transformer, train_features]


@pytest.mark.parametrize("module", TRAINERS, ids=lambda module: module.__name__)
def test_missing_data_is_an_error_of_one_line(module, tmp_path, capsys):
    assert train(module, tmp_path / "nowhere", tmp_path / "out") == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: no emoji64.npz in") and "prepare_data.py --out" in error
    assert "\n" not in error and not (tmp_path / "out").exists()


# Runs every script as a file, with nothing of the others left behind.
RUN_ALL = """
import runpy, sys
before = list(sys.path)
for script in sys.argv[1:]:
    sys.path[:] = before
    for name in [n for n in sys.modules if n.split(".")[0] == "zoo"]:
        del sys.modules[name]
    sys.argv = [script, "--help"]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as stop:
        assert stop.code == 0, script
"""


def test_the_scripts_run_as_files(tmp_path):
    folder = Path(__file__).parents[2] / "zoo"
    scripts = [folder / f"{m.__name__[4:]}.py" for m in (prepare_data, check, *TRAINERS)]
    result = subprocess.run(
        [sys.executable, "-c", RUN_ALL, *map(str, scripts)],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("usage:") == 5
    assert all(f"usage: {script.name}" in result.stdout for script in scripts)
