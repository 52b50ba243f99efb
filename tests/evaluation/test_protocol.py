"""Protocols are told apart by their settings, and results of different ones share no table."""

import json
from dataclasses import FrozenInstanceError, fields, replace

import pytest

from ptq4arvg.evaluation.figures import Figure
from ptq4arvg.evaluation.protocol import (
    METRICS,
    PROTOCOLS,
    Protocol,
    Result,
    find_protocol,
    markdown,
    read_result,
    table,
    write_result,
)
from ptq4arvg.models.registry import FAMILIES, PUBLISHED, model_config


def result(protocol="smoke", **more):
    protocol = find_protocol(protocol) if isinstance(protocol, str) else protocol
    figures = {"fid": Figure(3.25, (3.0, 3.5)), "kl": Figure(None, note="no logits")}
    given = {"model": "m", "scheme": "W6A6", "method": "rtn", "stress": 0.0, "seed": 1,
             "protocol": protocol, "protocol_hash": protocol.hash, "reference": "r.npz",
             "reference_hash": "a" * 64, "network_hash": "b" * 64, "figures": figures}  # fmt: skip
    return Result(**given | more)


def test_protocols_of_the_paper():
    assert list(PROTOCOLS) == ["smoke", "var-paper", "rar-paper", "par-paper", "mar-paper"]
    for name in list(PROTOCOLS)[1:]:
        protocol = PROTOCOLS[name]
        assert (protocol.images, protocol.per_class, protocol.size) == (50_000, 50, 256)
        assert protocol.families[0] in FAMILIES
        assert protocol.name == name
    assert PROTOCOLS["var-paper"].sampling() == {"cfg": 1.5, "top_k": 900, "top_p": 0.96}
    assert PROTOCOLS["rar-paper"].sampling() == {"top_k": 0, "top_p": 0.0}
    assert PROTOCOLS["par-paper"].resize == "bicubic"
    assert PROTOCOLS["mar-paper"].num_iter == 64
    assert PROTOCOLS["smoke"].images == 64


@pytest.mark.parametrize(
    "name", sorted(n for n, family in PUBLISHED.items() if f"{family.name}-paper" in PROTOCOLS)
)
def test_a_protocol_fixes_what_published_models_have_by_default(name):
    """What a protocol says is what the published sizes of its family have, and no more."""
    family = PUBLISHED[name]
    settings, _ = family.settings(model_config(name))
    for key, value in PROTOCOLS[f"{family.name}-paper"].sampling().items():
        own = settings.sampling if hasattr(settings.sampling, key) else settings
        assert getattr(own, key) == value, key


def test_every_setting_is_in_the_hash():
    protocol = find_protocol("smoke")
    changed = {str: "other", int: 5, float: 0.5, tuple: ("kl",)}
    hashes = {protocol.hash}
    for f in fields(Protocol):
        value = getattr(protocol, f.name)
        hashes.add(replace(protocol, **{f.name: changed.get(type(value), 7)}).hash)
    assert len(hashes) == 1 + len(fields(Protocol))
    with pytest.raises(FrozenInstanceError):
        protocol.images = 5


def test_changes_make_another_protocol():
    protocol = find_protocol("var-paper")
    assert protocol.with_(images=None) == protocol
    assert protocol.with_(images=50_000) == protocol
    fewer = protocol.with_(images=100)
    assert (fewer.images, fewer.per_class, fewer.name) == (100, 0, "var-paper")
    assert fewer.hash != protocol.hash
    assert protocol.with_(top_k=0).top_k == 0


def test_metrics_are_known_names():
    protocol = find_protocol("smoke")
    with pytest.raises(ValueError, match=r"no metric 'fid2'; wanted some of fid, .*Closest: 'fid'"):
        protocol.with_(metrics=("kl", "fid2"))
    with pytest.raises(ValueError, match=r"metrics is 'kl'; .*Type metrics=\(\"kl\",\)"):
        protocol.with_(metrics="kl")
    assert protocol.with_(metrics=["kl"]) == protocol.with_(metrics=("kl",))
    assert all(set(each.metrics) <= set(METRICS) for each in PROTOCOLS.values())


def test_an_unknown_protocol_offers_the_nearest():
    with pytest.raises(ValueError, match=r"'var-papr'.*Closest: 'var-paper'"):
        find_protocol("var-papr")


def test_comparable_results_make_a_table():
    rows = table([result(), result(scheme="W8A8", seed=2, model="n")])
    assert rows[1] == {"model": "n", "scheme": "W8A8", "method": "rtn", "stress": 0.0, "seed": 2,
                       "fid": 3.25, "kl": None}  # fmt: skip
    text = markdown([result(), result(scheme="W8A8")])
    assert "| m | W8A8 | rtn | 0 | 1 | 3.25 | - |" in text
    assert (
        f"Protocol smoke ({find_protocol('smoke').hash[:12]}), 64 images, reference r.npz" in text
    )
    assert table([]) == []


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (result("var-paper"), "protocols 'smoke' and 'var-paper'"),
        (result(find_protocol("smoke").with_(images=65)), "settings of 'smoke': images 64 and 65"),
        (result(reference="s.npz", reference_hash="c" * 64),
         r"references 'r.npz' \(aaaaaaaaaaaa\) and 's.npz' \(cccccccccccc\)"),
        (result(network_hash="c" * 64), "weights of the feature network"),
    ],
)  # fmt: skip
def test_results_that_cannot_be_compared_share_no_table(other, message):
    with pytest.raises(ValueError, match=f"cannot be compared: they have different {message}"):
        table([result(), other])
    with pytest.raises(ValueError, match="Evaluate both under one protocol"):
        markdown([result(), result(), other])


def test_a_result_survives_its_file(tmp_path):
    written = result(sampling={"cfg": 1.5}, checkpoint="d" * 64, environment={"torch": "2"})
    path = write_result(tmp_path / "r.json", written)
    assert read_result(path) == written
    assert json.loads(path.read_text())["figures"]["kl"]["note"] == "no logits"


def test_other_files_are_no_results(tmp_path):
    path = write_result(tmp_path / "r.json", result())
    path.write_text(path.read_text().replace('"images": 64', '"images": 640'))
    with pytest.raises(ValueError, match="protocol was changed after it was written"):
        read_result(path)
    for text in ("{}", "[]", "no JSON"):
        path.write_text(text)
        with pytest.raises(ValueError, match="is no result; wanted what `ptq4arvg evaluate"):
            read_result(path)
