"""The model card of a checkpoint."""

from __future__ import annotations

from typing import Any

__all__ = ["model_card"]

_CARD = """---
library_name: ptq4arvg
tags: [quantization, image-generation, autoregressive]
---

# {name}, quantized to {scheme}

{linears} linear layers in integers{kept}, by the method `{method}` of ptq4arvg {version}.
Their weights take {after:.2f} MB ({before:.2f} MB in half precision); all tensors together take
{size:.2f} MB. {attention}{decoder}{sampling}

| | |
|---|---|
| mean SQNR of the layers' outputs | {sqnr:.1f} dB |
| worst layer | {worst:.1f} dB, `{worst_name}` |
| calibration | {rows} of the model's own samples, seed {seed} |
| hash | `{hash}` |

```python
import ptq4arvg

model = ptq4arvg.load_quantized("path/to/this/folder")
images = model.generate([3, 7], seed=0)  # [n, 3, H, W] in [0, 1]
```

`config.json` describes the layout, `recipe.yaml` how to make this checkpoint again, `report.json`
every layer. The licence of the weights is that of the model they were made from.
"""


def _attention(settings: dict[str, dict[str, Any]]) -> str:
    """What the ``attention`` of a quantization config says, as a sentence."""
    kinds = list(settings.values())
    if not kinds:
        return "Attention products are in floating point."
    bits = kinds[0]["num_bits"]
    if kinds[0].get("type") == "int":
        return f"Attention products are in integers of {bits} bits, a KV cache holds int8 codes."
    return f"Attention products are a simulation of {bits} bits in floating point."


def _decoder(record: dict[str, Any] | None) -> str:
    """What a report says of the decoder, as a sentence."""
    if not record:
        return ""
    return (
        f" {record['convolutions']} convolutions of the tokenizer's decoder are in integers "
        f"({record['scheme']}); images differ from the float decoder's by "
        f"{record['psnr_db']:.1f} dB PSNR."
    )


def model_card(config: dict[str, Any], report: Any, size: int, note: str = "") -> str:
    """Markdown for the README.md of a checkpoint; size: bytes of all tensors; note: on sampling."""
    recipe = config["recipe"]
    stress = f", stressed {report.stress:g}" if report.stress else ""
    kept = f" and {len(report.kept)} in floating point" if report.kept else ""
    mean = ""
    if report.allocation:
        mean = f", {report.allocation['mean_bits']:.3g} bits a weight"
    return _CARD.format(
        name=config["name"] + stress,
        scheme=report.scheme + mean,
        linears=len(report.layers),
        kept=kept,
        method=report.method,
        version=recipe["version"],
        before=sum(layer.bytes_before for layer in report.layers) / 1e6,
        after=sum(layer.bytes_before * layer.w_bits / 16 for layer in report.layers) / 1e6,
        size=size / 1e6,
        attention=_attention(config["quantization_config"]["attention"]),
        decoder=_decoder(report.decoder),
        sampling=f" {note}" if note else "",
        sqnr=report.sqnr_db,
        worst=report.worst.sqnr_db,
        worst_name=report.worst.name,
        rows=recipe["calibration"]["rows"],
        seed=recipe["calibration"]["seed"],
        hash=config["hash"],
    )
