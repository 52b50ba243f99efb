"""The Inception network: sizes and names of the published one, its own ways, its files."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ptq4arvg.evaluation.inception import (
    BLOCKS,
    _Mixed,
    graph_names,
    resize_bilinear,
)
from ptq4arvg.evaluation.inception_file import inception_state, load_inception
from tests.evaluation import graphs


@pytest.fixture(scope="module")
def state():
    return graphs.inception_state()


@pytest.fixture(scope="module")
def files(state, tmp_path_factory):
    """The same weights in all three forms."""
    folder = tmp_path_factory.mktemp("inception")
    extra = {"Conv2d_1a_3x3.bn.num_batches_tracked": torch.tensor(5)}
    torch.save(state | extra, folder / "port.pth")
    save_file(state, folder / "port.safetensors")
    (folder / "graph.pb").write_bytes(graphs.inception_graph(state))
    return folder


@pytest.fixture(scope="module")
def network(files):
    return load_inception(files / "port.pth")


def images(count, side=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, side, side, 3), generator=generator, dtype=torch.uint8)


def test_sizes_are_the_published_ones(network):
    # torchvision's has 27 161 264: less the auxiliary classifier, and 8 more classes
    published = 27_161_264 - 3_326_696 + 8 * 2049
    assert sum(p.numel() for p in network.parameters()) == published
    assert len(network.state_dict()) == 94 * 5 + 2
    assert [getattr(network, block.name).width for block in BLOCKS] == [
        256, 288, 288, 768, 768, 768, 768, 768, 1280, 2048, 2048,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("Conv2d_1a_3x3.conv.weight", "conv/conv2d_params"),
        ("Conv2d_4a_3x3.bn.running_var", "conv_4/batchnorm/moving_variance"),
        ("Mixed_5b.branch_pool.conv.weight", "mixed/tower_2/conv/conv2d_params"),
        ("Mixed_6a.branch3x3.bn.weight", "mixed_3/conv/batchnorm/gamma"),
        ("Mixed_6d.branch1x1.bn.bias", "mixed_6/conv/batchnorm/beta"),
        ("Mixed_6e.branch7x7dbl_5.conv.weight", "mixed_7/tower_1/conv_4/conv2d_params"),
        ("Mixed_7a.branch3x3_2.conv.weight", "mixed_8/tower/conv_1/conv2d_params"),
        ("Mixed_7a.branch7x7x3_4.conv.weight", "mixed_8/tower_1/conv_3/conv2d_params"),
        ("Mixed_7b.branch3x3_2b.conv.weight", "mixed_9/tower/mixed/conv_1/conv2d_params"),
        ("Mixed_7c.branch3x3dbl_3a.bn.running_mean",
         "mixed_10/tower_1/mixed/conv/batchnorm/moving_mean"),
        ("fc.weight", "softmax/weights"),
    ],
)  # fmt: skip
def test_names_in_the_graph(ours, theirs):
    assert graph_names()[ours] == theirs


def test_every_tensor_has_a_name_of_its_own(state):
    names = graph_names()
    assert set(names) == set(state)
    assert len(set(names.values())) == len(names)


def test_features_have_their_shapes_and_take_images_one_by_one(network):
    batch = images(2, 40)
    both = network(batch)
    assert both.pool.shape == (2, 2048)
    assert both.spatial.shape == (2, 2023)
    one = network(batch[1:])
    torch.testing.assert_close(both.pool[1:], one.pool, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both.spatial[1:], one.spatial, rtol=1e-4, atol=1e-5)
    assert (both.spatial >= 0).all()  # after the ReLU


def test_spatial_features_are_channels_last(network, monkeypatch):
    marked = torch.zeros(1, 192, 17, 17)
    marked[0, 3, 2, 5] = 1
    marked[0, 7] = 9  # beyond the seven
    monkeypatch.setattr(network.Mixed_6d.branch1x1, "forward", lambda x: marked)
    (at,) = network(images(1, 8)).spatial[0].nonzero()
    assert at.item() == (2 * 17 + 5) * 7 + 3


def test_probabilities_leave_out_the_bias(network):
    pool = torch.randn(3, 2048, generator=torch.Generator().manual_seed(1))
    got = network.probabilities(pool)
    logits = pool.double().numpy() @ network.fc.weight.double().numpy().T
    expected = np.exp(logits - logits.max(1, keepdims=True))
    expected /= expected.sum(1, keepdims=True)
    assert got.shape == (3, 1008)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("pool", ["avg", "max"])
def test_pools_at_the_border(pool):
    """Padding counts neither in the average nor in the maximum."""
    block = next(b for b in BLOCKS if b.name == {"avg": "Mixed_7b", "max": "Mixed_7c"}[pool])
    assert block.pool == pool
    mixed = _Mixed(4, block)
    seen = []
    mixed.branch_pool.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x = -torch.ones(1, 4, 8, 8)
    x[0, 0, 4, 4] = 8
    with torch.inference_mode():
        assert mixed(x).shape == (1, 2048, 8, 8)
    assert torch.equal(seen[0][0, 1:], x[0, 1:])
    assert seen[0][0, 0, 3, 3].item() == pytest.approx({"avg": 0, "max": 8}[pool], abs=1e-6)


@pytest.mark.parametrize(("height", "width", "side"), [(5, 7, 13), (32, 32, 299), (20, 9, 6)])
def test_resizing_follows_the_convention_of_tensorflow_1(height, width, side):
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(256, (2, 3, height, width), generator=generator)
    x = pixels.double().numpy()
    expected = np.empty((2, 3, side, side))
    for i in range(side):
        y0, wy = divmod(i * height / side, 1)
        for j in range(side):
            x0, wx = divmod(j * width / side, 1)
            rows = [int(y0), min(int(y0) + 1, height - 1)]
            columns = [int(x0), min(int(x0) + 1, width - 1)]
            corner = x[:, :, rows][:, :, :, columns]
            weights = np.outer([1 - wy, wy], [1 - wx, wx])
            expected[:, :, i, j] = (corner * weights).sum((2, 3))
    got = resize_bilinear(pixels, side)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=0.01)
    assert torch.equal(got[:, :, 0, 0], pixels[:, :, 0, 0].float())


def test_resizing_keeps_the_last_row_beyond_the_last_pixel():
    got = resize_bilinear(torch.tensor([0.0, 1.0]).view(1, 1, 1, 2), 4)
    assert got[0, 0, 0].tolist() == [0, 0.5, 1, 1]


def test_other_images_are_an_error(network):
    with pytest.raises(ValueError, match=r"torch.float32 \[1, 3, 8, 8\]; wanted torch.uint8"):
        network(torch.rand(1, 3, 8, 8))


def test_all_three_files_hold_the_same_weights(files, state):
    for name in ("port.pth", "port.safetensors", "graph.pb"):
        got = load_inception(files / name).state_dict()
        assert all(torch.equal(got[key], value) for key, value in state.items()), name


def test_loading_leaves_the_global_generator_alone(files):
    before = torch.get_rng_state()
    load_inception(files / "port.safetensors")
    assert torch.equal(torch.get_rng_state(), before)


def test_other_weights_are_an_error(state, tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"layer.weight": torch.ones(2)}, path)
    with pytest.raises(ValueError, match=r"do not fit the model: missing 'Conv2d_1a_3x3"):
        load_inception(path)
    cut = dict(state) | {"fc.weight": state["fc.weight"][:1000], "fc.bias": state["fc.bias"][:1000]}
    torch.save(cut, path)
    with pytest.raises(ValueError, match=r"fc.weight is \[1000, 2048\], wanted \[1008, 2048\]"):
        load_inception(path)
    with pytest.raises(FileNotFoundError, match="no weight file"):
        inception_state(tmp_path / "none.pth")


def test_another_graph_is_an_error(tmp_path):
    path = tmp_path / "other.pb"
    path.write_bytes(graphs.graph(graphs.constant("softmax/weight", torch.ones(2, 2))))
    with pytest.raises(ValueError, match=r"lacks 472 constants.*Closest: 'softmax/weight'"):
        inception_state(path)
