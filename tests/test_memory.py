"""Pages of mapped files are given back; nothing else is."""

import mmap
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from ptq4arvg import memory
from ptq4arvg.memory import release_mapped, return_freed_memory

linux = pytest.mark.skipif(
    not os.access("/proc/self/pagemap", os.R_OK), reason="the system does not tell which pages are"
)


@pytest.fixture
def mapped(tmp_path):
    save_file({"x": torch.arange(1 << 22, dtype=torch.float32)}, tmp_path / "x.safetensors")
    return load_file(tmp_path / "x.safetensors")["x"]


def resident_file_bytes():
    with open("/proc/self/status") as file:
        return 1024 * int(next(line for line in file if line.startswith("RssFile")).split()[1])


@linux
def test_pages_that_were_read_are_given_back(mapped):
    mapped.sum()
    before = resident_file_bytes()  # the system counts in batches
    assert mapped.nbytes <= release_mapped([mapped]) <= mapped.nbytes + 8192
    assert before - resident_file_bytes() > mapped.nbytes / 2
    assert release_mapped([mapped]) == 0
    assert torch.equal(mapped, torch.arange(1 << 22, dtype=torch.float32))


@linux
def test_written_pages_stay_wherever_they_are(mapped):
    expected = mapped.clone()
    for index in (0, 5000, 5001, 300000, (1 << 22) - 1):
        mapped[index] = expected[index] = -1.0
    release_mapped([mapped])
    assert torch.equal(mapped, expected)
    mapped.fill_(2.0)
    assert release_mapped([mapped]) == 0
    assert (mapped == 2).all()


@linux
def test_a_page_is_given_back_for_less_than_a_page(mapped):
    one = mapped[:1]
    one.sum()
    assert release_mapped([one]) == mmap.PAGESIZE
    assert release_mapped([one]) == 0


@linux
def test_only_what_was_resident_counts(mapped):
    release_mapped([mapped])
    mapped[0].item()  # and what the system reads ahead
    assert 0 < release_mapped([mapped]) < mapped.nbytes / 2


def test_memory_of_no_file_and_other_devices_stay():
    x = torch.ones(1 << 16)
    assert release_mapped([x, torch.empty(0), torch.empty(4, device="meta")]) == 0
    assert (x == 1).all()


def test_systems_that_cannot_tell(mapped, monkeypatch):
    mapped.sum()
    monkeypatch.setattr(memory, "_libc", lambda name: None)
    assert release_mapped([mapped]) == 0
    return_freed_memory()


def test_a_system_that_does_not_let_us_ask(mapped, monkeypatch):
    def refused(*_, **__):
        raise PermissionError("/proc/self/pagemap")

    monkeypatch.setattr("builtins.open", refused)
    mapped.sum()
    assert release_mapped([mapped]) == 0
