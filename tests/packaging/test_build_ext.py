"""What the setuptools command builds: names, flags that decide bits, errors without traceback."""

import sysconfig
from pathlib import Path

import pytest
from ptq4arvg_build import build_ext, torch_location
from ptq4arvg_build.settings import Settings
from setuptools import Distribution
from setuptools.errors import SetupError

CPU = Settings("cpu", ("80",), 1)


@pytest.fixture
def command(monkeypatch):
    torch = torch_location.Torch(Path("somewhere/torch"), "2.13.0+cpu")
    monkeypatch.setattr(torch_location, "find_torch", lambda: torch)
    for variable in ("CXX", "CXXFLAGS", "LDFLAGS"):
        monkeypatch.delenv(variable, raising=False)
    return build_ext.BuildExt(Distribution({"name": "ptq4arvg", "version": "1.2.3"}))


def test_the_op_library_has_no_python_tag(command):
    assert command.get_ext_filename("ptq4arvg._C") == "ptq4arvg/_C.so"
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    assert command.get_ext_filename("ptq4arvg._info") == "ptq4arvg/_info" + suffix


def test_both_binaries_have_sources():
    names = {extension.name: extension.sources for extension in build_ext.extensions()}
    assert set(names) == {"ptq4arvg._C", "ptq4arvg._info"}
    assert all(names.values())


def test_flags_that_decide_bits_come_after_the_users_own(command, monkeypatch, capsys):
    monkeypatch.setenv("CXXFLAGS", "-O1 -ffp-contract=fast -march=native '-DA=b c'")
    binary = command._ops(Path("_C.so"), CPU)
    flags = binary.cxx_flags
    assert flags[:4] == ["-O1", "-ffp-contract=fast", "-march=native", "-DA=b c"]
    assert flags.index("-ffp-contract=off") > 3
    # Per-file flags come last of all, so -march=native cannot reach a baseline file.
    assert all(isa == () or isa[0] == "-march=x86-64" for _, isa in binary.objects)
    assert '-DPTQ4ARVG_VERSION="1.2.3"' in flags
    said = capsys.readouterr().out
    assert said.count("building the CPU part only") == 1


def test_links_torch_cpu_and_nothing_of_cuda(command):
    binary = command._ops(Path("_C.so"), CPU)
    libraries = [flag for flag in binary.link_flags if flag.startswith("-l")]
    assert libraries == ["-lstdc++", "-ltorch_cpu"]
    assert not binary.cuda_objects


def test_the_introspection_module_knows_no_torch(command):
    binary = command._info(Path("_info.so"), CPU)
    assert binary.link_flags == ["-ldl"]
    assert not [flag for flag in binary.cxx_flags if "somewhere/torch" in flag]


def test_the_compiler_can_be_chosen(command, monkeypatch):
    monkeypatch.setenv("CXX", "ccache g++-12")
    assert command._ops(Path("_C.so"), CPU).cxx == "ccache g++-12"


def test_a_bad_setting_is_an_error_without_a_traceback(command, monkeypatch):
    monkeypatch.setenv("PTQ4ARVG_BUILD", "gpu")
    command.extensions = build_ext.extensions()
    with pytest.raises(SetupError, match=r"PTQ4ARVG_BUILD='gpu': expected one of"):
        command.build_extensions()


def test_another_system_is_refused(command, monkeypatch):
    monkeypatch.setattr(build_ext.sys, "platform", "win32")
    with pytest.raises(SetupError, match=r"Linux only, this is win32"):
        command.build_extensions()
