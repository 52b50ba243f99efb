"""A module of the original VAR runs our blocks under its own script, in float and quantized."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import ptq4arvg
from ptq4arvg.models.loading import read_state
from ptq4arvg.nn import PackedLinear
from tests.golden_cases import LOGITS, OTHER_ROUNDING, find_cases, relative_error
from tests.originals.var_double import VAR


def original(case):
    vae = case.build().tokenizer
    module = VAR(case.config, vae)
    state = read_state(case.beside("weights.safetensors"))
    missing, unexpected = module.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(n.endswith(("lvl_1L", "attn_bias_for_masking", "zero_k_bias")) for n in missing)
    return module.eval()


@pytest.fixture(params=find_cases(), ids=lambda case: case.name)
def case(request):
    return request.param


def test_the_double_is_like_the_original(case):
    records, module = case.records, original(case)
    with torch.inference_mode():
        logits = module(records["tf.labels"], records["tf.x_BLCv_wo_first_l"])
    assert_close(logits, records["tf.logits"], **LOGITS)
    ids = module.autoregressive_infer_cfg(records["gen.labels"], case.config["cfg"])
    assert torch.equal(ids, case.scales("gen.ids"))


def test_adopted_it_computes_the_same(case):
    records, module = case.records, original(case)
    storage = module.blocks[0].ffn.fc1.weight.data_ptr()
    model = ptq4arvg.adopt(module)
    assert model.transformer.blocks[0].ffn.fc1.weight.data_ptr() == storage
    assert ptq4arvg.adopt(module) is model is ptq4arvg.adopt(model)
    for name in ("depth", "num_heads", "embed_dim", "patch_nums", "vocab_size", "z_channels",
                 "mlp_ratio", "shared_aln", "attn_l2_norm", "num_classes", "norm_eps"):  # fmt: skip
        assert getattr(model.config, name) == getattr(case.build().config, name), name
    assert model.tokenizer.config == case.build().tokenizer.config
    with torch.inference_mode():
        logits = module(records["tf.labels"], records["tf.x_BLCv_wo_first_l"])
        assert_close(logits, records["tf.logits"], **LOGITS)
    for _ in range(2):  # the cache is opened anew for each call
        ids = module.autoregressive_infer_cfg(records["gen.labels"], case.config["cfg"])
        assert torch.equal(ids, case.scales("gen.ids"))
    assert torch.equal(model.replay(records["tf.ids"], records["tf.labels"]).argmax(-1),
                       records["tf.logits"].argmax(-1))  # fmt: skip


def test_its_own_script_runs_quantized(case, tmp_path):
    module, labels = original(case), case.records["gen.labels"]
    rows = ptq4arvg.calibrate(case.build(), samples=8, keep=4, seed=0)
    report = ptq4arvg.quantize_(module, "W8A8", calibration=rows)
    blocks = module.blocks
    assert all(isinstance(b.attn.proj, PackedLinear) for b in blocks)
    assert isinstance(module.head, PackedLinear)
    assert len(report.layers) == len(module.ptq4arvg.linears())
    ours = case.build()
    ptq4arvg.quantize_(ours, "W8A8", calibration=rows)
    records = case.records
    with torch.inference_mode():
        logits = module(records["tf.labels"], records["tf.x_BLCv_wo_first_l"])
        wanted = ours.replay(records["tf.ids"], records["tf.labels"])
    # Ours fuses the norm with the head, theirs casts in between: a code may round the other way.
    assert relative_error(logits, wanted) < OTHER_ROUNDING * relative_error(
        wanted, records["tf.logits"]
    )
    ids = module.autoregressive_infer_cfg(labels, case.config["cfg"])
    assert torch.equal(module.autoregressive_infer_cfg(labels, case.config["cfg"]), ids)
    assert ids.shape == (len(labels), case.config["L"]) and ids.max() < case.config["V"]
    module.ptq4arvg.save_pretrained(tmp_path / "saved")
    again = ptq4arvg.load_quantized(tmp_path / "saved")
    replayed = (m.replay(records["tf.ids"], records["tf.labels"]) for m in (module.ptq4arvg, again))
    assert torch.equal(*replayed)


def test_a_module_of_no_known_family():
    with pytest.raises(ValueError, match=r"adopt: Linear is of no known family.*bias, weight.*VAR"):
        ptq4arvg.adopt(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="adopt: Linear is of no known family"):
        ptq4arvg.quantize_(nn.Linear(2, 2))


def test_without_its_tokenizer(case):
    module = original(case)
    vae = module.vae_proxy[0]
    del module.vae_proxy
    blocks = module.blocks
    with pytest.raises(ValueError, match=r"no vae_proxy; give its tokenizer"):
        ptq4arvg.adopt(module)
    assert module.blocks is blocks
    assert ptq4arvg.adopt(module, tokenizer=vae).tokens == case.config["L"]
