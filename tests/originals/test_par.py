"""Modules of the original PAR and LlamaGen run our blocks under their own script."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import ptq4arvg
from ptq4arvg import ops
from ptq4arvg.models.loading import read_state
from ptq4arvg.nn import PackedLinear
from tests.golden_cases import OTHER_ROUNDING, relative_error
from tests.originals.par_double import Transformer
from tests.par_cases import LOGITS, find_par_cases, small_model

# What LlamaGen is, in the terms of a golden PAR configuration.
LLAMAGEN = {"dim": 40, "n_layer": 2, "n_head": 2, "ffn_hidden": 64, "norm_eps": 1e-5, "classes": 5,
            "rope_base": 10000, "block": 16, "ar": 1, "vocab": 24}  # fmt: skip


def original(case):
    """(module, its tokenizer)."""
    module = Transformer(case.config, case.records["freqs_cis"])
    module.load_state_dict(read_state(case.beside("weights.safetensors")))
    return module.eval(), case.build().tokenizer


def llamagen():
    """(module, our model of the same weights)."""
    model = small_model()
    state = model.transformer.state_dict()
    for name in [n for n in state if n.endswith("w13.weight")]:
        parts = state.pop(name).chunk(2)
        state |= {name.replace("w13", w): part for w, part in zip(("w1", "w3"), parts, strict=True)}
    module = Transformer(LLAMAGEN, torch.view_as_real(model.transformer.rotation))
    module.load_state_dict(state)
    return module.eval(), model


def check_float(case, module):
    """All logits and ids of the records, the latter twice."""
    records, cfg = case.records, case.config["cfg"]
    with torch.inference_mode():
        logits = module(records["tf.ids"], records["tf.labels"])
    assert_close(logits, records["tf.logits"], **LOGITS)
    for _ in range(2):
        ids, logits = module.generate(records["gen.labels"], cfg)
        assert torch.equal(ids, records["gen.ids_sequence_order"])
        assert_close(logits, records["gen.mixed_logits"], atol=LOGITS["atol"] * 2 * cfg, rtol=0)
    for layer in module.layers:
        layer.attention.kv_cache = None


@pytest.fixture(params=find_par_cases(), ids=lambda case: case.name)
def case(request):
    return request.param


def test_the_double_is_like_the_original(case):
    check_float(case, original(case)[0])


def test_adopted_it_computes_the_same(case):
    module, tokenizer = original(case)
    storage, ours = module.layers[0].attention.wo.weight.data_ptr(), case.build()
    model = ptq4arvg.adopt(module, tokenizer=tokenizer)
    assert model.transformer.layers[0].attention.wo.weight.data_ptr() == storage
    assert module.layers[0].attention.wqkv is model.transformer.layers[0].attention.wqkv
    assert module.layers[0].feed_forward is model.transformer.layers[0].feed_forward
    assert ptq4arvg.adopt(module) is model is ptq4arvg.adopt(model)
    assert model.config == ours.config and model.tokenizer.config == ours.tokenizer.config
    check_float(case, module)
    ids, labels = case.records["gen.ids_raster"], case.records["gen.labels"]
    assert torch.equal(model.replay(ids, labels), ours.replay(ids, labels))


def test_adopted_with_its_caches_set_up(case):
    """The original's caches stay, and are no part of the model."""
    module, tokenizer = original(case)
    ids, labels = case.records["gen.ids_sequence_order"], case.records["gen.labels"]
    module.generate(labels, 1.0, ids=ids)
    cache = module.layers[0].attention.kv_cache
    model = ptq4arvg.adopt(module, tokenizer=tokenizer)
    assert module.layers[0].attention.kv_cache is cache
    assert model.transformer.state_dict().keys() == case.build().transformer.state_dict().keys()


def test_llamagen():
    module, ours = llamagen()
    labels = torch.tensor([1, 4, 0])
    wanted_ids, wanted = module.generate(labels, 2.0)
    model = ptq4arvg.adopt(module, tokenizer=ours.tokenizer)
    assert model.config == ours.config
    ids, logits = module.generate(labels, 2.0)
    assert torch.equal(ids, wanted_ids)
    assert_close(logits, wanted, atol=1e-4, rtol=0)
    _, logits = module.generate(labels, 1.0, ids=ids)
    for layer in module.layers:
        layer.attention.kv_cache = None
    module.freqs_cis = module.freqs_cis[:16]
    with torch.inference_mode():  # without a cache and a mask
        assert_close(module(ids[:, :-1], labels), logits, **LOGITS)
    assert_close(model.replay(ids, labels), logits, **LOGITS)


@pytest.mark.parametrize("attention", ["float", "int8"])
@pytest.mark.parametrize("name", [*(case.name for case in find_par_cases()), "llamagen"])
def test_its_own_script_runs_quantized(name, attention, tmp_path):
    if name == "llamagen":
        module, ours = llamagen()
        tokenizer, exact, labels = ours.tokenizer, small_model(), torch.tensor([1, 4, 0])
        ids = exact.sample_ids(labels, seed=3)
    else:
        case = next(case for case in find_par_cases() if case.name == name)
        (module, tokenizer), ours, exact = original(case), case.build(), case.build()
        ids, labels = case.records["gen.ids_raster"], case.records["gen.labels"]
    rows = ptq4arvg.calibrate(exact, samples=8, keep=4, seed=0)
    model = ptq4arvg.adopt(module, tokenizer=tokenizer)
    report = ptq4arvg.quantize_(module, "W8A8", calibration=rows, attention=attention)
    ptq4arvg.quantize_(ours, "W8A8", calibration=rows, attention=attention)
    assert all(isinstance(layer.attention.wo, PackedLinear) for layer in module.layers)
    assert isinstance(module.output, PackedLinear)
    assert len(report.layers) == len(model.linears())

    raster = model.config.order.raster()
    wanted = ours.replay(ids, labels)[:, raster]
    error = relative_error(wanted, exact.replay(ids, labels)[:, raster])
    assert 0 < error < 0.1
    # Ours fuses the last norm with the output, theirs casts in between: a code may round the
    # other way.
    _, logits = module.generate(labels, 1.0, ids=ids[:, raster])
    assert relative_error(logits, wanted) < OTHER_ROUNDING * error
    found, _ = module.generate(labels, 2.0)
    assert torch.equal(module.generate(labels, 2.0)[0], found) and found.shape == ids.shape
    assert found.max() < model.config.vocab_size
    # The most likely tokens are the same, but for one on the edge and those after it.
    drawn = ours.sample_ids(labels, cfg=2.0, choose=lambda x, _: x.argmax(-1))
    assert (found == drawn[:, raster]).float().mean() > 0.5
    model.save_pretrained(tmp_path / "saved")  # with the caches of the host still there
    again = ptq4arvg.load_quantized(tmp_path / "saved")
    assert torch.equal(again.replay(ids, labels), model.replay(ids, labels))

    for layer in module.layers:
        layer.attention.kv_cache = None
    order, p = ids[:, raster], model.config.parallel
    known, positions = module.freqs_cis, model.positions
    module.freqs_cis = known[:positions]
    with torch.inference_mode():
        assert relative_error(module(order[:, :-p], labels), wanted) < OTHER_ROUNDING * error
        module.freqs_cis = known
        text = f"{positions + p} positions, but making an image reads {positions}: leave out"
        with pytest.raises(ValueError, match=text):
            module(order, labels)


def test_codes_go_with_the_cache_that_the_original_sets_up():
    module, ours = llamagen()
    ptq4arvg.adopt(module, tokenizer=ours.tokenizer)
    rows = ptq4arvg.calibrate(ours, samples=2, keep=2, seed=0, select="first")
    ptq4arvg.quantize_(module, "W8A8", "rtn", rows, attention="int8")
    state = set(module.ptq4arvg.transformer.state_dict())
    layer, held = module.layers[0], None
    for count in (1, 3, 3, 2):
        module.generate(torch.arange(count), 2.0)
        shapes = ops.kv_cache_shapes(2 * count, 2, 24, 20)  # a multiple of 8 above 16 positions
        assert tuple(tuple(codes.shape) for codes in layer.codes) == shapes
        assert {codes.dtype for codes in layer.codes} == {torch.int8}
        same = held is not None and held[0].shape == layer.codes[0].shape
        assert (layer.codes is held) == same
        held = layer.codes
    assert set(module.ptq4arvg.transformer.state_dict()) == state
    layer.attention.kv_cache.to("meta")  # as the original's own move of its module does
    assert [codes.device.type for codes in layer._cache(1)] == ["meta", "meta"]


def test_without_its_tokenizer(case):
    module, tokenizer = original(case)
    layers = module.layers
    with pytest.raises(ValueError, match=r"PAR does not know its tokenizer; give its VQ-16"):
        ptq4arvg.quantize_(module)
    with pytest.raises(ValueError, match=r"Linear is none: its state dict has no 'encoder\.conv_b"):
        ptq4arvg.adopt(module, tokenizer=nn.Linear(2, 2))
    assert module.layers is layers
    assert ptq4arvg.adopt(module, tokenizer=tokenizer).tokens == case.config["block"]


def test_special_tokens_that_do_not_fit(case):
    module, tokenizer = original(case)
    module.ar_token_num += 1
    with pytest.raises(ValueError, match=r"has ar_token_num .* special tokens; wanted one special"):
        ptq4arvg.adopt(module, tokenizer=tokenizer)
