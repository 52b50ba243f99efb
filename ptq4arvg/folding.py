"""Transforms: fitted on the float model, which stays as it is, and folded into it part by part.

Folded weights are copies, and only those of one part of the model exist at a time, so that the
weights of a model may stay in a mapped file until they are packed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from .hadamard import turn_input_
from .memory import release_mapped, return_freed_memory
from .methods import LayerView, Method, Transform
from .plan import LayerPlan
from .reference import MAX_EPILOGUE_ROTATION, MAX_ROTATION
from .statistics import SAMPLE, InputStatistics

__all__ = ["apply_transform_", "fit", "fold_stage_", "stages", "undone"]

Progress = Callable[[str, int, int], None]

# Folding proj rescales the v rows of qkv, and folding fc2 (where that can be done) rows of fc1, so
# they are fitted first, and qkv and fc1 see their final rows.
_FIT_ORDER = {"proj": 0, "qkv": 1, "fc2": 2, "fc1": 3}


def stages(plan: Sequence[LayerPlan]) -> list[list[LayerPlan]]:
    """The plan in consecutive parts of whole blocks, as short as folds allow: the linear that
    absorbs a transform is in the part of the one that is transformed."""
    block = {p.name: p.spec.block for p in plan}
    reach = dict.fromkeys(block.values(), -1)
    for p in plan:
        low, high = sorted((p.spec.block, block.get(p.spec.fold, p.spec.block)))
        reach[low] = max(reach[low], high)
    parts: list[list[LayerPlan]] = []
    end = -1
    for p in sorted(plan, key=lambda p: p.spec.block):
        if p.spec.block > end:
            parts.append([])
        end = max(end, reach[p.spec.block])
        parts[-1].append(p)
    return parts


def _in_fit_order(stage: Sequence[LayerPlan]) -> list[LayerPlan]:
    return sorted(stage, key=lambda p: (p.spec.block, _FIT_ORDER.get(p.spec.role, 4)))


@contextmanager
def undone(module: nn.Module) -> Iterator[None]:
    """Put back all parameters, buffers and input hooks of ``module`` at the end, where others were
    assigned."""
    modules = list(module.modules())
    slots = [s for m in modules for s in (m._parameters, m._buffers, m._forward_pre_hooks)]
    before = [dict(s) for s in slots]
    try:
        yield
    finally:
        for slot, old in zip(slots, before, strict=True):
            slot.clear()
            slot.update(old)


def fit(
    model: nn.Module,
    parts: Sequence[Sequence[LayerPlan]],
    stats: dict[str, InputStatistics],
    method: Method,
    progress: Progress | None,
) -> tuple[dict[str, Transform], dict[str, Tensor]]:
    """Fit the method's transforms; the model stays as it is.

    parts: what ``stages`` made; stats: of the inputs as they are. Returns the transforms by name,
    and, for a search of the inputs' ranges, the squared length of every column of each linear's
    transformed weight, float32 [K].
    """
    transforms: dict[str, Transform] = {}
    columns: dict[str, Tensor] = {}
    count, total = 0, sum(map(len, parts))
    # Their codes may come from the epilogue of the GEMM or attention before them (`fuse_`).
    plan = [p for stage in parts for p in stage]
    emitted = {p.spec.consumer for p in plan if p.spec.act}
    if method.attention == "int8":
        c = model.config
        if c.embed_dim // c.num_heads % MAX_EPILOGUE_ROTATION == 0:
            emitted.update(p.name for p in plan if p.spec.core)
    for stage in parts:
        with undone(model.transformer):
            for p in _in_fit_order(stage):
                linear = model.transformer.get_submodule(p.name)
                most = MAX_EPILOGUE_ROTATION if p.name in emitted else MAX_ROTATION
                view = LayerView(p.name, p.spec.role, linear.weight.detach(),
                                 stats[p.name].thinned(SAMPLE).float(), p.spec.fold is not None,
                                 p.spec.shift, most)  # fmt: skip
                transform = method.transform_of(view, p.scheme)
                if transform is not None:
                    apply_transform_(model, p.name, transform)
                    transforms[p.name] = transform
                count += 1
                if progress:
                    progress(f"fit {method.name}", count, total)
            for p in stage if method.activation_range == "mse" else ():
                weight = model.transformer.get_submodule(p.name).weight
                columns[p.name] = weight.float().square().sum(0)
        release_mapped(_read_by_folds(model, stage))
        return_freed_memory()
    return transforms, columns


def fold_stage_(
    model: nn.Module, stage: Sequence[LayerPlan], transforms: dict[str, Transform]
) -> None:
    """Fold the transforms of one part, in the order in which they were fitted."""
    old = _read_by_folds(model, stage)
    for p in _in_fit_order(stage):
        if p.name in transforms:
            apply_transform_(model, p.name, transforms[p.name])
    release_mapped(old)


def _read_by_folds(model: nn.Module, stage: Sequence[LayerPlan]) -> list[Tensor]:
    # A fold may be named that is no module, where it leaves the parameters alone.
    names = {name for p in stage for name in (p.name, p.spec.fold)}
    modules = model.transformer.named_modules()
    return [t for name, module in modules if name in names for t in module.parameters()]


def apply_transform_(model: nn.Module, name: str, transform: Transform) -> None:
    """Fold a transform upstream and into the linear itself; the float function stays the same.

    A rotation is folded into nothing: the linear rotates its input itself, in a hook.
    """
    linear = model.transformer.get_submodule(name)
    if transform.folds:
        _fold_(model, name, transform)
    if transform.rotation:
        turn = Transform.none(linear.in_features, transform.rotation)
        turn_input_(linear, turn.input, turn.weight(linear.weight.detach()))


def _fold_(model: nn.Module, name: str, transform: Transform) -> None:
    linear = model.transformer.get_submodule(name)
    model.fold_(name, transform.scale, transform.shift)
    dtype = linear.weight.dtype
    weight = linear.weight.detach().double() * transform.scale
    bias = weight @ transform.shift
    if linear.bias is not None:
        bias += linear.bias.double()
    linear.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    linear.bias = nn.Parameter(bias.to(dtype), requires_grad=False)
