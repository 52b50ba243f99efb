"""The Inception-v3 of FID: the TensorFlow graph of 2015-12-05, weight for weight, in torch.

It differs from later Inception networks in its padding of average pools, one max pool in its last
block, 1008 outputs, and in how images are enlarged. Its weights are not part of this package.
Names of modules are those of the usual port to PyTorch; ``graph_names`` has the graph's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["InceptionFeatures", "InceptionNetwork", "graph_names", "resize_bilinear"]

SIDE = 299  # pixels that the network reads
SPATIAL_CHANNELS = 7  # of mixed_6/conv that make the features of sFID
SPATIAL_WIDTH = 17 * 17 * SPATIAL_CHANNELS
EPSILON = 1e-3  # of the batch norms


class Conv(NamedTuple):
    """A convolution without bias, its batch norm and ReLU; it keeps the size at stride 1."""

    name: str
    width: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1


# A step of a branch: a convolution, or two side by side whose outputs are joined.
Step = Conv | tuple[Conv, Conv]
Branch = tuple[Step, ...]


class Block(NamedTuple):
    """Branches side by side, the last of which begins with a pool ("avg", "max" or "halve")."""

    name: str
    branches: tuple[Branch, ...]
    pool: str


def _a(name: str, pooled: int) -> Block:
    three, five = (3, 3), (5, 5)
    return Block(name, (
        (Conv("branch1x1", 64),),
        (Conv("branch5x5_1", 48), Conv("branch5x5_2", 64, five)),
        (Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, three),
         Conv("branch3x3dbl_3", 96, three)),
        (Conv("branch_pool", pooled),),
    ), "avg")  # fmt: skip


def _c(name: str, width: int) -> Block:
    row, column = (1, 7), (7, 1)
    return Block(name, (
        (Conv("branch1x1", 192),),
        (Conv("branch7x7_1", width), Conv("branch7x7_2", width, row),
         Conv("branch7x7_3", 192, column)),
        (Conv("branch7x7dbl_1", width), Conv("branch7x7dbl_2", width, column),
         Conv("branch7x7dbl_3", width, row), Conv("branch7x7dbl_4", width, column),
         Conv("branch7x7dbl_5", 192, row)),
        (Conv("branch_pool", 192),),
    ), "avg")  # fmt: skip


def _e(name: str, pool: str) -> Block:
    row, column = (1, 3), (3, 1)
    return Block(name, (
        (Conv("branch1x1", 320),),
        (Conv("branch3x3_1", 384),
         (Conv("branch3x3_2a", 384, row), Conv("branch3x3_2b", 384, column))),
        (Conv("branch3x3dbl_1", 448), Conv("branch3x3dbl_2", 384, (3, 3)),
         (Conv("branch3x3dbl_3a", 384, row), Conv("branch3x3dbl_3b", 384, column))),
        (Conv("branch_pool", 192),),
    ), pool)  # fmt: skip


# The stem's convolutions; those that are not padded lose a border.
STEM = (Conv("Conv2d_1a_3x3", 32, (3, 3), 2), Conv("Conv2d_2a_3x3", 32, (3, 3)),
        Conv("Conv2d_2b_3x3", 64, (3, 3)), Conv("Conv2d_3b_1x1", 80),
        Conv("Conv2d_4a_3x3", 192, (3, 3)))  # fmt: skip
UNPADDED = ("Conv2d_2a_3x3", "Conv2d_4a_3x3")
POOLED_AFTER = ("Conv2d_2b_3x3", "Conv2d_4a_3x3")
BLOCKS = (
    _a("Mixed_5b", 32), _a("Mixed_5c", 64), _a("Mixed_5d", 64),
    Block("Mixed_6a", (
        (Conv("branch3x3", 384, (3, 3), 2),),
        (Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, (3, 3)),
         Conv("branch3x3dbl_3", 96, (3, 3), 2)),
        (),
    ), "halve"),
    _c("Mixed_6b", 128), _c("Mixed_6c", 160), _c("Mixed_6d", 160), _c("Mixed_6e", 192),
    Block("Mixed_7a", (
        (Conv("branch3x3_1", 192), Conv("branch3x3_2", 320, (3, 3), 2)),
        (Conv("branch7x7x3_1", 192), Conv("branch7x7x3_2", 192, (1, 7)),
         Conv("branch7x7x3_3", 192, (7, 1)), Conv("branch7x7x3_4", 192, (3, 3), 2)),
        (),
    ), "halve"),
    _e("Mixed_7b", "avg"), _e("Mixed_7c", "max"),
)  # fmt: skip
SPATIAL_BLOCK = "Mixed_6d"  # mixed_6 of the graph; its first branch is mixed_6/conv


def resize_bilinear(pixels: Tensor, side: int) -> Tensor:
    """Pixels [n, C, H, W] resized to ``side`` squared as TensorFlow 1 does, in float32.

    Output pixel i reads at ``i * H / side``: the first corners coincide, the last ones do not, and
    nothing is smoothed when an image is made smaller.
    """
    x = pixels.float()
    for axis in (3, 2):  # along the rows first, as the graph rounds
        size = x.shape[axis]
        at = torch.arange(side, dtype=torch.float32) * (torch.tensor(float(size)) / side)
        lower = at.floor().long().clamp_max(size - 1)
        upper = (lower + 1).clamp_max(size - 1)
        shape = (-1, 1) if axis == 2 else (-1,)
        weight = (at - at.floor()).view(shape).to(x.device)
        low = x.index_select(axis, lower.to(x.device))
        x = low + (x.index_select(axis, upper.to(x.device)) - low) * weight
    return x


class _Norm(nn.Module):
    """Batch norm with the statistics of training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """x [n, C, h, w]."""
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias,
                            eps=EPSILON)  # fmt: skip


class _ConvNorm(nn.Module):
    def __init__(self, channels: int, spec: Conv, padded: bool = True) -> None:
        super().__init__()
        keep = padded and spec.stride == 1
        padding = tuple(k // 2 for k in spec.kernel) if keep else 0
        self.conv = nn.Conv2d(channels, spec.width, spec.kernel, spec.stride, padding, bias=False)
        self.bn = _Norm(spec.width)

    def forward(self, x: Tensor) -> Tensor:
        """[n, C, h, w] -> [n, width, h', w']."""
        return F.relu(self.bn(self.conv(x)))


def _pool(x: Tensor, kind: str) -> Tensor:
    if kind == "avg":  # the padding does not count
        return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    return F.max_pool2d(x, 3, 2) if kind == "halve" else F.max_pool2d(x, 3, 1, 1)


class _Mixed(nn.Module):
    """One block of branches."""

    def __init__(self, channels: int, block: Block) -> None:
        super().__init__()
        self.block, self.width = block, 0
        for branch in block.branches:
            width = channels
            for step in branch:
                convs = (step,) if isinstance(step, Conv) else step
                for conv in convs:
                    self.add_module(conv.name, _ConvNorm(width, conv))
                width = sum(conv.width for conv in convs)
            self.width += width

    def _branch(self, x: Tensor, branch: Branch) -> Tensor:
        for step in branch:
            convs = (step,) if isinstance(step, Conv) else step
            x = torch.cat([getattr(self, conv.name)(x) for conv in convs], 1)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """[n, C, h, w] -> [n, width, h', w']."""
        *plain, pooled = self.block.branches
        outputs = [self._branch(x, branch) for branch in plain]
        return torch.cat([*outputs, self._branch(_pool(x, self.block.pool), pooled)], 1)


class InceptionFeatures(NamedTuple):
    """pool float32 [n, 2048] (pool_3 of the graph), spatial float32 [n, 2023] (mixed_6/conv)."""

    pool: Tensor
    spatial: Tensor


class InceptionNetwork(nn.Module):
    """Features of images as the evaluator of guided diffusion (ADM) takes them."""

    recomputed = r"num_batches_tracked$"  # of files; see ``load_strict_``

    def __init__(self) -> None:
        super().__init__()
        channels = 3
        for conv in STEM:
            self.add_module(conv.name, _ConvNorm(channels, conv, conv.name not in UNPADDED))
            channels = conv.width
        for block in BLOCKS:
            self.add_module(block.name, _Mixed(channels, block))
            channels = getattr(self, block.name).width
        self.fc = nn.Linear(channels, 1008)

    def forward(self, images: Tensor) -> InceptionFeatures:
        """Features of images uint8 [n, H, W, 3]. ValueError for anything else."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise ValueError(
                f"InceptionNetwork: images are {images.dtype} {list(images.shape)}; wanted "
                "torch.uint8 [n, H, W, 3], as in a file of samples"
            )
        pixels = images.to(self.fc.weight.device).permute(0, 3, 1, 2)  # [n, 3, H, W]
        x = ((resize_bilinear(pixels, SIDE) - 128) / 128).to(self.fc.weight.dtype)
        for conv in STEM:
            x = getattr(self, conv.name)(x)
            if conv.name in POOLED_AFTER:
                x = F.max_pool2d(x, 3, 2)
        for block in BLOCKS:
            if block.name == SPATIAL_BLOCK:
                first = getattr(self, block.name).branch1x1(x)[:, :SPATIAL_CHANNELS]
                # [n, 7, 17, 17] -> [n, 17, 17, 7] -> [n, 2023], the order of stored statistics
                spatial = first.permute(0, 2, 3, 1).flatten(1)
            x = getattr(self, block.name)(x)
        return InceptionFeatures(x.mean((2, 3)).float(), spatial.float())

    def probabilities(self, pool: Tensor) -> Tensor:
        """Class probabilities [n, 1008] of pool features [n, 2048].

        Without the classifier's bias, which the Inception Score has always left out.
        """
        return (pool.to(self.fc.weight) @ self.fc.weight.T).softmax(1)


def _graph_convs() -> Iterator[tuple[str, str]]:
    """(module, name in the graph) of every convolution."""
    for number, conv in enumerate(STEM):
        yield conv.name, f"conv_{number}" if number else "conv"
    for index, block in enumerate(BLOCKS):
        place, tower = f"mixed_{index}" if index else "mixed", 0
        for branch in block.branches:
            if len(branch) == 1 and branch is block.branches[0]:
                yield f"{block.name}.{branch[0].name}", f"{place}/conv"
                continue
            prefix = f"{place}/tower_{tower}" if tower else f"{place}/tower"
            tower += 1
            for number, step in enumerate(branch):
                if isinstance(step, Conv):
                    name = f"conv_{number}" if number else "conv"
                    yield f"{block.name}.{step.name}", f"{prefix}/{name}"
                else:
                    yield f"{block.name}.{step[0].name}", f"{prefix}/mixed/conv"
                    yield f"{block.name}.{step[1].name}", f"{prefix}/mixed/conv_1"


def graph_names() -> dict[str, str]:
    """Name in the state dict -> name of the constant in the TensorFlow graph."""
    norm = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean",
            "running_var": "moving_variance"}  # fmt: skip
    names = {"fc.weight": "softmax/weights", "fc.bias": "softmax/biases"}
    for module, place in _graph_convs():
        names[f"{module}.conv.weight"] = f"{place}/conv2d_params"
        for ours, theirs in norm.items():
            names[f"{module}.bn.{ours}"] = f"{place}/batchnorm/{theirs}"
    return names
