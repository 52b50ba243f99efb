"""A module of the original RAR runs our blocks under its own script, in float and quantized."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import ptq4arvg
from ptq4arvg import ops
from ptq4arvg.models.loading import read_state
from ptq4arvg.models.rar import FAMILY
from ptq4arvg.nn import AttentionCore, IntAttention, PackedLinear
from ptq4arvg.originals.sharing import published_sampling
from tests.golden_cases import (
    LOGITS,
    OTHER_ROUNDING,
    RARCase,
    find_cases,
    forced,
    relative_error,
)
from tests.originals.rar_double import RAR


def original(case):
    """(module, its tokenizer)."""
    module = RAR(case.config)
    module.load_state_dict(read_state(case.beside("weights.safetensors")))
    return module.eval(), case.build().tokenizer


def generate(case, module, guidance=None, **options):
    c = case.config
    condition = case.records["gen.labels"] + c["codebook_size"] + 1
    guidance = c["guidance_scale"] if guidance is None else guidance
    power = c["guidance_scale_pow"]
    return module.generate(condition, guidance, c["randomize_temperature"], power, **options)


def check_float(case, module):
    """All logits and ids of the records, the ids twice: the cache is opened for each image."""
    records = case.records
    with torch.inference_mode():
        logits = module.forward_fn(records["tf.ids"], records["tf.condition_ids"])
    assert_close(logits, records["tf.logits"], **LOGITS)
    for kv_cache in (True, False, True):
        ids, logits = generate(case, module, kv_cache=kv_cache)
        assert torch.equal(ids, records["gen.ids"])
        bound = LOGITS["atol"] * (1 + 2 * case.config["guidance_scale"])
        assert_close(logits, records["gen.logits"], atol=bound, rtol=1e-4)
    assert torch.equal(generate(case, module, 0)[0], records["gen_noguidance.ids"])


@pytest.fixture(params=find_cases(RARCase), ids=lambda case: case.name)
def case(request):
    return request.param


def test_the_double_is_like_the_original(case):
    check_float(case, original(case)[0])


def test_adopted_it_computes_the_same(case):
    module, tokenizer = original(case)
    storage = module.blocks[0].mlp.fc1.weight.data_ptr()
    model, ours = ptq4arvg.adopt(module, tokenizer=tokenizer), case.build()
    assert model.transformer.blocks[0].mlp.fc1.weight.data_ptr() == storage
    assert module.blocks[0].attn.qkv is model.transformer.blocks[0].attn.qkv
    assert ptq4arvg.adopt(module) is model is ptq4arvg.adopt(model)
    for name in ("depth", "num_heads", "embed_dim", "ffn_dim", "num_classes", "tokens",
                 "vocab_size", "norm_eps"):  # fmt: skip
        assert getattr(model.config, name) == getattr(ours.config, name), name
    assert model.tokenizer.config == ours.tokenizer.config
    check_float(case, module)
    ids, labels = case.records["gen.ids"], case.records["gen.labels"]
    assert torch.equal(model.replay(ids, labels), ours.replay(ids, labels))


@pytest.mark.parametrize(
    ("sink", "attention"), [("integer", "float"), ("float", "float"), ("integer", "int8")]
)
def test_its_own_script_runs_quantized(case, sink, attention, tmp_path):
    module, tokenizer = original(case)
    rows = ptq4arvg.calibrate(case.build(), samples=8, keep=4, seed=0)
    ptq4arvg.adopt(module, tokenizer=tokenizer)
    options = {"sink": sink, "attention": attention}
    report = ptq4arvg.quantize_(module, "W8A8", calibration=rows, **options)
    assert all(isinstance(block.attn.proj, PackedLinear) for block in module.blocks)
    assert isinstance(module.lm_head, PackedLinear)
    assert len(report.layers) == len(module.ptq4arvg.linears())
    ours = case.build()
    ptq4arvg.quantize_(ours, "W8A8", calibration=rows, **options)
    kind = IntAttention if attention == "int8" else AttentionCore
    assert all(type(block.attn.core) is kind for block in module.blocks)
    ids, labels = case.records["gen.ids"], case.records["gen.labels"]
    conditions = labels + case.config["codebook_size"] + 1
    exact = case.build().replay(ids, labels)
    with torch.inference_mode():
        wanted, error = ours.replay(ids, labels), relative_error(ours.replay(ids, labels), exact)
        assert 0 < error < 0.1
        logits = module.forward_fn(ids[:, :-1], conditions)
        # Ours fuses norms with linears, theirs casts in between: a code may round the other way.
        assert relative_error(logits, wanted) < OTHER_ROUNDING * error
        with pytest.raises(ValueError, match=r"positions, but making an image reads .*leave out"):
            module.forward_fn(ids, conditions)
        for kv_cache in (True, False):
            _, logits = generate(case, module, 0, kv_cache=kv_cache, ids=ids)
            logits = logits * case.config["randomize_temperature"]
            assert relative_error(logits, wanted) < OTHER_ROUNDING * error
    seen = []
    ours.sample_ids(labels, cfg=case.config["guidance_scale"], choose=forced(seen, ids.split(1, 1)))
    found, guided = generate(case, module)[0], generate(case, module, ids=ids)[1]
    assert torch.equal(generate(case, module)[0], found) and found.shape == ids.shape
    c = case.config
    # The most likely tokens are the same, but for one on the edge and those after it.
    drawn = ours.sample_ids(labels, cfg=c["guidance_scale"], choose=lambda x, _: x.argmax(-1))
    assert (found == drawn).float().mean() > 0.5
    exact = case.records["gen.logits"]
    seen = torch.cat(seen, 1)
    assert relative_error(guided, seen) < OTHER_ROUNDING * relative_error(seen, exact)
    module.ptq4arvg.save_pretrained(tmp_path / "saved")
    again = ptq4arvg.load_quantized(tmp_path / "saved")
    assert torch.equal(again.replay(ids, labels), module.ptq4arvg.replay(ids, labels))


def test_more_positions_than_an_image_has(case):
    module, tokenizer = original(case)
    model = ptq4arvg.adopt(module, tokenizer=tokenizer)
    x = torch.zeros(1, model.positions, model.config.embed_dim)
    module.enable_kv_cache()
    module.blocks[0](x, c=x)
    wanted = rf"{model.positions + 1} positions, but making an image reads {model.positions}: leave"
    with pytest.raises(ValueError, match=wanted):
        module.blocks[0](x[:, :1], c=x[:, :1])


def test_a_cache_of_codes_is_opened_for_every_image(case):
    module, tokenizer = original(case)
    model = ptq4arvg.adopt(module, tokenizer=tokenizer)
    rows = ptq4arvg.calibrate(case.build(), samples=2, keep=2, seed=0, select="first")
    ptq4arvg.quantize_(module, "W8A8", "rtn", rows, attention="int8")
    attention, c = module.blocks[0].attn, model.config
    x = torch.zeros(3, 2, c.embed_dim)
    for _ in range(2):
        module.enable_kv_cache()
        assert attention.k_cache is None and attention.v_cache is None
        module.blocks[0](x, c=x)
        caches = attention.k_cache, attention.v_cache
        shapes = ops.kv_cache_shapes(3, c.num_heads, model.positions, c.embed_dim // c.num_heads)
        assert tuple(tuple(cache.shape) for cache in caches) == shapes
        assert {cache.dtype for cache in caches} == {torch.int8}
        module.blocks[0](x[:, :1], c=x[:, :1])
        assert attention.k_cache is caches[0] and module.blocks[0].read == 3
    module.disable_kv_cache()
    assert attention.k_cache is None and module.blocks[0].store is None


def test_without_its_tokenizer(case):
    module, tokenizer = original(case)
    blocks = module.blocks
    with pytest.raises(ValueError, match=r"RAR does not know its tokenizer.*adopt\(rar, tokenizer"):
        ptq4arvg.quantize_(module)
    with pytest.raises(ValueError, match=r"Linear is none: its state dict has no 'encoder\.down"):
        ptq4arvg.adopt(module, tokenizer=nn.Linear(2, 2))
    assert module.blocks is blocks
    assert ptq4arvg.adopt(module, tokenizer=tokenizer).tokens == case.config["image_seq_len"]


def test_sampling_of_a_published_size():
    sizes = {"depth": 32, "embed_dim": 1280, "ffn_dim": 5120, "num_heads": 16}
    found = published_sampling(FAMILY, sizes)
    assert (found["sampling"].cfg, found["guidance_power"], found["temperature"]) == (
        6.9,
        1.5,
        1.02,
    )
    assert published_sampling(FAMILY, sizes | {"depth": 33}) == {}
