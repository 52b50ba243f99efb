"""Drawing the images of a protocol: each rank its share, every finished batch into a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.hashing import content_hash, model_hash
from ..distributed import current, spread
from ..models import ARVGModel
from .bootstrap import Progress
from .figures import Features
from .parts import ImageParts
from .protocol import Protocol
from .samples import SampleWriter, resize_bicubic, to_bytes
from .spaces import FeatureSpace

__all__ = ["Drawing", "remove_parts"]

MODEL, FLOAT = "model", "float"  # folders of the batches of the model and of its float model
FEATURES = ("pool", "probabilities", "spatial")  # fields of ``Features``, and of files of batches


def _sampling(model: ARVGModel, protocol: Protocol) -> dict[str, float]:
    """The sampling options that the protocol fixes. ValueError if the model is none for it."""
    if protocol.families and model.family not in protocol.families:
        raise ValueError(
            f"{protocol.name} is for {', '.join(protocol.families)} models; {model.name} is of the "
            f"family {model.family}. Type --protocol {model.family}-paper, or smoke"
        )
    options = protocol.sampling()
    for name in options:
        if name != "cfg" and name not in model.sampling_options:
            raise ValueError(
                f"{protocol.name} sets {name}, which {model.name} does not have; it has cfg, "
                f"{', '.join(model.sampling_options)}"
            )
    side = model.tokenizer.config.image_size
    if protocol.size and side != protocol.size and protocol.resize != "bicubic":
        raise ValueError(
            f"{protocol.name} measures images of {protocol.size} pixels and does not resize; "
            f"{model.name} makes {side}"
        )
    return options


class Drawing:
    """The images of one seed and what the network of ``space`` sees in them, in files in
    ``folder``.

    labels int64 [n]: of the images. keep: the images, too, not only their features. ValueError if
    the protocol is not for this model, or if the folder holds batches of other settings.
    """

    def __init__(
        self, model: ARVGModel, protocol: Protocol, labels: Tensor, seed: int, space: FeatureSpace,
        batch_size: int, keep: bool = False,
    ) -> None:  # fmt: skip
        self.model, self.labels, self.seed, self.space = model, labels, seed, space
        self.keep, self.options = keep, _sampling(model, protocol)
        self.size = protocol.size or model.tokenizer.config.image_size
        self.batches = spread(len(labels), batch_size)
        self.protocol, self.batch_size = protocol, batch_size

    def settings(self) -> dict[str, Any]:
        """All that the files depend on."""
        from .. import __version__

        return {
            "model": self.model.name, "weights": model_hash(self.model), "seed": self.seed,
            "labels": content_hash({}, {"labels": self.labels}), "protocol": self.protocol.hash,
            "network": self.space.hash, "batch_size": self.batch_size, "images kept": self.keep,
            "device": self.model.cursor.position.device.type, "version": __version__,
            "torch": torch.__version__,
        }  # fmt: skip

    @torch.inference_mode()
    def images(self, batch: Tensor) -> Tensor:
        """Images uint8 [n, H, W, 3] of the indices ``batch`` [n]."""
        labels = self.labels[batch]
        options = self.options | self.model.captures()
        ids = self.model.sample_ids(labels, seed=self.seed, index=batch, **options)
        return to_bytes(resize_bicubic(self.model.decode_ids(ids).float(), self.size))

    def draw(self, folder: Path, progress: Progress | None, phase: str) -> ImageParts:
        """Draw this rank's batches that ``folder`` does not hold; it then holds all ranks'.

        RuntimeError if it does not, because other machines write to another disk.
        """
        parts, group = ImageParts(folder, self.settings()), current()
        mine = [batch for number, batch in enumerate(self.batches) if group.owns(number)]
        left, total = parts.missing(mine), sum(map(len, mine))
        done = total - sum(map(len, left))
        if progress and done:
            progress(phase, done, total)
        for batch in left:
            images, seen = self.images(batch), Features()
            self.space.look(images, seen)
            found = {name: getattr(seen, name)[0] for name in FEATURES if getattr(seen, name)}
            parts.write(batch, found | ({"images": images} if self.keep else {}))
            done += len(batch)
            if progress:
                progress(phase, done, total)
        group.barrier()
        lost = parts.missing(self.batches)
        if lost:
            raise RuntimeError(
                f"{group}: {folder} lacks {len(lost)} of {len(self.batches)} batches that other "
                "ranks have drawn; wanted a folder that all machines share. Type --parts FOLDER"
            )
        return parts

    def features(self, parts: ImageParts) -> Features:
        """What was seen in all images, in their order."""
        there = parts.names(self.batches[0])
        return Features(
            **{name: [parts.read(self.batches, name)] for name in FEATURES if name in there}
        )

    def write(self, parts: ImageParts, path: Path) -> None:
        """Write the images, in their order, as ADM reads them."""
        with SampleWriter(path, len(self.labels), self.size, self.size) as writer:
            for image in parts.each(self.batches, "images"):
                writer.write(image)


def remove_parts(folder: Path) -> None:
    """Delete the batches that ``evaluate`` left in ``folder``, and the folder if it is then
    empty."""
    for name in (MODEL, FLOAT):
        ImageParts.remove(folder / name)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
