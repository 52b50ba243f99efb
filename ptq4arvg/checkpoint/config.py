"""The ``quantization_config`` of a checkpoint, with compressed-tensors' field names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..nn import (
    SOFTMAX_KINDS,
    IntAttention,
    PackedConv2d,
    PackedLinear,
    PackedWeight,
    QuantAttention,
)

__all__ = [
    "FORMAT_VERSION",
    "QUANT_METHOD",
    "attention_settings",
    "layer_settings",
    "quantization_config",
]

QUANT_METHOD = "ptq4arvg"
# 2: inputs may be rotated; 3: attention may be in integers; 4: the tokenizer's decoder may be. What
# has none of these is written as 1.
FORMAT_VERSION = 4


def _group(module: PackedWeight) -> dict[str, Any]:
    """What a config group says of a layer, without its targets."""
    return {
        # At 4 bits the words are compressed-tensors' own; at 6 they are denser than its.
        "format": {8: "int-quantized", 6: "dense-pack-quantized", 4: "pack-quantized"}[
            module.w_bits
        ],
        "weights": {
            "num_bits": module.w_bits, "type": "int", "symmetric": module.w_zero is None,
            "strategy": "channel", "dynamic": False,
        },
        "input_activations": {
            "num_bits": module.a_bits, "type": "int", "symmetric": False,
            "strategy": "tensor" if isinstance(module, PackedConv2d) else "token",
            "dynamic": False, "num_positions": len(module.position_group),
            "float_positions": list(module.sink),
        } | ({"rotation": module.rotation} if module.rotation else {}),
    }  # fmt: skip


def _version(
    linears: Mapping[str, PackedLinear], attention: Mapping[str, Any], decoder: Mapping[str, Any]
) -> int:
    """The oldest version of the format that says all of it."""
    if decoder:
        return 4
    if any(isinstance(module, IntAttention) for module in attention.values()):
        return 3
    return 2 if any(module.rotation for module in linears.values()) else 1


def quantization_config(
    linears: Mapping[str, PackedLinear],
    attention: Mapping[str, QuantAttention | IntAttention],
    decoder: Mapping[str, PackedConv2d],
    recipe: Mapping[str, Any],
    ignore: list[str],
) -> dict[str, Any]:
    """The config of these integer layers (name -> module), those of ``decoder`` by their paths
    inside the tokenizer; alike ones share a group."""
    groups = _groups(linears)
    formats = {group["format"] for group in groups.values()}
    config = {
        "quant_method": QUANT_METHOD,
        "version": _version(linears, attention, decoder),
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "scheme": recipe["scheme"],
        "method": recipe["method"],
        "calibration_hash": recipe["calibration"]["hash"],
        "config_groups": groups,
        "attention": {
            name: {"num_bits": 8, "type": "int"}
            if isinstance(module, IntAttention)
            else {"num_bits": module.bits, "softmax": module.softmax}
            for name, module in attention.items()
        },
        "ignore": ignore,
    }
    return config | ({"decoder_groups": _groups(decoder)} if decoder else {})


def _groups(layers: Mapping[str, PackedWeight]) -> dict[str, dict[str, Any]]:
    groups: list[dict[str, Any]] = []
    for name, module in layers.items():
        settings = _group(module)
        for group in groups:
            if {k: v for k, v in group.items() if k != "targets"} == settings:
                group["targets"].append(name)
                break
        else:
            groups.append({"targets": [name], **settings})
    return {f"group_{i}": group for i, group in enumerate(groups)}


def layer_settings(
    config: Mapping[str, Any], groups: str = "config_groups"
) -> dict[str, dict[str, Any]]:
    """Layer -> {w_bits, a_bits, positions, sink, rotation} of a quantization config's ``groups``.

    ValueError if a field is absent or has a value that this version does not know.
    """
    layers: dict[str, dict[str, Any]] = {}
    try:
        for group in config[groups].values():
            weights, inputs = group["weights"], group["input_activations"]
            settings = {
                "w_bits": weights["num_bits"],
                "a_bits": inputs["num_bits"],
                "positions": inputs["num_positions"],
                "sink": tuple(inputs["float_positions"]),
                "rotation": inputs.get("rotation", 0),
            }
            if weights["num_bits"] not in (4, 6, 8) or inputs["num_bits"] not in (4, 6, 8):
                raise ValueError(
                    f"quantization_config asks for {weights['num_bits']} weight and "
                    f"{inputs['num_bits']} activation bits; wanted 4, 6 or 8"
                )
            _check_positions(**inputs)
            layers |= dict.fromkeys(group["targets"], settings)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"quantization_config is incomplete: no {error}") from None
    return layers


def _check_positions(
    num_positions: Any, float_positions: Any, rotation: Any = 0, **_others: Any
) -> None:
    numbers = [num_positions, rotation, *float_positions]
    if any(type(number) is not int for number in numbers) or not (
        num_positions > 0 and all(0 <= position < num_positions for position in float_positions)
    ):
        raise ValueError(
            f"quantization_config has num_positions {num_positions!r}, float_positions "
            f"{float_positions!r} and rotation {rotation!r}; wanted whole numbers, one position or "
            "more, and float ones among them"
        )


def attention_settings(config: Mapping[str, Any]) -> tuple[str, dict[str, dict[str, Any]]]:
    """The kind of a quantization config's attention, as of a ``Method``, and core -> its setting.

    ValueError if a setting is none that this version knows, or the kinds are mixed.
    """
    settings = config.get("attention", {})
    if not isinstance(settings, Mapping) or not all(isinstance(s, dict) for s in settings.values()):
        raise ValueError(
            f"quantization_config has attention {settings!r}; wanted a setting for each core"
        )
    if any(setting.get("type") == "int" for setting in settings.values()):
        kind, wanted, known = "int8", "in integers of 8 bits", _is_integer
    else:
        kind, wanted, known = "simulated", "of 4, 6 or 8 bits and a known softmax", _is_simulated
    odd = next((setting for setting in settings.values() if not known(setting)), None)
    if odd is not None:
        raise ValueError(f"quantization_config has attention {odd}; wanted all of it {wanted}")
    return (kind if settings else "float"), dict(settings)


def _is_integer(setting: dict[str, Any]) -> bool:
    return setting == {"num_bits": 8, "type": "int"}


def _is_simulated(setting: dict[str, Any]) -> bool:
    bits, softmax = setting.get("num_bits"), setting.get("softmax")
    return bits in (4, 6, 8) and softmax in SOFTMAX_KINDS
