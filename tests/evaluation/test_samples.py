"""Files of samples, both ways: what NumPy reads is what was written, in batches of any size."""

import zipfile

import numpy as np
import pytest
import torch

from ptq4arvg.evaluation.samples import SampleFile, SampleWriter, resize_bicubic, to_bytes


def pixels(count, side=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, side, side, 3), generator=generator, dtype=torch.uint8)


def write(path, images, *sizes, count=None):
    with SampleWriter(path, count or len(images), *images.shape[1:3]) as writer:
        for part in images.split(sizes or len(images)):
            writer.write(part)
    return path


def test_numpy_reads_what_was_written_and_the_other_way_round(tmp_path):
    images = pixels(7)
    path = write(tmp_path / "new" / "a.npz", images, 3, 3, 1)
    with np.load(path) as file:
        assert file.files == ["arr_0"]
        assert file["arr_0"].dtype == np.uint8
        assert np.array_equal(file["arr_0"], images.numpy())
    np.savez(tmp_path / "b.npz", images.numpy())
    np.savez_compressed(tmp_path / "c.npz", arr_0=images.numpy(), arr_1=np.arange(7))
    for name in ("new/a.npz", "b.npz", "c.npz"):
        file = SampleFile(tmp_path / name)
        assert (len(file), file.shape) == (7, (7, 6, 6, 3))
        for size in (1, 3, 64):
            assert torch.equal(torch.cat(list(file.batches(size))), images)


def test_equal_images_make_equal_files(tmp_path):
    first = write(tmp_path / "a.npz", pixels(4), 4).read_bytes()
    assert first == write(tmp_path / "b.npz", pixels(4), 1, 3).read_bytes()
    assert first != write(tmp_path / "c.npz", pixels(4, seed=1)).read_bytes()


def test_a_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / "a.npz"

    def write_into(count, images):
        with SampleWriter(path, count, 6, 6) as writer:
            writer.write(images)
            raise KeyboardInterrupt

    with pytest.raises(ValueError, match="3 images were written; wanted 4"):
        write(path, pixels(3), count=4)
    with pytest.raises(ValueError, match="more than the 2 images"):
        write_into(2, pixels(3))
    with pytest.raises(ValueError, match=r"torch.uint8 \[1, 5, 5, 3\]; wanted"):
        write_into(1, pixels(1, 5))
    with pytest.raises(ValueError, match=r"images are torch.int16 \[1, 6, 6, 3\]; wanted torch.u"):
        write_into(1, pixels(1).short())
    with pytest.raises(KeyboardInterrupt):
        write_into(1, pixels(1))
    assert list(tmp_path.iterdir()) == []


def test_files_without_images_are_an_error(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, mu=np.zeros(3))
    with pytest.raises(ValueError, match=r"is no file of samples.*wanted an .npz"):
        SampleFile(path)
    np.savez(path, np.zeros((2, 6, 6, 3)))
    with pytest.raises(ValueError, match=r"arr_0 is float64 \[2, 6, 6, 3\]; wanted uint8"):
        SampleFile(path)
    with zipfile.ZipFile(path, "w") as archive, archive.open("arr_0.npy", "w") as member:
        header = {"descr": "|u1", "fortran_order": False, "shape": (3, 6, 6, 3)}
        np.lib.format.write_array_header_1_0(member, header)
        member.write(bytes(2 * 6 * 6 * 3))
    with pytest.raises(ValueError, match="arr_0 ends after 2 of 3 images"):
        list(SampleFile(path).batches(1))
    np.savez(path, np.zeros((2, 6, 6, 4), np.uint8))
    with pytest.raises(ValueError, match=r"arr_0 is uint8 \[2, 6, 6, 4\]; wanted uint8"):
        SampleFile(path)
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match="is no file of samples"):
        SampleFile(path)
    with pytest.raises(FileNotFoundError, match=r"wanted samples as \.npz"):
        SampleFile(tmp_path / "none.npz")


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_versions_of_the_format(tmp_path, version):
    path, images = tmp_path / "v.npz", pixels(3)
    with zipfile.ZipFile(path, "w") as archive, archive.open("arr_0.npy", "w") as member:
        np.lib.format.write_array(member, images.numpy(), version)
    if version < (3, 0):
        assert torch.equal(next(SampleFile(path).batches()), images)
        return
    with pytest.raises(ValueError, match=r"format version \(3, 0\); wanted 1\.0 or 2\.0"):
        SampleFile(path)


def test_a_file_in_fortran_order_says_so(tmp_path):
    path = tmp_path / "f.npz"
    np.savez(path, np.asfortranarray(pixels(2).numpy()))
    with pytest.raises(ValueError, match=r"f\.npz: arr_0 is in Fortran order; .*ascontiguousarray"):
        SampleFile(path)


@pytest.mark.parametrize(
    "data", [b"rubbish rubbish", b"\x93NUMPY\x01\x00\x04\x00abcd", b"\x93NUMPY\x01\x00\x10\x00x"]
)
def test_a_broken_member_is_named_with_its_file(tmp_path, data):
    path = tmp_path / "b.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", data)
    with pytest.raises(
        ValueError, match=r"b\.npz: arr_0 is broken \(.*; wanted images as np.savez"
    ):
        SampleFile(path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_images_are_named_with_their_file(tmp_path, save):
    path = tmp_path / "d.npz"
    save(path, pixels(40).numpy())
    data = bytearray(path.read_bytes())
    data[2000] ^= 255
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"d\.npz' is no file of samples: .*wanted an .npz"):
        list(SampleFile(path).batches())


def test_images_become_bytes_by_rounding():
    images = torch.tensor([-1, 0, 0.4 / 255, 0.6 / 255, 254.6 / 255, 2]).view(1, 1, 2, 3)
    got = to_bytes(images.expand(1, 3, 2, 3))
    assert got.shape == (1, 2, 3, 3)
    assert got[0, :, :, 1].flatten().tolist() == [0, 0, 0, 1, 255, 255]
    with pytest.raises(ValueError, match=r"wanted \[n, 3, H, W\]"):
        to_bytes(torch.rand(3, 2, 3))


def test_resizing_equals_the_cubic_kernel():
    """Three pixels make two: each output reads four inputs, the border repeated."""
    a = -0.75

    def kernel(x):
        x = abs(x)
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0

    line = torch.tensor([0.2, 0.8, 0.5], dtype=torch.float64)
    expected = []
    for i in range(2):
        at = (i + 0.5) * 1.5 - 0.5
        first = int(np.floor(at)) - 1
        expected.append(
            sum(line[min(max(j, 0), 2)].item() * kernel(at - j) for j in range(first, first + 4))
        )
    images = line.float().expand(1, 3, 3, 3)
    got = resize_bicubic(images, 2)
    np.testing.assert_allclose(got[0, 0, 0].numpy(), expected, atol=1e-6)
    assert resize_bicubic(images, 3) is images
    assert resize_bicubic(images[..., :2], 3).shape == (1, 3, 3, 3)
    edge = torch.tensor([0.0, 1.0, 0.0, 1.0]).expand(1, 3, 4, 4)
    larger = resize_bicubic(edge, 9)  # the kernel goes beyond what it reads
    assert larger.min() == 0 and larger.max() == 1
