"""The report on 8-bit layers, on a tiny world."""

from __future__ import annotations

import pytest
from benchmarks.quantised_world import FORMS, measure
from rich.console import Console
from tests.tiny_world import write_tiny_world


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    world = write_tiny_world(tmp_path_factory.mktemp("tiny"))
    return measure(world, 12, 2, [], 0, Console(quiet=True))


def test_a_form_is_as_far_from_fp32_as_its_numbers_are_coarse(found):
    assert tuple(found) == FORMS
    errors = [found[form]["forced_error"] for form in FORMS]
    assert errors[0] == 0.0
    assert errors == sorted(errors)
    assert 1e-3 < errors[1] < errors[-1] < 0.3
    assert found["float32"]["free_psnr_1s"] == 60.0 > found["fp8"]["free_psnr_1s"]


def test_weights_are_counted_in_their_forms(found):
    size = {form: found[form]["weights_bytes"] for form in FORMS}
    assert size["float32"] == 2 * size["bfloat16"]
    assert size["int8"] == size["fp8"] < size["bfloat16"]


def test_every_form_has_the_same_figures(found):
    assert len({frozenset(row) for row in found.values()}) == 1
    assert {"yaw_corr", "yaw_gain_last_quarter", "forced_error_last_tenth", "contrast_last_10s"} <= set(found["int8"])
