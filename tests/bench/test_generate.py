"""bench/generate.py on the bundled model, one image and one repeat: columns, ratios, errors."""

import csv

import generate
import pytest
import torch
import variants

from ptq4arvg import load_quantized
from ptq4arvg.graphs import StepGraphs
from ptq4arvg.models import build_model, registry
from tests.graph_tape import TapeBackend
from tests.models.tiny import TINY


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "scheme"), [("var-tiny", "W4A8"), ("mar-tiny", "W4A8"), ("rar-tiny", "W8A8KV8")]
)
def test_a_bundled_model(tmp_path, capsys, model, scheme):
    out, kept = tmp_path / "g.csv", tmp_path / "checkpoints"
    arguments = ["--model", model, "--schemes", scheme, "--floats", "float32", "--repeats",
                 "1", "--threads", "1", "--checkpoints", str(kept), "--out", str(out)]  # fmt: skip
    assert generate.main(arguments) == 0
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(generate.COLUMNS)
    assert [row["variant"] for row in rows] == ["float32", scheme]
    for row in rows:
        first, tokens, whole = (
            float(row[f"seconds_{c}"]) for c in ("first_scale", "tokens", "image")
        )
        assert 0 < first < tokens < whole
        assert float(row["peak_mib"]) > float(row["import_mib"]) > 0
        assert float(row["x_float32"]) > 0 and not row["x_bfloat16"]
        assert float(row["seconds_first_call"]) > 0 and not row["device_peak_mib"]
    assert float(rows[0]["x_float32"]) == 1 and float(rows[0]["memory_float32"]) == 1
    assert (kept / f"{model}-{scheme}-bfloat16-rotated" / "config.json").is_file()
    captured = capsys.readouterr()
    assert scheme in captured.out and "generate" in captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "var-16"], "Closest: 'var-d16'"),
        (["--schemes", "W8A6"], "Closest: 'W8A8'"),
        (["--schemes", "W8A8KV4"], "Closest: 'W8A8KV8'"),
        (["--schemes", "W8A8KV8D4"], "Closest: 'W8A8KV8D8'"),
        (["--model", "switti-512", "--schemes", "W8A8KV8"], "No KV8: switti-512 has positions"),
        (["--floats", "float16"], "unknown 'float16'"),
        (["--images", "0"], "above 0"),
        (["--images", "1,0"], "above 0"),
        (["--images", "1;8"], "--images '1;8'; wanted numbers such as 1,8,64"),
        (["--floats", "bfloat16_graphs"], "--floats bfloat16_graphs wants --device cuda"),
        (["--device", "cuda"], "device is 'cuda', and torch"),
        (["--schemes", "", "--floats", ""], "nothing to measure"),
        (["--out", "."], ". is a folder; wanted the name of a file"),
        (["--checkpoints", __file__], "is a file; wanted the name of a folder"),
    ],
)
def test_bad_arguments(capsys, arguments, message):
    assert generate.main(["--quiet", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "schemes"),
    [
        ("var-d16", ["W8A8", "W8A8KV8", "W6A6", "W6A6KV8", "W4A8", "W4A8KV8"]),
        ("switti-512", ["W8A8", "W6A6", "W4A8"]),
    ],
)
def test_schemes_that_a_model_can_have(model, schemes):
    assert generate._parse(["--model", model]).schemes == schemes


def test_what_is_named_twice_is_measured_once():
    twice = ["--images", "2,2", "--schemes", "W8A8,w8a8", "--floats", "float32,float32"]
    arguments = generate._parse(twice)
    assert (arguments.images, arguments.schemes) == ([2], ["W8A8"])
    assert arguments.floats == ["float32"]


@pytest.mark.parametrize(
    ("scheme", "attention", "decoder"),
    [
        ("W8A8", "float", None), ("W4A8KV8", "int8", None), ("W6A6D8", "float", "W8A8"),
        ("W8A8KV8D8", "int8", "W8A8"),
    ],
)  # fmt: skip
def test_what_a_scheme_ends_in_is_in_integers(monkeypatch, tmp_path, scheme, attention, decoder):
    """As the worker prepares it, in this process."""
    answers = []
    monkeypatch.setattr(variants, "_answer", answers.append)
    monkeypatch.setattr(variants, "float_model", lambda *_: build_model("t", TINY["rar"], seed=0))
    variants._prepare("t", scheme, "float32", "none", str(tmp_path), str(torch.get_num_threads()))
    model = load_quantized(tmp_path / f"t-{scheme}-float32")
    assert model.report.scheme == scheme[:4] and model.report.options["attention"] == attention
    core = model.transformer.get_submodule(model.attention_cores()[0])
    assert core.integer == (attention == "int8")
    assert (model.report.decoder or {}).get("scheme") == decoder
    assert answers[-1] == {} and answers[0] == {"progress": [f"prepare {scheme}: build", 0, 1]}


def test_a_text_to_image_model_gets_prompts(monkeypatch):
    config = TINY["switti"]
    without = {k: v for k, v in config["transformer"].items() if k != "num_classes"}
    monkeypatch.setattr(registry, "model_config", lambda _name: config | {"transformer": without})
    model = variants.float_model("switti-512", "bfloat16")
    assert model.num_classes == variants.PROMPTS - 1
    assert model.generate([0, 7], seed=1).isfinite().all()


def test_a_worker_that_ends_is_named():
    with pytest.raises(variants.VariantError, match="W8A8: its process ended"):
        variants.Variant("var-tiny", "W8A8", variants.Path("no-such-folder"), 1, 1, "cpu")


class Fake:
    """A variant that takes as long as its name says, and is interrupted in the third round."""

    calls, limit, device_peak = 0, 3 + 7, None

    def __init__(self, _model, name, *_rest):
        self.scale = {"float32": 4.0, "bfloat16": 2.0, "W8A8": 1.0}.get(name, 0.5)
        self.loaded = {"seconds": 1.0, "import_mib": 100.0}

    def run(self):
        Fake.calls += 1
        if Fake.calls > Fake.limit:
            raise KeyboardInterrupt
        s = self.scale
        return {"seconds": s, "first": 0.1 * s, "tokens": 0.9 * s, "decode": 0.1 * s, "cpu": s,
                "waited": 0.0, "peak_mib": 100 * s,
                "device_peak_mib": self.device_peak}  # fmt: skip

    def close(self):
        pass


def test_an_interrupt_keeps_what_was_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "Variant", Fake)
    monkeypatch.setattr(generate, "prepare", lambda *_: {})
    monkeypatch.setattr(Fake, "calls", 0)
    out = tmp_path / "g.csv"
    assert (
        generate.main(["--schemes", "W8A8", "--images", "2", "--quiet", "--out", str(out)]) == 130
    )
    with out.open() as file:
        rows = {row["variant"]: row for row in csv.DictReader(file)}
    assert [row["repeats"] for row in rows.values()] == ["3", "2", "2"]
    assert float(rows["W8A8"]["x_float32"]) == 4 and float(rows["W8A8"]["x_bfloat16"]) == 2
    assert float(rows["W8A8"]["memory_float32"]) == 0.25
    assert float(rows["W8A8"]["seconds_image"]) == 0.5
    assert float(rows["W8A8"]["images_second"]) == 2 and float(rows["W8A8"]["seconds_call"]) == 1
    assert not rows["W8A8"]["x_bfloat16_graphs"]


def test_a_table_for_each_number_of_images_on_a_gpu(tmp_path, monkeypatch, capsys):
    for name, fake in (
        ("Variant", Fake),
        ("prepare", lambda *_: {}),
        ("stamp", lambda *_: {"threads": 2}),
    ):
        monkeypatch.setattr(generate, name, fake)
    monkeypatch.setattr(generate.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(generate.torch.cuda, "device_count", lambda: 1)
    for name, value in (("calls", 0), ("limit", 99), ("device_peak", 10.0)):
        monkeypatch.setattr(Fake, name, value)
    out = tmp_path / "g.csv"
    arguments = ["--schemes", "W8A8", "--images", "1,8", "--device", "cuda", "--repeats", "1"]
    assert generate.main([*arguments, "--quiet", "--out", str(out)]) == 0
    with out.open() as file:
        rows = list(csv.DictReader(file))
    variants_of = ["bfloat16", "bfloat16_graphs", "bfloat16_compiled", "W8A8"]
    assert [(row["images"], row["variant"]) for row in rows] == [
        (images, name) for images in ("1", "8") for name in variants_of
    ]
    for row in rows[3::4]:
        assert float(row["x_bfloat16"]) == 2 and not row["x_float32"]
        assert float(row["x_bfloat16_graphs"]) == float(row["x_bfloat16_compiled"]) == 0.5
        assert float(row["memory_bfloat16_graphs"]) == 1 and row["device_peak_mib"] == "10"
        assert float(row["seconds_first_call"]) == 1
    printed = capsys.readouterr().out
    assert "1 images" in printed and "8 images" in printed and "mem/f32" not in printed


@pytest.mark.slow
def test_compiled_blocks_draw_the_same(monkeypatch):
    """With a compiler that only traces; what is compiled runs in captured steps, too."""
    model = build_model("var-test", TINY["var"], seed=0)
    model.graphs = StepGraphs(TapeBackend())
    wanted = model.generate([1, 3], seed=2, graphs=False)
    plain = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, **options: plain(self, backend="eager", **options)
    )
    torch._dynamo.utils.counters.clear()
    with torch._dynamo.config.patch(recompile_limit=64):  # puts back what _compile sets
        variants._compile(model)
        assert torch.equal(model.generate([1, 3], seed=2), wanted)
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] > 0 and not counters["graph_break"]


def test_a_variant_that_ends_before_its_time_costs_no_other(monkeypatch, tmp_path, capsys):
    class Dying(Fake):
        def run(self):
            if self.scale == 1.0:  # W8A8
                raise variants.VariantError("W8A8: its process ended")
            return super().run()

    monkeypatch.setattr(Fake, "calls", 0)
    monkeypatch.setattr(Fake, "limit", 99)
    monkeypatch.setattr(generate, "Variant", Dying)
    monkeypatch.setattr(generate, "prepare", lambda *_: {})
    out = tmp_path / "g.csv"
    assert generate.main(["--model", "var-tiny", "--schemes", "W8A8", "--images", "1,2",
                          "--repeats", "2", "--quiet", "--out", str(out)]) == 1  # fmt: skip
    with out.open() as file:
        rows = list(csv.DictReader(file))
    notes = [(row["images"], row["variant"]) for row in rows if row["note"]]
    assert notes == [("1", "W8A8"), ("2", "W8A8")]
    timed = [(row["images"], row["variant"]) for row in rows if row["seconds_image"]]
    assert timed == [(n, name) for n in "12" for name in ("float32", "bfloat16")]
    assert "bfloat16" in capsys.readouterr().out
