"""The model card: every number and sentence of it."""

from types import SimpleNamespace

from ptq4arvg.checkpoint.card import model_card


def card(note="", stress=0, allocation=None, kept=(), decoder=None, attention=None):
    layers = [
        SimpleNamespace(bytes_before=4_000_000, w_bits=4, sqnr_db=31.25, name="a"),
        SimpleNamespace(bytes_before=2_000_000, w_bits=8, sqnr_db=20.04, name="b"),
    ]
    report = SimpleNamespace(
        layers=layers, kept=list(kept), stress=stress, allocation=allocation, decoder=decoder,
        scheme="W4A8", method="rtn", sqnr_db=25.55, worst=layers[1],
    )  # fmt: skip
    recipe = {"version": "9.8", "calibration": {"rows": 128, "seed": 7}}
    config = {"name": "var-x", "recipe": recipe, "hash": "0123",
              "quantization_config": {"attention": attention or {}}}  # fmt: skip
    return model_card(config, report, 3_210_000, note)


def test_numbers():
    lines = card().splitlines()
    assert lines[5] == "# var-x, quantized to W4A8"
    text = " ".join(lines[7:10])
    assert text == (
        "2 linear layers in integers, by the method `rtn` of ptq4arvg 9.8. Their weights take 2.00 "
        "MB (6.00 MB in half precision); all tensors together take 3.21 MB. Attention products are "
        "in floating point."
    )
    assert lines[11:17] == [
        "| | |",
        "|---|---|",
        "| mean SQNR of the layers' outputs | 25.6 dB |",
        "| worst layer | 20.0 dB, `b` |",
        "| calibration | 128 of the model's own samples, seed 7 |",
        "| hash | `0123` |",
    ]


def test_what_only_some_have():
    decoder = {"convolutions": 18, "scheme": "W6A6", "psnr_db": 41.96}
    core = {"num_bits": 6, "softmax": "uniform"}
    text = card("Note.", 30.0, {"mean_bits": 4.567}, ["c", "d", "e"], decoder, {"x": core})
    assert "# var-x, stressed 30, quantized to W4A8, 4.57 bits a weight\n" in text
    assert "2 linear layers in integers and 3 in floating point, by" in text
    assert (
        "MB. Attention products are a simulation of 6 bits in floating point. 18 convolutions of "
        "the tokenizer's decoder are in integers (W6A6); images differ from the float decoder's by "
        "42.0 dB PSNR. Note.\n"
    ) in text
