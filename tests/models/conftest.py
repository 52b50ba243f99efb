"""Fixtures of the model tests: each golden case with its model, built once."""

import functools

import pytest

from tests.golden_cases import GoldenCase, RARCase, find_cases


@functools.cache
def _built(case: GoldenCase):
    return case.build()


@pytest.fixture(params=find_cases(), ids=lambda case: case.name)
def golden(request):
    """(VAR case, its float32 model). Tests must leave the model as it is."""
    return request.param, _built(request.param)


@pytest.fixture(params=find_cases(RARCase), ids=lambda case: case.name)
def golden_rar(request):
    """(RAR case, its float32 model). Tests must leave the model as it is."""
    return request.param, _built(request.param)
