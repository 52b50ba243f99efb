"""A decoder in integers saved and loaded: equal images, and refusal of what is not whole."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import ptq4arvg
from ptq4arvg.calibration import Calibration
from ptq4arvg.checkpoint import content_hash, read_config
from ptq4arvg.models.convolutions import decoder_convolutions
from ptq4arvg.nn import PackedConv2d

PLACE = "decoder.mid.block_1.conv1"


def rows(model):
    n, g = 3, torch.Generator().manual_seed(1)
    labels = torch.tensor([0, 5, model.null_label])
    if model.continuous:
        ids = torch.randn(n, model.tokens, model.config.channels, generator=g)
        order = torch.rand(n, model.tokens, generator=g).argsort(1)[..., None]
        return Calibration(torch.cat([ids, order], 2), labels, seed=1, select="given")
    return Calibration(torch.randint(512, (n, model.tokens), generator=g), labels, 1, "given")


def quantized(name="var-tiny", decoder="W6A6", dtype=torch.float32, **options):
    model = ptq4arvg.load_model(name, dtype=dtype)
    ptq4arvg.quantize_(model, "W8A8", "rtn", rows(model), decoder=decoder, **options)
    return model


@pytest.fixture(scope="module")
def model():
    return quantized()


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "q"
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def images(model):
    with torch.inference_mode():
        return model.decode_rows(rows(model).ids)


def test_config_card_and_report_tell_of_the_decoder(model, saved):
    config = read_config(saved)
    quantization = config["quantization_config"]
    assert quantization["version"] == 4 and config["recipe"]["decoder"] == "W6A6"
    assert quantization["decoder_groups"] == {
        "group_0": {
            "targets": list(decoder_convolutions(model.tokenizer)),
            "format": "dense-pack-quantized",
            "weights": {
                "num_bits": 6, "type": "int", "symmetric": False, "strategy": "channel",
                "dynamic": False,
            },
            "input_activations": {
                "num_bits": 6, "type": "int", "symmetric": False, "strategy": "tensor",
                "dynamic": False, "num_positions": 1, "float_positions": [],
            },
        }
    }  # fmt: skip
    of_linears = quantization["config_groups"].values()
    assert {group["input_activations"]["strategy"] for group in of_linears} == {"token"}
    assert not [t for group in of_linears for t in group["targets"] if t.startswith("decoder.")]
    assert json.loads((saved / "report.json").read_text())["decoder"] == model.report.decoder
    assert (
        "18 convolutions of the tokenizer's decoder are in integers (W6A6); images differ from the "
        f"float decoder's by {model.report.decoder['psnr_db']:.1f} dB PSNR."
    ) in (saved / "README.md").read_text()


def test_without_it_nothing_of_this_is_written(tmp_path):
    quantized(decoder=None).save_pretrained(tmp_path / "q")
    config = read_config(tmp_path / "q")
    assert config["quantization_config"]["version"] == 1
    assert "decoder_groups" not in config["quantization_config"]
    assert "decoder" not in config["recipe"]
    assert "convolutions" not in (tmp_path / "q" / "README.md").read_text()
    loaded = ptq4arvg.load_quantized(tmp_path / "q")
    assert loaded.report.decoder is None
    kinds = {type(conv) for conv in decoder_convolutions(loaded.tokenizer).values()}
    assert kinds == {torch.nn.Conv2d}


def test_tensors_are_those_of_linears(model, saved):
    tensors = load_file(saved / "model.safetensors")
    for place in decoder_convolutions(model.tokenizer):
        prefix = f"tokenizer.{place}."
        own = {name.removeprefix(prefix) for name in tensors if name.startswith(prefix)}
        assert own == {
            "bias", "input_scale", "input_zero_point", "position_group", "weight_packed",
            "weight_scale", "weight_shape", "weight_zero_point",
        }  # fmt: skip


CASES = [("var-tiny", "W8A8", torch.float32), ("rar-tiny", "W4A8", torch.float32),
         ("mar-tiny", "W6A8", torch.float32), ("par-tiny", "W8A8", torch.bfloat16),
         ("var-tiny", "W6A6", torch.float16)]  # fmt: skip


@pytest.mark.parametrize(("name", "decoder", "dtype"), CASES)
def test_images_are_equal_after_loading(name, decoder, dtype, tmp_path):
    model = quantized(name, decoder, dtype)
    model.save_pretrained(tmp_path / "q")
    loaded = ptq4arvg.load_quantized(tmp_path / "q")
    assert torch.equal(images(loaded), images(model)) and images(loaded).dtype == dtype
    state, wanted = loaded.state_dict(), model.state_dict()
    assert state.keys() == wanted.keys()
    assert all(
        torch.equal(state[key], wanted[key]) and state[key].dtype == wanted[key].dtype
        for key in wanted
    )
    convolutions = decoder_convolutions(loaded.tokenizer).values()
    assert {type(conv) for conv in convolutions} == {PackedConv2d}
    assert loaded.recipe["decoder"] == decoder and loaded.report.decoder == model.report.decoder
    assert torch.equal(loaded.generate([3], seed=5), model.generate([3], seed=5))
    again = ptq4arvg.save_quantized(loaded, tmp_path / "again")
    assert again == read_config(tmp_path / "q")["hash"]


def test_the_same_recipe_gives_the_same_bytes(saved, tmp_path):
    quantized().save_pretrained(tmp_path / "same")
    for path in saved.iterdir():
        assert path.read_bytes() == (tmp_path / "same" / path.name).read_bytes(), path.name


def test_with_attention_in_integers(tmp_path):
    model = quantized("rar-tiny", attention="int8")
    model.save_pretrained(tmp_path / "q")
    assert read_config(tmp_path / "q")["quantization_config"]["version"] == 4
    loaded = ptq4arvg.load_quantized(tmp_path / "q")
    assert torch.equal(loaded.generate([3, 1], seed=5), model.generate([3, 1], seed=5))


# What must not be loaded.


def refuse(folder, message, config=None, tensors=None):
    """After the changed parts are written with a hash that fits them."""
    config = config or read_config(folder)
    tensors = tensors or load_file(folder / "model.safetensors")
    config["hash"] = content_hash(config, tensors)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=message) as caught:
        ptq4arvg.load_quantized(folder)
    assert str(caught.value).startswith(f"{folder}: ")


@pytest.mark.parametrize("kind", ["weight_packed", "weight_scale", "input_scale", "position_group"])
def test_a_missing_tensor_is_refused(copy, kind):
    tensors = load_file(copy / "model.safetensors")
    del tensors[f"tokenizer.{PLACE}.{kind}"]
    refuse(copy, f"tensors missing: tokenizer.{PLACE}.{kind}$", tensors=tensors)


def _last_cut(tensor):
    return tensor[:-1].contiguous()


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("weight_scale", _last_cut, "weight_scale is .*; wanted"),
        ("weight_packed", _last_cut, "weight_packed is .*; wanted"),
        ("weight_scale", lambda t: -t, "weight_scale"),
        ("bias", _last_cut, "bias is .*; wanted"),
        ("input_scale", lambda t: t * torch.nan, "input_scale"),
        ("position_group", lambda t: t.repeat(2), "position_group is .*; wanted"),
    ],
)
def test_other_tensors_are_refused(copy, kind, change, message):
    tensors = load_file(copy / "model.safetensors")
    name = f"tokenizer.{PLACE}.{kind}"
    tensors[name] = change(tensors[name])
    refuse(copy, f"{PLACE}.{message}", tensors=tensors)


def test_an_extra_tensor_is_refused(copy):
    tensors = load_file(copy / "model.safetensors")
    refuse(copy, "not known to this architecture: .*block_1.conv1.weight$",
           tensors={**tensors, f"tokenizer.{PLACE}.weight": torch.zeros(2)})  # fmt: skip


def _group(config):
    return config["quantization_config"]["decoder_groups"]["group_0"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *[(lambda g, name=name: g["targets"].append(name),
           f"tokenizer.{name} is no convolution that can be in integers$")
          for name in ("decoder.conv_in", "decoder.mid.attn_1.qkv", "decoder.nothing", "x",
                       "encoder.mid.block_1.conv1", "decoder.mid.block_1")],
        (lambda g: g["targets"].remove(PLACE), r"tensors missing: .*block_1.conv1.weight"),
        (lambda g: g["weights"].update(num_bits=5), "asks for 5 weight and 6 activation bits"),
        (lambda g: g["weights"].update(num_bits=8), f"tensors missing: tokenizer.{PLACE}.weight$"),
        (lambda g: g["input_activations"].pop("num_bits"), "is incomplete: no 'num_bits'"),
        (lambda g: g.pop("targets"), "is incomplete: no 'targets'"),
        (lambda g: g["input_activations"].update(num_positions=2),
         "has 2 positions, 0 of them in float, and rotation 0; wanted one position for all pixels"),
        (lambda g: g["input_activations"].update(float_positions=[0]),
         "has 1 positions, 1 of them in float, and rotation 0; wanted one position for all pixels"),
        (lambda g: g["input_activations"].update(rotation=4),
         "has 1 positions, 0 of them in float, and rotation 4; wanted one position for all pixels"),
    ],
)  # fmt: skip
def test_other_groups_are_refused(copy, change, message):
    config = read_config(copy)
    change(_group(config))
    refuse(copy, message, config=config)


def test_a_config_without_the_groups_is_refused(copy):
    config = read_config(copy)
    del config["quantization_config"]["decoder_groups"]
    refuse(copy, "tensors missing: .*not known to this architecture: ", config=config)
    config["quantization_config"]["decoder_groups"] = ["x"]
    refuse(copy, "quantization_config is incomplete: no ", config=config)


def test_a_changed_tensor_is_found(copy):
    tensors = load_file(copy / "model.safetensors")
    tensors[f"tokenizer.{PLACE}.input_scale"][0] *= 2
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(ValueError, match="contents hash to"):
        ptq4arvg.load_quantized(copy)
