"""Names, sizes and random weights."""

import pytest
import torch
from torch.testing import assert_close

from ptq4arvg.models import build_model, list_models, load_model, model_config, registry
from ptq4arvg.models.base import ARVGModel, SamplingDefaults
from ptq4arvg.models.family import Family
from ptq4arvg.models.var import VAR, VARConfig, VARModel
from ptq4arvg.models.vqvae import VQVAE, VQVAEConfig
from tests.models.tiny import TINY

# Parameters that the authors give, in millions (table 1 of Tian et al. 2024 and Yu et al. 2024).
PUBLISHED = {
    "var-d16": 310, "var-d20": 600, "var-d24": 1000, "var-d30": 2000, "var-d36": 2300,
    "rar-b": 261, "rar-l": 461, "rar-xl": 955, "rar-xxl": 1499,
}  # fmt: skip
TOKENS = {"var-d36": 2240, "var": 680, "rar": 256}


def test_sizes_are_those_published():
    models = {info.name: info for info in list_models()}
    assert {"var-tiny", *PUBLISHED} <= set(models)
    assert all(info.licence for info in models.values())
    for name, millions in PUBLISHED.items():
        near = 0.002 if name.startswith("rar") else 0.05  # as exactly as the papers give them
        assert models[name].parameters / 1e6 == pytest.approx(millions, rel=near), name
        assert models[name].tokens == TOKENS.get(name, TOKENS[models[name].family])
        assert models[name].image_size == (512 if name == "var-d36" else 256)
    assert models["var-tiny"].tokens == 155 and models["var-tiny"].weights == "bundled"


@pytest.mark.parametrize(
    ("family", "published"),
    [("var", (1.5, 900, 0.96)), ("rar", (16.0, 0, 0.0)), ("par", (1.5, 0, 0.0)),
     ("mar", (2.9, 0, 0.0)), ("switti", (6.0, 400, 0.95))],
)  # fmt: skip
def test_sampling_is_as_published_unless_said_otherwise(family, published):
    assert build_model("x", TINY[family]).config.sampling == SamplingDefaults(*published)


@pytest.mark.parametrize("name", ["var-tiny", *PUBLISHED])
def test_linears_cover_every_matrix_product_of_the_blocks(name):
    config = model_config(name)
    small = {**config["transformer"], "depth": 2, "embed_dim": 64, "num_heads": 4}
    model = build_model(name, {**config, "transformer": small})
    specs = {spec.name for spec in model.linears()}
    linears = {
        path for path, module in model.transformer.named_modules()
        if isinstance(module, torch.nn.Linear)
    }  # fmt: skip
    assert linears - specs == ({"word_embed"} if model.family == "var" else set())
    assert specs <= linears
    for spec in model.linears():
        assert len(spec.groups) == len(spec.scale_groups)
        assert len(spec.groups) in (1, model.positions)


def test_unknown_names():
    with pytest.raises(ValueError, match=r"unknown model 'var-d17'.*Closest: 'var-d16'"):
        load_model("var-d17")
    with pytest.raises(ValueError, match=r"var-d16 is not bundled: give weights.*var_d16\.pth"):
        load_model("var-d16")
    with pytest.raises(ValueError, match=r"family 'rax'; wanted .*'var'"):
        build_model("x", {"family": "rax", "transformer": {}, "tokenizer": {}})
    config = model_config("var-tiny")
    wrong = {**config, "transformer": {**config["transformer"], "depht": 3}}
    with pytest.raises(ValueError, match=r"VARConfig: unknown field 'depht'\. Closest: 'depth'"):
        build_model("x", wrong)


def test_random_weights_are_reproducible():
    config = model_config("var-tiny")
    first, again, other = (build_model("x", config, seed=seed) for seed in (0, 0, 1))
    name = "transformer.blocks.1.ffn.fc1.weight"
    assert torch.equal(first.state_dict()[name], again.state_dict()[name])
    assert not torch.equal(first.state_dict()[name], other.state_dict()[name])
    assert first.replay(torch.zeros(1, 155, dtype=torch.long), torch.tensor([0])).isfinite().all()


def test_models_are_made_to_evaluate():
    model = build_model("x", TINY["var"], seed=0)
    assert not any(module.training for module in model.modules())
    assert not any(p.requires_grad for p in model.parameters())


def equal(a, b):
    state, other = a.state_dict(), b.state_dict()
    return all(torch.equal(state[key], other[key]) for key in state)


@pytest.mark.parametrize("own", [(), ("weights",), ("tokenizer",), ("weights", "tokenizer")])
def test_a_bundled_model_with_weights_of_ones_own(own):
    model = load_model("rar-tiny", **dict.fromkeys(own, "random"))
    assert model.own_weights == bool(own)
    plain = load_model("rar-tiny")
    assert equal(model.transformer, plain.transformer) == ("weights" not in own)
    assert equal(model.tokenizer, plain.tokenizer) == ("tokenizer" not in own)


@pytest.mark.parametrize("part", ["weights", "tokenizer"])
def test_a_file_without_a_name_is_not_the_bundled_one(part):
    with pytest.raises(FileNotFoundError, match=r"no weight file '\.'; wanted a \.pth"):
        load_model("rar-tiny", **{part: ""})


def test_stress_goes_by_its_seed():
    one, same, other = (load_model("var-tiny", stress=30, stress_seed=s) for s in (1, 1, 2))
    assert equal(one, same) and not equal(one.transformer, other.transformer)


def test_half_precision_and_buffers_follow():
    model = load_model("var-tiny", dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.transformer.level.dtype == torch.int64
    assert model.generate([3]).shape == (1, 3, 32, 32)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"share_quant_resi": 0}, "quantize.quant_resi.6.weight"),
        ({"share_quant_resi": 1}, "quantize.quant_resi.qresi.weight"),
        ({"share_quant_resi": 3}, "quantize.quant_resi.qresi_ls.2.weight"),
        ({"using_mid_sa": False}, "encoder.down.1.attn.0.qkv.weight"),
        ({"using_sa": False}, "decoder.mid.attn_1.qkv.weight"),
        ({"quant_conv_ks": 1}, "post_quant_conv.weight"),
        ({"quant_conv_ks": 5}, "post_quant_conv.weight"),
    ],
)
def test_tokenizers_of_other_settings(settings, key):
    base = {"ch": 32, "ch_mult": (1, 2), "num_res_blocks": 1, "z_channels": 8, "vocab_size": 24,
            "patch_nums": (1, 2, 3, 4, 5, 6, 8)}  # fmt: skip
    torch.manual_seed(0)
    vq = VQVAE(VQVAEConfig(**base, **settings)).eval()
    keys = vq.state_dict()
    assert key in keys
    assert ("encoder.mid.attn_1.norm.weight" in keys) == settings.get("using_mid_sa", True)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    ids = vq.encode(images)
    assert ids.shape == (2, 155)
    assert vq.decode(ids).shape == images.shape


def test_codes_by_cosine():
    torch.manual_seed(0)
    config = VQVAEConfig(ch=32, ch_mult=(1,), num_res_blocks=1, z_channels=8, vocab_size=24,
                         patch_nums=(1,), using_znorm=True)  # fmt: skip
    quantizer = VQVAE(config).quantize
    f = torch.randn(5, 8, 1, 1)
    cosine = torch.cosine_similarity(f.view(5, 1, 8), quantizer.embedding.weight[None], dim=-1)
    assert torch.equal(quantizer.encode(f)[:, 0], cosine.argmax(1))
    assert torch.equal(quantizer.encode(f), quantizer.encode(7 * f))


def test_no_convolution_without_its_share():
    config = VQVAEConfig(ch=32, ch_mult=(1,), num_res_blocks=1, z_channels=8, vocab_size=24,
                         patch_nums=(1, 2), quant_resi=0.0)  # fmt: skip
    keys = VQVAE(config).state_dict()
    assert not any("qresi" in key for key in keys)


@pytest.mark.parametrize("share", [0.3, -0.3])
def test_the_share_of_the_convolution_counts_without_its_sign(share):
    config = VQVAEConfig(ch=32, ch_mult=(1,), num_res_blocks=1, z_channels=8, vocab_size=24,
                         patch_nums=(1, 2), quant_resi=share, share_quant_resi=1)  # fmt: skip
    torch.manual_seed(0)
    quantizer = VQVAE(config).quantize.requires_grad_(False)
    assert isinstance(quantizer.quant_resi.qresi, torch.nn.Conv2d)
    ids = torch.tensor([[1, 20, 7, 9], [0, 3, 3, 23]])
    h = quantizer.embedding.weight[ids].transpose(1, 2).view(2, 8, 2, 2)
    wanted = 0.7 * h + 0.3 * quantizer.quant_resi.qresi(h)
    assert_close(quantizer.contribution(1, ids), wanted)


def test_a_sequence_of_one_scale():
    config = VARConfig(depth=1, num_heads=2, embed_dim=32, num_classes=3, patch_nums=(2,),
                       vocab_size=8, z_channels=4)  # fmt: skip
    net = VAR(config)
    tokenizer = VQVAEConfig(ch=32, ch_mult=(1,), num_res_blocks=1, z_channels=4, vocab_size=8,
                            patch_nums=(2,))  # fmt: skip
    ids = torch.zeros(2, 4, dtype=torch.int64)
    _, inputs = VQVAE(tokenizer).quantize.latents_and_inputs(ids)
    assert inputs.shape == (2, 0, 4)
    assert net(torch.tensor([0, 3]), inputs).shape == (2, 4, 8)


@pytest.fixture
def unpublished(monkeypatch):
    """A family whose only size has no files, and whose folds leave no constant to absorb."""

    class PlainModel(VARModel):
        family, absorb_constant_ = "plain", ARVGModel.absorb_constant_

    parts = TINY["var"]["transformer"], TINY["var"]["tokenizer"]
    family = Family(
        "plain", VARConfig, VQVAEConfig, VAR, VQVAE, PlainModel, sizes={"plain-s": parts}
    )
    monkeypatch.setitem(registry.FAMILIES, "plain", family)
    monkeypatch.setitem(registry.PUBLISHED, "plain-s", family)


def test_a_size_without_files(unpublished):
    for given, missing in (({}, "weights"), ({"weights": "random"}, "tokenizer")):
        with pytest.raises(
            ValueError, match=rf"plain-s is not bundled: give {missing}\. Type load"
        ):
            load_model("plain-s", **given)
    info = {info.name: info for info in list_models()}["plain-s"]
    assert (info.weights, info.licence) == ("not published", "licence not known")


def test_stress_without_a_constant_to_absorb(unpublished):
    files = {"weights": "random", "tokenizer": "random"}
    ids, labels = torch.randint(40, (2, 14)), torch.tensor([0, 3])
    plain, stressed = (load_model("plain-s", stress=s, **files) for s in (0, 30))
    assert_close(stressed.replay(ids, labels), plain.replay(ids, labels))
