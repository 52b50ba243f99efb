"""A quantized model saved and loaded: equal bits in a new process, refusal of what is not whole."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import ptq4arvg
from ptq4arvg.calibration import Calibration, calibrate
from ptq4arvg.checkpoint import content_hash, read_config
from ptq4arvg.models import build_model
from ptq4arvg.nn import PackedLinear
from tests.models.tiny import TINY

OVERRIDES = {"blocks.1.ffn.fc2": "W4A8", "blocks.2.ffn.*": "W8A8"}
IGNORE = ["blocks.0.attn.proj"]


def rows(model, n=4):
    ids = torch.randint(512, (n, model.tokens), generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 5, model.null_label, model.null_label])[:n]
    return Calibration(ids, labels, seed=1, select="given")


def quantized(method="ptq4arvg", **options):
    model = ptq4arvg.load_model("var-tiny")
    ptq4arvg.quantize_(model, "W6A6", method, rows(model), **options)
    return model


@pytest.fixture(scope="module")
def model():
    return quantized(overrides=OVERRIDES, ignore=IGNORE)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "q"
    ptq4arvg.save_quantized(model, folder)
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def logits(model):
    with torch.inference_mode():
        return model.replay(rows(model).ids, rows(model).labels)


def test_the_folder_holds_what_the_format_says(saved):
    names = {path.name for path in saved.iterdir()}
    assert names == {"config.json", "model.safetensors", "recipe.yaml", "report.json", "README.md"}
    assert not list(saved.parent.glob(".q*"))
    config = read_config(saved)["quantization_config"]
    assert config["quant_method"] == "ptq4arvg"
    assert config["ignore"] == IGNORE
    assert config["format"] == "mixed-precision"
    bits = {g["weights"]["num_bits"] for g in config["config_groups"].values()}
    assert bits == {4, 6, 8}
    card = (saved / "README.md").read_text()
    assert "load_quantized" in card
    assert read_config(saved)["hash"] in card


def test_names_follow_compressed_tensors(saved):
    tensors = load_file(saved / "model.safetensors")
    name = "transformer.blocks.1.ffn.fc1"
    assert tensors[f"{name}.weight_packed"].dtype == torch.int32
    assert tensors[f"{name}.weight_scale"].shape[1] == 1
    assert tensors[f"{name}.position_group"].dtype == torch.uint16
    assert tensors["transformer.blocks.2.ffn.fc1.weight"].dtype == torch.int8
    assert f"{name}.weight" not in tensors
    assert not [n for n in tensors if n.endswith((".packed", ".w_sum", ".a_scale"))]


def test_logits_are_equal_after_loading(model, saved):
    loaded = ptq4arvg.load_quantized(saved)
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.recipe == model.recipe or loaded.recipe == json.loads(json.dumps(model.recipe))
    assert loaded.report.worst.name == model.report.worst.name
    assert torch.equal(loaded.generate([3], seed=5), model.generate([3], seed=5))


def test_logits_are_equal_in_a_new_process(model, saved, tmp_path):
    code = f"""
import torch, ptq4arvg
model = ptq4arvg.load_quantized({str(saved)!r})
ids = torch.randint(512, (4, model.tokens), generator=torch.Generator().manual_seed(1))
labels = torch.tensor([0, 5, model.null_label, model.null_label])
torch.save(model.replay(ids, labels).detach(), {str(tmp_path / "logits.pt")!r})
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    assert torch.equal(torch.load(tmp_path / "logits.pt", weights_only=True), logits(model))


def test_rotated_inputs_are_saved(tmp_path):
    model = quantized("rtn", rotation="all")
    ptq4arvg.save_quantized(model, tmp_path / "q")
    config = read_config(tmp_path / "q")["quantization_config"]
    assert config["version"] == 2
    blocks = {group["input_activations"]["rotation"] for group in config["config_groups"].values()}
    assert blocks == {128}
    assert torch.equal(logits(ptq4arvg.load_quantized(tmp_path / "q")), logits(model))


def test_what_has_no_rotated_inputs_is_written_as_version_1(tmp_path):
    ptq4arvg.save_quantized(quantized("rtn"), tmp_path / "q")
    config = read_config(tmp_path / "q")["quantization_config"]
    assert config["version"] == 1
    assert "rotation" not in config["config_groups"]["group_0"]["input_activations"]


def test_no_float_copy_of_a_quantized_weight_stays(saved):
    loaded = ptq4arvg.load_quantized(saved)
    for module in loaded.transformer.modules():
        if isinstance(module, PackedLinear):
            weights = module.in_features * module.out_features
            floats = [t for t in module.buffers() if t.is_floating_point()]
            assert all(t.numel() < weights for t in floats)
            assert not list(module.parameters())


def test_quantized_weights_take_their_bits_on_disk(tmp_path):
    for scheme, bits in (("W8A8", 8), ("W6A6", 6), ("W4A8", 4)):
        model = ptq4arvg.load_model("var-tiny")
        half = {s.name: 2 * model.transformer.get_submodule(s.name).weight.numel()
                for s in model.linears()}  # fmt: skip
        ptq4arvg.quantize_(model, scheme, "rtn", rows(model))
        ptq4arvg.save_quantized(model, tmp_path / scheme)
        tensors = load_file(tmp_path / scheme / "model.safetensors")
        taken = sum(t.nbytes for n, t in tensors.items()
                    if n.removeprefix("transformer.").rpartition(".")[0] in half
                    and n.rpartition(".")[2].startswith("weight"))  # fmt: skip
        assert taken <= sum(half.values()) * bits / 16 * 1.05, scheme


def test_kept_tensors_are_small_and_exact(model, saved):
    tensors = load_file(saved / "model.safetensors")
    tokenizer = [t for n, t in tensors.items() if n.startswith("tokenizer.")]
    assert {t.dtype for t in tokenizer if t.is_floating_point()} == {torch.float16}
    loaded = ptq4arvg.load_quantized(saved)
    for name, tensor in model.tokenizer.state_dict().items():
        other = loaded.tokenizer.state_dict()[name]
        assert other.dtype == tensor.dtype
        assert torch.equal(other, tensor), name


def test_same_seed_and_recipe_give_the_same_hash_and_bytes(tmp_path):
    hashes = [ptq4arvg.save_quantized(quantized(), tmp_path / name) for name in "ab"]
    assert hashes[0] == hashes[1]
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_saving_what_was_loaded_changes_nothing(saved, tmp_path):
    loaded = ptq4arvg.load_quantized(saved)
    assert ptq4arvg.save_quantized(loaded, tmp_path / "again") == read_config(saved)["hash"]


def test_loading_leaves_the_global_generators_alone(saved):
    state = torch.get_rng_state()
    ptq4arvg.load_quantized(saved)
    assert torch.equal(torch.get_rng_state(), state)


def test_simulated_attention_comes_back_whole_or_not_at_all(tmp_path):
    model, folder = quantized("rtn", attention="simulated"), tmp_path / "q"
    ptq4arvg.save_quantized(model, folder)
    loaded = ptq4arvg.load_quantized(folder)
    assert torch.equal(logits(loaded), logits(model))
    tensors = load_file(folder / "model.safetensors")
    for name, change, message in [
        ("v_scale", lambda table: table[:, 1:], r"v_scale is torch.float32 \[.*\]; wanted floats"),
        ("q_scale", lambda table: table[:, 1:], r"q_scale is torch.float32 \[.*\]; wanted floats"),
        ("k_scale", lambda table: -table, "k_scale has values that no scale or shift can have"),
        ("k_zero", lambda table: table[1:], r"k_zero is torch.int32 \[.*\]; wanted int32 \["),
        ("q_zero", lambda table: table.float(), r"q_zero is torch.float32 \[.*\]; wanted int32 \["),
    ]:
        table = tensors[f"transformer.{CORE}.{name}"]
        changed = {f"transformer.{CORE}.{name}": change(table).contiguous()}
        reseal(folder, tensors=tensors | changed)
        refuse(folder, message)


@pytest.fixture(scope="module")
def attended():
    return quantized("rtn", attention="int8")


@pytest.fixture
def attended_copy(attended, tmp_path):
    ptq4arvg.save_quantized(attended, tmp_path / "attended")
    return tmp_path / "attended"


def test_attention_in_integers_comes_back(attended, attended_copy, tmp_path):
    config = read_config(attended_copy)
    quantization = config["quantization_config"]
    assert quantization["version"] == 3
    integers = {"num_bits": 8, "type": "int"}
    assert quantization["attention"] == dict.fromkeys(attended.attention_cores(), integers)
    assert config["recipe"]["options"]["attention"] == "int8"
    loaded = ptq4arvg.load_quantized(attended_copy)
    state, other = attended.state_dict(), loaded.state_dict()
    assert state.keys() == other.keys()
    assert all(torch.equal(state[key], other[key]) for key in state)
    tables = loaded.transformer.get_submodule(loaded.attention_cores()[0]).state_dict()
    assert {table.dtype for table in tables.values()} == {torch.float32}
    assert torch.equal(logits(loaded), logits(attended))
    assert torch.equal(loaded.generate([3, 7], seed=1), attended.generate([3, 7], seed=1))
    assert ptq4arvg.save_quantized(loaded, tmp_path / "again") == config["hash"]
    same = quantized("rtn", attention="int8")
    assert ptq4arvg.save_quantized(same, tmp_path / "same") == config["hash"]


@pytest.mark.parametrize(
    ("attention", "sentence"),
    [
        ("float", "Attention products are in floating point."),
        ("simulated", "Attention products are a simulation of 6 bits in floating point."),
        ("int8", "Attention products are in integers of 8 bits, a KV cache holds int8 codes."),
    ],
)
def test_the_version_and_the_card_tell_what_attention_is(attended, attention, sentence, tmp_path):
    model = attended if attention == "int8" else quantized("rtn", attention=attention)
    ptq4arvg.save_quantized(model, tmp_path / "q")
    version = read_config(tmp_path / "q")["quantization_config"]["version"]
    assert version == (3 if attention == "int8" else 1)
    assert sentence in (tmp_path / "q" / "README.md").read_text()


CORE = "blocks.1.attn.core"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: None, f"tensors missing: transformer.{CORE}.v_scale"),
        (lambda table: table[:, :-1].clone(), r"v_scale is torch.float32 \[.*\]; wanted floats \["),
        (lambda table: table[:1].clone(), r"v_scale is torch.float32 \[1, .*\]; wanted floats \["),
        (lambda table: table.flatten(), r"v_scale is torch.float32 \[[0-9]+\]; wanted floats \["),
        (lambda table: table.int(), "v_scale is torch.int32"),
        (lambda table: -table, "v_scale has values that no scale or shift can have"),
        (lambda table: table * torch.nan, "v_scale has values that no scale or shift can have"),
    ],
)
def test_other_tables_of_attention_are_refused(attended_copy, change, message):
    tensors = load_file(attended_copy / "model.safetensors")
    table = change(tensors.pop(f"transformer.{CORE}.v_scale"))
    if table is not None:
        tensors[f"transformer.{CORE}.v_scale"] = table
    reseal(attended_copy, tensors=tensors)
    refuse(attended_copy, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop(CORE), "attention blocks.0.attn.core and 4 more; wanted that of all"),
        (lambda a: a.update(x=a.pop(CORE)), "blocks.0.attn.core and 5 more; wanted that of all"),
        (
            lambda a: a.update({CORE: {"num_bits": 4, "type": "int"}}),
            "wanted all of it in integers",
        ),
        (
            lambda a: a.update({CORE: {"num_bits": 8, "softmax": "uniform"}}),
            "attention {'num_bits': 8, 'softmax': 'uniform'}; wanted all of it in integers",
        ),
        (lambda a: a.clear(), "not known to this architecture: .*attn.core.k_scale"),
    ],
)
def test_other_kinds_of_attention_are_refused(attended_copy, change, message):
    """Caches are of one kind, so that attention is."""
    config = read_config(attended_copy)
    change(config["quantization_config"]["attention"])
    reseal(attended_copy, config=config)
    refuse(attended_copy, message)


def test_a_changed_table_of_attention_is_found(attended_copy):
    path = attended_copy / "model.safetensors"
    tensors = load_file(path)
    tensors[f"transformer.{CORE}.k_shift"][0, 0] += 1e-3
    save_file(tensors, path)
    refuse(attended_copy, "contents hash to")


def test_a_linear_of_zeros_is_exact_and_not_the_worst(tmp_path):
    model, zeros = build_model("small", TINY["var"], seed=0), "blocks.0.attn.proj"
    for parameter in model.transformer.get_submodule(zeros).parameters():
        parameter.data.zero_()
    ptq4arvg.quantize_(model, "W6A6", "rtn", calibrate(model, 8, 8))
    ptq4arvg.save_quantized(model, tmp_path / "q")
    report = ptq4arvg.load_quantized(tmp_path / "q").report
    assert report.to_dict() == model.report.to_dict()
    assert report.worst.name != zeros and 20 < report.sqnr_db < 60
    [exact] = [layer.sqnr_db for layer in report.layers if layer.name == zeros]
    assert exact > 144


def test_stressed_model_comes_back(tmp_path):
    model = ptq4arvg.load_model("var-tiny", stress=30)
    ptq4arvg.quantize_(model, "W6A6", "rtn", rows(model))
    ptq4arvg.save_quantized(model, tmp_path / "q")
    loaded = ptq4arvg.load_quantized(tmp_path / "q")
    assert loaded.stress == 30
    assert torch.equal(logits(loaded), logits(model))


# What must not be loaded.


def reseal(folder, config=None, tensors=None):
    """Write changed parts with a hash that fits them, as a foreign writer would."""
    config = config or read_config(folder)
    tensors = tensors or load_file(folder / "model.safetensors")
    config["hash"] = content_hash(config, tensors)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")


def refuse(folder, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        ptq4arvg.load_quantized(folder)


def test_a_truncated_file_is_refused(copy):
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    refuse(copy, r"model\.safetensors is truncated or no safetensors file")


def test_a_flipped_bit_is_refused(copy):
    path = copy / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-10] ^= 1
    path.write_bytes(data)
    refuse(copy, "contents hash to .* a file was changed")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "recipe.yaml", "report.json"])
def test_a_missing_file_is_refused(copy, name):
    (copy / name).unlink()
    refuse(copy, name)


def test_an_edited_config_is_refused(copy):
    config = read_config(copy)
    config["quantization_config"]["config_groups"]["group_0"]["input_activations"]["num_bits"] = 8
    (copy / "config.json").write_text(json.dumps(config))
    refuse(copy, "contents hash to")


def test_an_edited_recipe_is_refused(copy):
    recipe = yaml.safe_load((copy / "recipe.yaml").read_text())
    recipe["calibration"]["seed"] = 99
    (copy / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    refuse(copy, r"recipe\.yaml was changed")


def test_a_missing_tensor_is_refused(copy):
    for victim in ("transformer.blocks.1.ffn.fc1.weight_packed", "transformer.word_embed.weight"):
        tensors = load_file(copy / "model.safetensors")
        kept = {n: t for n, t in tensors.items() if n != victim}
        reseal(copy, tensors=kept)
        refuse(copy, f"tensors missing: .*{victim.rpartition('.')[2]}")
        reseal(copy, tensors=tensors)


def test_an_extra_tensor_is_refused(copy):
    tensors = load_file(copy / "model.safetensors")
    reseal(copy, tensors={**tensors, "transformer.blocks.1.ffn.fc1.weight": torch.zeros(2)})
    refuse(copy, "blocks.1.ffn.fc1.weight")
    reseal(copy, tensors={**tensors, "other.weight": torch.zeros(2)})
    refuse(copy, "other.weight belongs to no part")


def test_a_tensor_of_another_shape_is_refused(copy):
    tensors = load_file(copy / "model.safetensors")
    name = "transformer.blocks.1.ffn.fc1.weight_scale"
    reseal(copy, tensors={**tensors, name: tensors[name][:-1].contiguous()})
    refuse(copy, "weight_scale is .* wanted")


@pytest.mark.parametrize("version", [5, 0, True, "1"])
def test_other_formats_are_refused(copy, version):
    config = read_config(copy)
    config["quantization_config"]["version"] = version
    reseal(copy, config=config)
    refuse(copy, f"format version {version!r}; this ptq4arvg reads versions 1 to 4. Update it")


@pytest.mark.parametrize("key", ["hash", "files", "recipe"])
def test_a_config_without_a_part_is_refused(copy, key):
    config = read_config(copy)
    for value in (None, [], 3):
        (copy / "config.json").write_text(json.dumps(config | {key: value}))
        refuse(copy, f"has no {key}; the checkpoint is incomplete")
    del config[key]
    (copy / "config.json").write_text(json.dumps(config))
    refuse(copy, f"has no {key}; the checkpoint is incomplete")


def test_an_architecture_that_no_model_can_have_is_refused(copy):
    config = read_config(copy)
    sizes = config["architecture"]["transformer"]
    for name, bad, message in [
        ("embed_dim", None, "is incomplete: "), ("embed_dim", "64", "is incomplete: "),
        ("embed_dim", -1, "cannot be built: .*negative dimension"),
        ("num_heads", 0, "cannot be built: .*zero"), ("patch_nums", [], "cannot be built: .*range"),
    ]:  # fmt: skip
        good = sizes[name]
        sizes[name] = bad
        reseal(copy, config=config)
        refuse(copy, f"the architecture in config.json {message}")
        sizes[name] = good
    for name in ("name", "architecture", "stress"):
        reseal(copy, config={key: value for key, value in config.items() if key != name})
        refuse(copy, f"the architecture in config.json is incomplete: '{name}'")


def test_other_folders_are_refused(copy, tmp_path):
    refuse(tmp_path / "nothing", "is no folder")
    refuse(tmp_path, "has no config.json")
    (copy / "config.json").write_text("{}")
    refuse(copy, "no config of a quantized model")
    (copy / "config.json").write_text(
        '{"quantization_config": {"quant_method": "x", "version": 1}}'
    )
    refuse(copy, "quantized by 'x'; wanted 'ptq4arvg'")
    (copy / "config.json").write_text('{"quantization_config": ')
    refuse(copy, "no config of a quantized model")


# Where and what may be saved.


def test_another_folder_is_never_overwritten(model, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="not a checkpoint of ptq4arvg; it is left as it is"):
        ptq4arvg.save_quantized(model, tmp_path, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_checkpoint_is_replaced_only_on_demand(model, copy):
    (copy / "README.md").write_text("old")
    with pytest.raises(ValueError, match="holds a checkpoint already"):
        ptq4arvg.save_quantized(model, copy)
    assert (copy / "README.md").read_text() == "old"
    ptq4arvg.save_quantized(model, copy, overwrite=True)
    assert (copy / "README.md").read_text() != "old"
    assert not list(copy.parent.glob(".copy*"))


def test_a_failure_while_writing_leaves_the_old_checkpoint(model, copy, monkeypatch):
    from ptq4arvg.checkpoint import save

    def fail(*_args, **_kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(save, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        ptq4arvg.save_quantized(model, copy, overwrite=True)
    monkeypatch.undo()
    ptq4arvg.load_quantized(copy)
    assert not list(copy.parent.glob(".copy*"))


def test_a_full_disk_is_an_error_of_the_disk(model, tmp_path, monkeypatch):
    def full(*_, **__):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("ptq4arvg.checkpoint.save.save_file", full)
    with pytest.raises(OSError, match=r"q cannot be written \([\d.]+ MB\): .*No space left"):
        model.save_pretrained(tmp_path / "q")
    assert list(tmp_path.iterdir()) == []


def test_a_float_model_is_no_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="not quantized; call ptq4arvg"):
        ptq4arvg.save_quantized(ptq4arvg.load_model("var-tiny"), tmp_path / "q")


def test_a_simulation_is_no_checkpoint(tmp_path):
    model = quantized("rtn", pack=False)
    with pytest.raises(ValueError, match="in simulation only"):
        ptq4arvg.save_quantized(model, tmp_path / "q")
    assert list(tmp_path.iterdir()) == []
