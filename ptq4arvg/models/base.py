"""What every family offers to the rest of the package: sampling, replay, and its linears."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..distributed import check_batch_size
from ..errors import closest
from ..graphs import StepGraphs
from ..nn import Cursor
from ..sampling import Sampler, number, whole_index

__all__ = ["ARVGModel", "LinearSpec", "SamplingDefaults"]

# What a tokenizer decodes at a time: its activations would outgrow a KV cache; on a CPU they should
# not outgrow its caches by more than they have to.
DECODED, DECODED_PIXELS_CPU = 16, 256**2


@dataclass(frozen=True)
class LinearSpec:
    """One linear that can be quantized, and what the family knows about its input.

    name: module path inside ``model.transformer``; role: "qkv", "proj", "fc1", "fc2", "ada_lin",
    "head" or "head_ada_lin", in a diffusion head "diff_fc1", "diff_fc2", "diff_ada" or "diff_cond";
    block: its block, or the number of blocks for what follows the last.
    groups: the paper's group of each position (``positions`` of them; one without a token axis);
    scale_groups: the decoding step of each position, alike steps joined; sink: positions that the
    paper calls sinks; finest: positions that no table tells apart, as groups within the steps
    (None: there are none). fold: what ``fold_`` absorbs a transform of the input into, or None with
    a reason in ``no_fold``; shift: whether it absorbs a shift, too, or only a scale. norm: the
    ModulatedNorm that feeds only this linear; gated: the GatedFeedForward whose product it reads;
    core: the attention core that feeds it; act: the Activation between this linear and the linear
    ``consumer``; "" where there is none.
    """

    name: str
    role: str
    block: int
    groups: tuple[int, ...]
    scale_groups: tuple[int, ...]
    sink: tuple[int, ...] = ()
    fold: str | None = None
    no_fold: str = ""
    shift: bool = True
    norm: str = ""
    gated: str = ""
    act: str = ""
    consumer: str = ""
    core: str = ""
    finest: tuple[int, ...] | None = None


@dataclass(frozen=True)
class SamplingDefaults:
    """Guidance strength, top-k (0 = off) and top-p (0 = off) of a model."""

    cfg: float
    top_k: int
    top_p: float


class ARVGModel(nn.Module):
    """A transformer, its tokenizer, and the loop between them. Base class of the families.

    tokens: ids T of one image; cursor: where in it the transformer is; stress: severity of
    the function-preserving stress applied to the weights (0: none). own_weights: whether a bundled
    model has other weights than the bundled ones. sampling_options: what
    ``sample_ids`` takes apart from labels, seed, cfg and index. graphs: the captured steps.
    """

    family = ""
    # Linears that are never quantized: expression for their names in ``transformer`` -> why.
    kept_in_float: ClassVar[Mapping[str, str]] = {}
    # Whether compat="research" reproduces what the authors' code does with this family.
    compat_research: ClassVar[bool] = False
    # Why its attention cannot be in integers, which lets a query attend to the first so many
    # positions; "" if it can.
    no_integer_attention: ClassVar[str] = ""
    # Whether tokens are vectors: ``replay`` then predicts their noise, and nothing has logits.
    continuous: ClassVar[bool] = False
    sampling_options: tuple[str, ...] = ("top_k", "top_p")

    def __init__(
        self, name: str, config: Any, transformer: nn.Module, tokenizer: nn.Module
    ) -> None:
        super().__init__()
        self.name, self.config = name, config
        self.transformer, self.tokenizer = transformer, tokenizer
        self.cursor: Cursor = transformer.cursor
        self.stress = 0.0
        self.own_weights = False
        self.recipe: dict[str, Any] | None = None
        self.report: Any = None
        self.graphs = StepGraphs()

    @property
    def tokens(self) -> int:
        """Token ids of one image."""
        return self.config.tokens

    @property
    def positions(self) -> int:
        """Positions of the sequence that makes one image."""
        return self.tokens

    @property
    def cursors(self) -> tuple[Cursor, ...]:
        """All cursors: the transformer's, and those of parts with positions of their own."""
        return (self.cursor,)

    def visits(self, name: str) -> int:
        """How many times one ``replay`` runs linear ``name``."""
        return 1

    @property
    def sampling_note(self) -> str:
        """A sentence on what ``sample_ids`` does otherwise than the float model's, or ""."""
        return ""

    @property
    def num_classes(self) -> int:
        """Number of classes; the label ``null_label`` stands for none."""
        return self.config.num_classes

    @property
    def null_label(self) -> int:
        """The label of unconditional rows."""
        return self.config.num_classes

    def linears(self) -> list[LinearSpec]:
        """Every linear that can be quantized, in the order of computation."""
        raise NotImplementedError

    def cursor_of(self, name: str) -> Cursor:
        """Where the rows that linear ``name`` reads are: what its static tables are read by."""
        return self.cursor

    def replace_(self, name: str, module: nn.Module) -> None:
        """Put ``module`` in the place of the linear or attention core ``name``."""
        parent, _, leaf = name.rpartition(".")
        setattr(self.transformer.get_submodule(parent), leaf, module)
        self.graphs.drop()

    def attention_cores(self) -> list[str]:
        """Module paths of the attention products inside ``transformer``."""
        raise NotImplementedError

    def integer_cores(self) -> list[str]:
        """Those that can be computed in integers, if any can: every query attends to the first so
        many positions, the same for all images."""
        return self.attention_cores()

    def block_names(self) -> list[str]:
        """Module paths of the blocks inside ``transformer``, in order."""
        raise NotImplementedError

    def _foldable(self, name: str, shift: Tensor | None = None) -> LinearSpec:
        """The spec of a linear whose input can be folded. ValueError says why another's cannot, or
        that ``shift`` is one that only takes a scale."""
        spec = {spec.name: spec for spec in self.linears()}.get(name)
        if spec is None or spec.fold is None:
            raise ValueError(
                f"{self.name}: the input of {name!r} cannot be folded"
                + (f": {spec.no_fold}" if spec else "; it is not a linear of this model")
            )
        if not spec.shift and shift is not None and shift.any():
            raise ValueError(f"{self.name}: the input of {name!r} takes a scale, but no shift")
        return spec

    def fold_(self, name: str, scale: Tensor, shift: Tensor) -> None:
        """Make the input of linear ``name`` ``u / scale - shift``; scale, shift float64 [K].

        The linear itself is left alone. Can be repeated, for any linear in any order. New tensors
        are assigned and none is written to, so that keeping the old ones undoes it. ValueError for
        an input that cannot be folded, or for a shift of one that only takes a scale.
        """
        raise NotImplementedError

    def absorb_constant_(self, name: str) -> None:
        """Move the constant that ``fold_`` left in front of linear ``name`` into a bias, if it can.

        Afterwards the weights are those of an ordinary model of the published architecture. Here it
        stays, which is all there is to do where ``fold_`` leaves none.
        """

    def replay(self, ids: Tensor, labels: Tensor) -> Tensor:
        """Logits [B, T, V] under teacher forcing of ids [B, T] with labels [B]."""
        raise NotImplementedError

    def sample_ids(self, labels: Tensor, seed: int = 0, **options: Any) -> Tensor:
        """Token ids [n, T] of one image per label, each of which depends on ``seed`` and its index.

        index: of the first image, or int64 [n], of each.
        """
        raise NotImplementedError

    def sample_rows(self, labels: Tensor, seed: int = 0, index: int | Tensor = 0) -> Tensor:
        """Samples with all that ``replay`` reads of them; by default they are the token ids."""
        return self.sample_ids(labels, seed=seed, index=index)

    def decode_ids(self, ids: Tensor) -> Tensor:
        """Images [n, 3, H, W] in [0, 1] of token ids [n, T]."""
        raise NotImplementedError

    def decode_rows(self, rows: Tensor) -> Tensor:
        """Images as ``decode_ids`` makes them, of what ``sample_rows`` gives."""
        return self.decode_ids(rows)

    def decode_in_parts(self, ids: Tensor) -> Tensor:
        """Images float32, of any number of token ids, some at a time."""
        count = DECODED
        if self.cursor.position.device.type == "cpu":
            count = min(count, max(1, DECODED_PIXELS_CPU // self.tokenizer.config.image_size**2))
        return torch.cat([self.decode_ids(part).float() for part in ids.split(count)])

    def check_labels(self, labels: int | Sequence[int] | Tensor) -> Tensor:
        """Labels as an int64 tensor [n]. ValueError if one is not a class."""
        wanted = f"wanted one or more whole numbers from 0 to {self.num_classes - 1}"
        try:
            labels = torch.as_tensor(labels).reshape(-1)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"{self.name}: labels {labels!r:.80}; {wanted}") from None
        if not len(labels) or labels.is_floating_point():
            raise ValueError(f"{self.name}: labels {labels.tolist()}; {wanted}")
        labels = labels.to(torch.int64)
        bad = [label for label in labels.tolist() if not 0 <= label < self.num_classes]
        if bad:
            raise ValueError(
                f"{self.name}: label {bad[0]}; wanted 0 to {self.num_classes - 1} "
                f"(the model has {self.num_classes} classes)"
            )
        return labels

    def _sampler(
        self, images: int, seed: int, top_k: int | None, top_p: float | None, index: int | Tensor
    ) -> Sampler:
        """What draws the tokens of ``images`` images; None takes the model's default."""
        defaults = self.config.sampling
        top_k = defaults.top_k if top_k is None else top_k
        return Sampler(images, seed, top_k, defaults.top_p if top_p is None else top_p, index)

    def _label_rows(self, labels: Tensor, guided: bool) -> Tensor:
        """Labels [n] or, guided, [2 n] of the rows that are computed, on the model's device: the
        conditional ones first, then as many unconditional ones."""
        rows = self.check_labels(labels).to(self.cursor.position.device)
        return torch.cat([rows, torch.full_like(rows, self.null_label)]) if guided else rows

    def captures(self, graphs: bool | None = None) -> dict[str, bool]:
        """What ``sample_ids`` takes to capture its steps, if ``generate`` does with ``graphs``."""
        why = self.graphs.refusal(self.cursor.position.device)
        if graphs and why:
            raise ValueError(f"{self.name}: graphs=True, but {why}; wanted graphs=None or False")
        self.graphs.eager = "graphs=False" if graphs is False else why
        return {} if self.graphs.eager else {"graphs": True}

    @torch.inference_mode()
    def generate(
        self,
        labels: int | Sequence[int] | Tensor,
        seed: int = 0,
        cfg: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        index: int | Tensor = 0,
        batch_size: int = 16,
        progress: Callable[[str, int, int], None] | None = None,
        graphs: bool | None = None,
        **options: Any,
    ) -> Tensor:
        """Images float32 [n, 3, H, W] in [0, 1], one per label.

        Image i depends on ``seed`` and i, not on the other images. Nor on the batch size, in
        integers; but on some processors float linears round by it, and a token can flip. index:
        the i of the first image, or int64 [n], of each. cfg, top_k, top_p: None takes the model's
        defaults (``config.sampling``); 0 switches one off.
        options: others that the family has. ValueError for one that it does not.

        graphs: whether decoding steps are captured as CUDA graphs, for each batch size anew, and
        replayed; None: on a CUDA device; True: ValueError on another. ``model.graphs`` says what
        was captured. Forward hooks do not run in a replay.
        """
        labels, index = self.check_labels(labels), whole_index(index)
        check_batch_size(batch_size)
        if cfg is not None and not math.isfinite(number(cfg)):
            raise ValueError(
                f"{self.name}: cfg is {cfg!r}; wanted a finite number, 1 for no guidance"
            )
        options |= {"top_k": top_k, "top_p": top_p}
        options = {name: value for name, value in options.items() if value is not None}
        for name in options:
            if name not in self.sampling_options:
                raise ValueError(
                    f"{self.name}: no sampling option {name!r}; wanted cfg or one of "
                    f"{', '.join(self.sampling_options)}. {closest(name, self.sampling_options)}"
                )
        options |= self.captures(graphs)
        images = []
        for start in range(0, len(labels), batch_size):
            part = labels[start : start + batch_size]
            at = index[start : start + batch_size] if isinstance(index, Tensor) else index + start
            ids = self.sample_ids(part, seed=seed, cfg=cfg, index=at, **options)
            images.append(self.decode_in_parts(ids))
            if progress:
                progress("generate", start + len(part), len(labels))
        return torch.cat(images)

    def save_pretrained(self, folder: str | Path, overwrite: bool = False) -> None:
        """Write the quantized model as a checkpoint folder."""
        from ..checkpoint.save import save_quantized

        save_quantized(self, folder, overwrite=overwrite)

    def _apply(self, fn, recurse: bool = True):
        self.graphs.drop()
        super()._apply(fn, recurse)
        # A cursor is no module, but its tensor has to follow the weights to their device.
        for cursor in self.cursors:
            cursor.follow(fn)
        return self
