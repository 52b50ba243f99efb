"""What doctor finds, prints, and says about what is missing."""

import json

from ptq4arvg import ops
from ptq4arvg.cli import doctor, main


def test_json_tells_what_the_operators_tell(capsys):
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["operators"]["isa"] == ops.isa()
    assert found["operators"]["kernels"]
    assert all(name.endswith(ops.isa()) for name in found["operators"]["kernels"])
    assert found["bundled_models"]["var-tiny"] and all(found["bundled_models"].values())


def test_text_names_the_instruction_set_and_the_reasons(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert f"{ops.isa()} in use" in out
    assert "note" in out


def found(**operators):
    base = {"loaded": True, "isa": "avx2", "isa_forced": None, "isas_available": ["avx2", "scalar"],
            "isas_compiled": ["avx512_vnni", "avx2", "scalar"]}  # fmt: skip
    cuda = {"device": None, "kernels_built": False}
    return {"operators": base | operators, "cuda": cuda, "bundled_models": {"var-tiny": True}}


def notes(state):
    return " | ".join(doctor._notes(state))


def test_notes_say_what_falls_back_and_why():
    assert "no avx512_vnni; the avx2 kernels run" in notes(found())
    assert "forces the instruction set" in notes(found(isa="scalar", isa_forced="scalar"))
    assert "attention products where a model was not quantized with attention=int8" in notes(
        found()
    )
    assert "many times slower" in notes(found(isa="scalar"))
    assert "never on an Arm processor" in notes(found(isa="neon_dotprod"))
    state = found()
    assert "no CUDA device" in notes(state)
    state["cuda"]["device"] = "Some GPU"
    assert "Some GPU), but this build has no CUDA kernels" in notes(state)
    assert "missing" not in notes(state)
    state["bundled_models"] = {"rar-tiny": False, "var-tiny": True}
    assert "are missing (rar-tiny): install the package again" in notes(state)
    state["bundled_models"] = {}
    assert "are missing (all of them): install the package again" in notes(state)


def test_operators_that_do_not_load_are_reported_and_an_error(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "_operators", lambda: {"loaded": False, "error": "no _C.so: build"})
    assert main(["doctor"]) == 2
    captured = capsys.readouterr()
    assert "cannot be used: no _C.so" in captured.out
    assert "no _C.so" in captured.err


def test_operators_that_do_not_load_are_told_of(tmp_path):
    import os
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-m", "ptq4arvg", "doctor"], capture_output=True, text=True, check=False,
        env=os.environ | {"PTQ4ARVG_CPU_ISA": "foo", "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert "PTQ4ARVG_CPU_ISA" in done.stdout and "torch" in done.stdout
