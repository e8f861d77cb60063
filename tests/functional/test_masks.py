"""Visibility: every rendering says the same, and what the rule says."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from worldline.functional.masks import Visibility
from worldline.schema import WorldlineError

visibilities = st.builds(
    Visibility,
    chunk=st.integers(1, 4),
    window=st.none() | st.integers(1, 9),
    sink=st.integers(0, 3),
    prefix=st.integers(0, 3),
)


def chunk_of(v: Visibility, t: int) -> int:
    """The rule, spelled out."""
    return 0 if t < v.prefix else (1 if v.prefix else 0) + (t - v.prefix) // v.chunk


def sees(v: Visibility, i: int, j: int) -> bool:
    """Whether clean frame i sees clean frame j."""
    if chunk_of(v, i) == chunk_of(v, j):
        return True
    end = max(t for t in range(i + 8) if chunk_of(v, t) == chunk_of(v, i)) + 1
    return j < i and (v.window is None or j >= end - v.window or j < v.sink)


@given(visibilities, st.integers(1, 14))
def test_masks_follow_the_rule(v, T):
    clean = v.frame_mask(T)
    forced = v.teacher_forcing_mask(T)
    for i in range(T):
        for j in range(T):
            own = chunk_of(v, i) == chunk_of(v, j)
            assert clean[i, j] == sees(v, i, j)
            assert forced[i, j] == sees(v, i, j)
            assert not forced[i, T + j]
            assert forced[T + i, T + j] == own
            assert forced[T + i, j] == (sees(v, i, j) and not own)


@given(visibilities, st.integers(0, 6))
def test_the_cache_is_told_what_the_mask_says(v, n):
    start = v.prefix + n * v.chunk
    stop = start + v.chunk
    row = v.frame_mask(stop)[stop - 1]
    assert v.visible_frames(start, stop) == row.nonzero().flatten().tolist()


def test_published_toy_mask():
    mask = Visibility(chunk=1).teacher_forcing_mask(2)  # clean0 clean1 noisy0 noisy1
    expected = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 1]]
    assert mask.int().tolist() == expected


def test_bidirectional_and_tokens():
    v = Visibility(bidirectional=True)
    assert v.frame_mask(3).all()
    tokens = Visibility.expand(torch.tensor([[True, False], [True, True]]), 3)
    assert tokens.shape == (6, 6)
    assert tokens[:3, 3:].sum() == 0
    assert tokens[3:].all()


def test_wrong_values_are_named():
    with pytest.raises(WorldlineError, match="window >= 1"):
        Visibility(window=0)
