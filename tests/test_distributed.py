"""Several processes find what one finds, to the last bit, whoever of them dies on the way."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from ptq4arvg.cli import main
from ptq4arvg.distributed import ALONE, Group, RankError, current, joined, local_device, spread
from tests import distributed_cases as cases


@pytest.fixture(scope="module", params=["var", "mar"])
def alone(request, tmp_path_factory):
    """(family, folder that one process wrote)."""
    out = tmp_path_factory.mktemp("alone")
    assert cases.launch(1, cases.quantize_and_evaluate, out, request.param) == [0]
    return request.param, out


@pytest.mark.parametrize("world", [2, 4])
def test_any_number_of_processes_finds_the_same(alone, world, tmp_path):
    family, one = alone
    assert cases.launch(world, cases.quantize_and_evaluate, tmp_path, family) == [0] * world
    wanted = (one / "found0.json").read_text()
    for rank in range(world):
        assert (tmp_path / f"found{rank}.json").read_text() == wanted
    for name in ("figures.json", "s.npz"):
        assert (tmp_path / name).read_bytes() == (one / name).read_bytes(), name
    assert json.loads((one / "figures.json").read_text())["bundled_frechet"]["value"] > 0


@pytest.fixture(scope="module")
def float_alone(tmp_path_factory):
    out = tmp_path_factory.mktemp("float")
    assert cases.launch(1, cases.evaluate_float, out) == [0]
    return out


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_rank_is_named_and_what_is_on_disk_is_not_drawn_again(
    float_alone, killed, tmp_path
):
    assert cases.launch(2, cases.evaluate_float, tmp_path, killed)[killed] == -9
    other = 1 - killed
    told = (tmp_path / f"told{other}.txt").read_text()
    assert f"rank {other} of 2: rank {killed} " in told
    assert "Start the same command again" in told
    there = len(list((tmp_path / "parts" / "model").glob("*.safetensors")))
    assert there == 3  # of 4: two of the survivor, one of the killed
    assert cases.launch(2, cases.evaluate_float, tmp_path) == [0, 0]
    drawn = [row for rank in range(2)
             for row in json.loads((tmp_path / f"drawn{rank}.json").read_text())]  # fmt: skip
    assert [row for row in drawn if row[0] == 3] == [[3, 2 + killed, *[6][killed:]]]
    for name in ("figures.json", "s.npz"):
        assert (tmp_path / name).read_bytes() == (float_alone / name).read_bytes(), name


def test_torchrun_starts_a_killed_run_again(float_alone, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts", "1",
         "--nproc-per-node", "2", "-m", "tests.distributed_cases", str(tmp_path)],
        capture_output=True, text=True, timeout=cases.LIMIT, env=os.environ | {
            "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, sys.path))},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "exitcode: -9" in done.stderr
    for name in ("figures.json", "s.npz"):
        assert (tmp_path / name).read_bytes() == (float_alone / name).read_bytes(), name


def test_one_process_goes_on_from_what_four_left(float_alone, tmp_path):
    assert cases.launch(4, cases.evaluate_float, tmp_path) == [0] * 4
    lost = tmp_path / "parts" / "model" / "images-000001-000005-2.safetensors"
    before = load_file(lost)
    lost.unlink()
    assert cases.launch(1, cases.evaluate_float, tmp_path) == [0]
    assert json.loads((tmp_path / "drawn0.json").read_text()) == [[3, 1, 5]]
    again = load_file(lost)
    assert set(before) == {"images", "pool", "probabilities"} == set(again)
    assert all(torch.equal(again[name], before[name]) for name in before)
    assert (tmp_path / "figures.json").read_bytes() == (float_alone / "figures.json").read_bytes()


def test_a_rank_that_fails_tells_the_others_why(tmp_path):
    assert cases.launch(2, cases.fail_or_gather, tmp_path) == [0, 0]
    told = (tmp_path / "told0.txt").read_text()
    assert "rank 0 of 2: rank 1 stopped: ValueError: no such thing. Start the same" in told


class Store:
    """Says that every key of ``there`` was set; None: it is gone."""

    def __init__(self, there):
        self.there = there

    def set(self, key, value):
        pass

    def check(self, keys):
        if self.there is None:
            raise RuntimeError("no connection")
        return all(key in self.there for key in keys)


class Broken:
    def allreduce(self, tensors):
        raise RuntimeError("connection closed by peer")


@pytest.mark.parametrize(
    ("there", "message"),
    [
        ({"meeting 0 1", "meeting 0 2"}, "rank 0 of 3: the connection to the other ranks broke"),
        ({"meeting 0 2"}, "rank 1 did not come: it was killed, or its machine is gone"),
        (set(), "rank 1, 2 did not come"),
        (None, "rank 0 is gone, at which the others meet"),
    ],
)
def test_who_is_missing_is_said(there, message, monkeypatch):
    monkeypatch.setattr("ptq4arvg.distributed.GRACE", 0.0)
    with pytest.raises(RankError, match=message):
        Group(0, 3, Store(there), Broken()).barrier()


def test_collectives():
    assert cases.launch(4, cases.use_collectives) == [0] * 4


def test_processes_join_again_and_within_one_another():
    assert cases.launch(2, cases.join_again) == [0, 0]


def test_alone_everything_is_at_once():
    x = torch.ones(2)
    assert ALONE.sum_(x) is x and ALONE.gather({"x": x})[0]["x"] is x
    assert ALONE.gather_batches({1: x + 1, 0: x})[1].tolist() == [2, 2]
    ALONE.barrier()
    with joined() as group:
        assert group is ALONE is current()
    assert all(group.owns(n) for n in range(3))


@pytest.mark.parametrize(("count", "size"), [(1, 16), (7, 2), (64, 16), (80, 16), (50_000, 16)])
def test_batches_are_even_and_of_every_image(count, size):
    batches = spread(count, size)
    assert torch.equal(torch.cat(batches).sort().values, torch.arange(count))
    assert max(map(len, batches)) <= size
    assert max(map(len, batches)) - min(map(len, batches)) <= 1
    for world in (2, 4, 8):
        if len(batches) % world == 0:
            for number, batch in enumerate(batches):
                assert (batch % world == number % world).all()
    assert len(spread(64, 16)) == 4 and len(spread(80, 16)) == 8
    assert len(spread(50_000, 16)) % 64 == 0
    assert len(spread(130 * 16, 16)) == 192 and len(spread(5, 1)) == 5
    with pytest.raises(ValueError, match="batch size is 0; wanted 1 or more"):
        spread(count, 0)


@pytest.mark.parametrize(("rank", "world"), [(None, "2"), ("2", "2"), ("0", "x"), ("-1", "2")])
def test_an_environment_that_makes_no_sense(rank, world, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", world)
    if rank is None:
        monkeypatch.delenv("RANK", raising=False)
    else:
        monkeypatch.setenv("RANK", rank)
    message = rf"RANK is {rank!r} and WORLD_SIZE {world!r}; wanted what torchrun sets"
    with pytest.raises(ValueError, match=message), joined():
        pass
    assert main(["models"]) == 2
    assert "Type: torchrun --nproc-per-node" in capsys.readouterr().err


def test_one_process_of_torchrun_is_alone(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    with joined() as group:
        assert group is ALONE


def test_a_process_has_the_device_of_its_place(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert str(local_device("cuda")) == "cuda"
    monkeypatch.setattr("ptq4arvg.distributed._current", Group(7, 8))
    assert str(local_device("cuda")) == "cuda:3"
    assert str(local_device("cpu")) == "cpu" and str(local_device("cuda:1")) == "cuda:1"
    monkeypatch.setenv("LOCAL_RANK", "4")
    with pytest.raises(ValueError, match=r"device is .cuda:4., and torch .* sees 4 CUDA devices"):
        local_device("cuda")


def test_generate_shares_its_images(tmp_path):
    """Both processes draw, rank 0 alone prints, and what is there stays."""
    arguments = ["generate", "var-tiny", "--classes", "0-3", "--batch-size", "2", "--out"]
    for folder, world in (("one", 1), ("two", 2)):
        there = tmp_path / folder
        there.mkdir()
        assert cases.launch(world, cases.command, [*arguments, str(there)], there) == [0] * world
    names = [path.name for path in sorted((tmp_path / "one").glob("*.png"))]
    assert len(names) == 4
    for name in names:
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    assert "wrote  4 images" in (tmp_path / "two" / "printed0.txt").read_text()
    assert (tmp_path / "two" / "printed1.txt").read_text() == ""


def test_a_command_that_shares_nothing_says_so(tmp_path):
    assert cases.launch(2, cases.command, ["verify", "x"], tmp_path) == [2, 2]
    printed = (tmp_path / "printed1.txt").read_text()
    assert printed == (
        "ptq4arvg: rank 1: verify does not share its work among processes; type the same without "
        "torchrun, which is for calibrate, evaluate, generate, quantize\n"
    )
