"""The PEP 517 backend: no leftovers in a wheel, and binaries where the source folder needs them."""

import pytest
from ptq4arvg_build import backend


@pytest.fixture
def root(tmp_path, monkeypatch):
    (tmp_path / "ptq4arvg").mkdir()
    monkeypatch.setattr(backend, "ROOT", tmp_path)
    return tmp_path


def test_a_wheel_is_built_from_a_clean_folder(root, monkeypatch):
    built = root / "build" / "lib.linux" / "ptq4arvg"
    built.mkdir(parents=True)
    (built / "deleted_since.py").touch()
    objects = root / "build" / "temp.linux" / "scalar.o"
    objects.parent.mkdir()
    objects.touch()

    def setuptools_builds(*arguments):
        assert not built.exists()
        built.mkdir(parents=True)
        (built / "_C.so").write_bytes(b"library")
        return "ptq4arvg.whl"

    monkeypatch.setattr(backend.build_meta, "build_wheel", setuptools_builds)
    assert backend.build_wheel("wheels") == "ptq4arvg.whl"
    assert objects.exists()
    assert (root / "ptq4arvg" / "_C.so").read_bytes() == b"library"


def test_requirements_are_setuptools_and_ours(monkeypatch):
    monkeypatch.setattr(backend, "extra_requirements", lambda: ["torch>=2.10"])
    for kind in ("wheel", "editable"):
        monkeypatch.setattr(
            backend.build_meta, f"get_requires_for_build_{kind}", lambda settings: ["setuptools"]
        )
        requires = getattr(backend, f"get_requires_for_build_{kind}")
        assert requires() == ["setuptools", "torch>=2.10"]
