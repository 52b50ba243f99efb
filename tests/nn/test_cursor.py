"""The cursor says where rows are, to Python and to the device."""

import pytest
import torch

from ptq4arvg.nn import Cursor


def test_rows_pick_the_same_positions_in_both_forms():
    cursor, table = Cursor(), torch.arange(9)
    cursor.set(4, 3)
    assert table[cursor.rows].tolist() == [4, 5, 6] and cursor.mask is None
    with cursor.on_device(9, torch.float32):
        assert table[cursor.rows].tolist() == [4, 5, 6]
        assert cursor.mask.shape == (1, 1, 3, 9) and cursor.mask.dtype == torch.float32
        # What the rows of a step see: all positions up to the last one of the step.
        assert cursor.mask[0, 0].tolist() == 3 * [7 * [0.0] + 2 * [-torch.inf]]
    assert cursor.rows == slice(4, 7) and cursor.mask is None


def test_on_the_device_only_the_tensor_counts():
    cursor = Cursor()
    cursor.set(2, 2)
    cursor.begin = 7
    with cursor.on_device(9, torch.float64):
        assert cursor.rows.tolist() == [2, 3]


def test_moving_writes_to_the_tensor_that_captured_steps_read():
    cursor = Cursor()
    position = cursor.position
    cursor.set(3, 2)
    assert cursor.position is position and position.tolist() == [3]


def test_an_error_within_ends_it():
    cursor = Cursor()
    cursor.set(0, 1)
    with pytest.raises(KeyError), cursor.on_device(3, torch.float32):
        raise KeyError
    assert cursor.rows == slice(0, 1) and cursor.mask is None


def test_made_or_moved_in_inference_mode_it_still_moves_outside():
    with torch.inference_mode():
        cursor = Cursor()
        cursor.follow(lambda x: x.double())
    cursor.set(3, 2)
    assert cursor.position.tolist() == [3] and cursor.position.dtype == torch.int32
