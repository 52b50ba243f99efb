"""calibrate, quantize, verify and generate, one after the other on the bundled model."""

import json
import re

import pytest
import torch
from PIL import Image

from ptq4arvg.calibration_file import load_calibration, save_calibration
from ptq4arvg.cli import main
from ptq4arvg.methods import METHODS


def run(*arguments):
    assert main([str(a) for a in arguments]) == 0


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.safetensors"
    run("calibrate", "var-tiny", "--out", path, "--samples", 4, "--keep", 4, "--seed", 1, "-q")
    return path


@pytest.fixture(scope="module")
def checkpoint(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "q"
    run("quantize", "var-tiny", "--calibration", rows, "--out", folder, "--quiet",
        "--ignore", "re:blocks\\.0\\..*", "--override", "blocks.1.ffn.fc2=W4A8",
        "--option", "bias_correction=false")  # fmt: skip
    return folder


def test_rows_survive_their_file(rows, tmp_path):
    calibration = load_calibration(rows)
    assert calibration.ids.shape == (4, 155)
    assert (calibration.seed, calibration.select) == (1, "dgc")
    again = load_calibration(save_calibration(calibration, tmp_path / "again.safetensors"))
    assert again.hash == calibration.hash
    assert torch.equal(again.ids, calibration.ids)


def test_other_files_are_no_rows(rows, tmp_path):
    from safetensors.torch import load_file, save_file

    other = tmp_path / "other.safetensors"
    save_file({"ids": torch.zeros(1)}, other)
    with pytest.raises(ValueError, match="no calibration file"):
        load_calibration(other)
    other.write_bytes(rows.read_bytes()[:50])
    with pytest.raises(ValueError, match="cannot be read"):
        load_calibration(other)
    from safetensors import safe_open

    with safe_open(rows, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(rows)
    tensors["labels"] = (tensors["labels"] + 1) % 32
    save_file(tensors, other, metadata)
    with pytest.raises(ValueError, match="was changed"):
        load_calibration(other)


def test_dry_run_lists_layers_and_writes_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("quantize", "var-tiny", "--dry-run", "--ignore", "blocks.0.attn.proj", "--quiet")
    out = capsys.readouterr().out
    assert "blocks.5.ffn.fc2" in out
    assert "1 kept in float" in out
    assert " MB -> " in out
    assert list(tmp_path.iterdir()) == []


def test_a_pattern_that_matches_nothing_is_an_error(capsys):
    assert main(["quantize", "var-tiny", "--dry-run", "--ignore", "blocks.0.attn.prj", "-q"]) == 2
    assert "Closest: 'blocks.0.attn.proj'" in capsys.readouterr().err


@pytest.mark.parametrize("goal", [("--scheme", "W8A8"), ("--target-bits", 5)])
def test_a_request_that_ignores_every_linear_ends_before_the_work(goal, tmp_path, capsys):
    command = "quantize", "var-tiny", *goal, "--ignore", "*", "--out", tmp_path / "q"
    error = fails(capsys, *command)
    assert "every linear is ignored" in error and "sample:" not in error
    assert "every linear is ignored" in fails(capsys, *command, "--dry-run")


def test_a_dry_run_with_target_bits_says_what_is_measured(capsys):
    run("quantize", "var-tiny", "--dry-run", "--target-bits", 5.5, "-q", "--override", "head=W8A8")
    out = capsys.readouterr().out
    assert "31 linears get one of W4A8, W6A8, W8A8" in out and "at most 5.5 bits" in out
    assert len(re.findall("x[0-9]+ +measured ", out)) == 31 and out.count(" W8A8 ") == 2
    assert "14.68 MB -> 5.05 MB" in out  # 5.5 sixteenths


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target-bits", "9"], "target_bits is 9; wanted 4 to 8"),
        (["--target-bits", "5", "--scheme", "W6A6"], "--scheme W6A6 and --target-bits 5: give one"),
        (["--target-bits", "4", "--override", "head=W8A8"], "with every open linear at W4A8"),
    ],
)
def test_target_bits_that_cannot_be_are_found_out_before_the_work(arguments, message, capsys):
    assert main(["quantize", "var-tiny", "--dry-run", "-q", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_target_bits_give_a_checkpoint_of_several_schemes(tmp_path, capsys):
    folder = tmp_path / "q"
    run("quantize", "par-tiny", "--method", "rtn", "--samples", 4, "--keep", 4, "--out", folder,
        "--target-bits", 5.5, "-q")  # fmt: skip
    out = capsys.readouterr().out
    assert "schemes " in out and " W4A8" in out and "bits a weight on average" in out
    run("verify", folder)
    assert "the same hash" in capsys.readouterr().out


def test_attention_in_integers_by_an_option(rows, tmp_path, capsys):
    folder = tmp_path / "q"
    run("quantize", "var-tiny", "--method", "rtn", "--calibration", rows, "--out", folder, "-q",
        "--option", "attention=int8")  # fmt: skip
    assert " in float, attention in integers, weights " in capsys.readouterr().out
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert config["version"] == 3 and len(config["attention"]) == 6
    run("verify", folder)
    assert "the same hash" in capsys.readouterr().out
    run("generate", folder, "--classes", "3", "--out", tmp_path / "images", "-q")
    assert (tmp_path / "images" / "000_class3.png").is_file()


@pytest.mark.parametrize("end", [["--dry-run"], ["--out", "q"]])
def test_attention_that_cannot_be_is_found_out_before_the_work(end, capsys):
    argv = ["quantize", "mar-tiny", "--option", "attention=simulated", "-q", *end]
    assert main(argv) == 2
    wanted = "attention='simulated': mar-tiny keeps its attention products in floating point"
    assert wanted in capsys.readouterr().err
    assert main(["quantize", "var-tiny", "--option", "attention=int4", *end, "-q"]) == 2
    assert "attention is 'int4'; wanted one of float, int8, simulated" in capsys.readouterr().err


def test_quantize_ends_with_three_lines(checkpoint, rows, tmp_path, capsys):
    run("quantize", "var-tiny", "--method", "rtn", "--calibration", rows, "--out", tmp_path / "q")
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert [line.split()[0] for line in lines[-3:]] == ["wrote", "look", "next"]
    assert "SQNR" in lines[-2]
    assert "pack" in captured.err  # progress in plain lines


def test_a_taken_folder_is_found_out_before_the_work(checkpoint, capsys):
    assert main(["quantize", "var-tiny", "--out", str(checkpoint), "--quiet"]) == 2
    assert "holds a checkpoint already" in capsys.readouterr().err


def test_verify_says_what_it_checked(checkpoint, capsys):
    run("verify", checkpoint)
    out = capsys.readouterr().out
    assert "contents match their hash" in out
    assert "the same hash" in out
    assert "integer layers equal their simulation" in out


def test_verify_finds_a_changed_file(checkpoint, tmp_path, capsys):
    import shutil

    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    (copy / "recipe.yaml").write_text("scheme: W8A8\n")
    assert main(["verify", str(copy), "--quiet"]) == 2
    assert "recipe.yaml was changed" in capsys.readouterr().err


def test_sampling_options_are_those_of_the_family(tmp_path, capsys):
    run("generate", "mar-tiny", "--classes", "3", "--num-iter", 2, "--out", tmp_path / "a", "-q")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["000_class3.png"]
    argv = ["generate", "var-tiny", "--classes", "3", "--num-iter", "2", "--out", str(tmp_path)]
    assert main([*argv, "-q"]) == 2
    assert "var-tiny: no sampling option 'num_iter'" in capsys.readouterr().err


def test_generate_writes_images_that_depend_on_seed_and_index(checkpoint, tmp_path, capsys):
    # Batches of one size: how float linears round may go with the size, and a token can flip by it.
    for name, classes, seed in [("a", "3,7", 4), ("b", "3,5", 4), ("c", "3,7", 5)]:
        run("generate", checkpoint, "--classes", classes, "--seed", seed, "--out", tmp_path / name,
            "-q")  # fmt: skip
    one, neighbour, other = ((tmp_path / d / "000_class3.png").read_bytes() for d in "abc")
    assert one == neighbour
    assert one != other
    assert Image.open(tmp_path / "a" / "001_class7.png").size == (32, 32)
    assert "ms per image" in capsys.readouterr().out


def test_generate_draws_what_is_not_there(checkpoint, tmp_path, capsys):
    def generate(seed=4):
        run("generate", checkpoint, "--classes", "3,7", "--seed", seed, "--batch-size", 1,
            "--out", tmp_path, "-q")  # fmt: skip
        return {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    first, lost = generate(), tmp_path / "000_class3.png"
    lost.write_bytes(b"half")
    kept = (tmp_path / "001_class7.png").stat().st_mtime_ns
    assert generate() == first
    assert (tmp_path / "001_class7.png").stat().st_mtime_ns == kept
    capsys.readouterr()
    generate()
    assert "nothing was left to draw" in capsys.readouterr().out
    other = generate(seed=5)
    assert other.keys() == first.keys() and not set(other.values()) & set(first.values())


def test_a_float_model_generates_from_its_files(checkpoint, tmp_path, capsys):
    files = "--weights", "random", "--tokenizer", "random"
    run("generate", "par-tiny", "--classes", "3", "--cfg", 2, *files, "--out", tmp_path / "a", "-q")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["000_class3.png"]
    following = capsys.readouterr().out.splitlines()[-1]
    assert f"--classes 3 {' '.join(files)} --cfg 2.0 --seed 1 --out" in following
    error = fails(capsys, "generate", checkpoint, "--classes", 3, *files, "--out", tmp_path / "b")
    assert "--weights is for the name of a float model; the checkpoint" in error


def test_models_and_methods_are_listed(capsys):
    run("models")
    assert "var-tiny" in capsys.readouterr().out
    run("methods")
    listed = capsys.readouterr().out
    for name, method in METHODS.items():
        where = "integers" if method.integer else f"simulation only: {method.no_integer}"
        assert f"{name}: {method.summary} ({where})\n" in listed


def fails(capsys, *arguments):
    """The error of a command that has to fail at once."""
    assert main([str(a) for a in arguments]) == 2
    return capsys.readouterr().err


def test_rows_of_another_model(rows, tmp_path, capsys):
    assert load_calibration(rows).model == "var-tiny" and load_calibration(rows).samples == 4
    error = fails(
        capsys, "quantize", "par-tiny", "--calibration", rows, "--out", tmp_path / "q", "-q"
    )
    assert "holds rows of var-tiny; wanted those of par-tiny: ptq4arvg calibrate par-tiny" in error


def test_targets_that_cannot_be_written_are_found_first(rows, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    inside = tmp_path / "file" / "x"
    for command in (("quantize", "var-tiny", "--out", inside),
                    ("calibrate", "var-tiny", "--out", inside),
                    ("generate", "var-tiny", "--classes", 3, "--out", inside),
                    ("evaluate", "var-tiny", "--out", inside)):  # fmt: skip
        assert f"{inside} cannot be made: {tmp_path / 'file'} is a file" in fails(capsys, *command)
    for command in (("calibrate", "var-tiny", "--out", tmp_path / "folder"),
                    ("evaluate", "var-tiny", "--out", tmp_path / "folder"),
                    ("evaluate", "var-tiny", "--out", tmp_path / "r.json",
                     "--samples", tmp_path / "folder")):  # fmt: skip
        assert "is a folder; wanted the name of a file" in fails(capsys, *command)
    for command in (("generate", "var-tiny", "--classes", 3), ("compare", "var-tiny"), ("demo",)):
        error = fails(capsys, *command, "--out", tmp_path / "file")
        assert "is a file; wanted the name of a folder" in error
    command = "quantize", "var-tiny", "--calibration", tmp_path / "folder", "--out", tmp_path / "q"
    assert "is a folder; wanted a file that" in fails(capsys, *command)
    command = *command[:3], tmp_path / "gone", *command[4:]
    assert "gone'; wanted one that `ptq4arvg calibrate` writes" in fails(capsys, *command)


@pytest.mark.parametrize("command", ["generate", "evaluate"])
def test_neither_a_checkpoint_nor_a_model(command, tmp_path, capsys):
    options = ("--out", tmp_path / "x") + (("--classes", "3") if command == "generate" else ())
    error = fails(capsys, command, "no-such", *options)
    assert "there is no checkpoint folder 'no-such', and no model of that name" in error


@pytest.mark.parametrize("name", ["samples", "keep", "select", "seed"])
def test_rows_of_a_file_leave_nothing_to_sample(name, rows, tmp_path, capsys):
    value = "dgc" if name == "select" else 4
    command = "quantize", "var-tiny", "--calibration", rows, f"--{name}", value
    error = fails(capsys, *command, "--out", tmp_path / "q")
    assert f"--{name} is for rows that are sampled now; those of --calibration {rows}" in error


def test_a_comparison_by_no_process(tmp_path, capsys):
    error = fails(capsys, "compare", "var-tiny", "--jobs", 0, "--out", tmp_path / "c")
    assert "jobs is 0; wanted 1 process or more" in error


def test_random_weights_from_the_command_line(capsys):
    error = fails(capsys, "quantize", "rar-b", "--dry-run")
    assert "'random' for random weights; on the command line these are --weights" in error
    run("quantize", "rar-b", "--weights", "random", "--tokenizer", "random", "--dry-run", "-q")
    assert "to quantize" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "text"),
    [("gps=[", "--option gps=[: that value cannot be read"),
     ("limit=0", "limit is 0.0; wanted 1 or more"), ("limit=.nan", "limit is nan"),
     ("smooth=-5", "smooth is -5; wanted a number from 0 to 1"),
     ("smooth=abc", "smooth is 'abc'")],
)  # fmt: skip
def test_options_that_mean_nothing(option, text, tmp_path, capsys):
    command = "quantize", "var-tiny", "--out", tmp_path / "q", "-q", "--option", option
    assert text in fails(capsys, *command)


def test_a_float_that_is_text_to_yaml():
    from ptq4arvg.cli.quantize import _options
    from ptq4arvg.methods import get_method

    assert _options(["clip_rate=1e-3"], get_method("omniquant")) == {"clip_rate": 1e-3}
