"""Key maps are bijections: on full-size models of every layout, and on any key at all."""

from __future__ import annotations

import dataclasses
import math
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worldline.models.convert import keymaps
from worldline.models.convert.keymaps import LAYOUTS, NAMINGS
from worldline.models.convert.published import PUBLISHED
from worldline.models.convert.sizes import expected_shapes
from worldline.models.wan import CameraMode


@pytest.mark.parametrize(
    ("size", "camera", "tensors"),
    [
        ("wan2.1-t2v-1.3b", "none", 825),
        ("wan2.1-t2v-1.3b", "branch", 885),
        ("wan2.2-ti2v-5b", "none", 825),
        ("wan2.2-ti2v-5b", "branch", 885),
    ],
)
def test_full_size_names_survive_every_layout(size, camera, tensors):
    keys = set(expected_shapes(dataclasses.replace(PUBLISHED[size], camera=camera)))
    assert len(keys) == tensors
    for layout in LAYOUTS.values():
        theirs = {key: layout.theirs(key) for key in keys}
        if camera == "branch" and layout.name == "diffusers":
            assert sum(name is None for name in theirs.values()) == 60  # diffusers has no camera
            continue
        assert None not in theirs.values(), layout.name
        assert len(set(theirs.values())) == tensors, layout.name
        assert {layout.ours(name) for name in theirs.values()} == keys, layout.name


@pytest.mark.parametrize("camera", get_args(CameraMode))
def test_our_naming_knows_every_tensor_of_every_camera(camera):
    config = dataclasses.replace(PUBLISHED["wan2.1-t2v-1.3b"], num_layers=2, camera=camera, motion=True, actions=3)
    assert all(keymaps.OURS.theirs(key) == key for key in expected_shapes(config))


def test_full_size_worldplay_has_its_published_number_of_tensors():
    keys = set(expected_shapes(dataclasses.replace(PUBLISHED["wan2.2-ti2v-5b"], camera="branch", actions=256)))
    layout = LAYOUTS["worldplay-fsdp"]
    theirs = {layout.theirs(key) for key in keys}
    assert len(theirs) == 889
    assert "model._fsdp_wrapped_module.blocks.29._fsdp_wrapped_module.attn1.to_out_prope.0.weight" in theirs
    assert {layout.ours(name) for name in theirs} == keys


def test_parameter_counts_of_published_sizes():
    def count(name):
        shapes = expected_shapes(PUBLISHED[name]).values()
        return sum(math.prod(shape) for shape in shapes)

    assert count("wan2.1-t2v-1.3b") == 1_418_996_800
    assert count("wan2.2-ti2v-5b") == 4_999_787_712


@pytest.mark.parametrize(
    ("ours", "wan"),
    [
        ("blocks.7.scale_shift_table", "blocks.7.modulation"),
        ("scale_shift_table", "head.modulation"),
        ("blocks.0.norm2.weight", "blocks.0.norm3.weight"),
        ("blocks.12.attn2.to_out.0.bias", "blocks.12.cross_attn.o.bias"),
        ("blocks.3.ffn.net.0.proj.weight", "blocks.3.ffn.0.weight"),
        ("condition_embedder.time_proj.bias", "time_projection.1.bias"),
        ("proj_out.weight", "head.head.weight"),
        ("blocks.29.attn1.prope_o.weight", "blocks.29.self_attn.prope_o.weight"),
        ("blocks.1.attn2.add_k_proj.weight", "blocks.1.cross_attn.k_img.weight"),
    ],
)
def test_golden_names(ours, wan):
    assert keymaps.WAN.theirs(ours) == wan
    assert keymaps.WAN.ours(wan) == ours


words = st.sampled_from(
    sorted(
        {w for n in NAMINGS for pair in n.pairs for s in pair for w in s.split(".")} | {"0", "07", "weight", "bias", ""}
    )
)
keys = st.one_of(
    st.text(max_size=30),
    st.lists(words, min_size=1, max_size=7).map(".".join),
    st.tuples(st.integers(0, 99), st.sampled_from([p for n in NAMINGS for pair in n.pairs for p in pair])).map(
        lambda t: t[1].replace("blocks.", f"blocks.{t[0]}.") + ".weight"
    ),
)


@given(keys)
def test_any_key_that_is_renamed_comes_back(key):
    for naming in NAMINGS:
        for there, back in ((naming.theirs, naming.ours), (naming.ours, naming.theirs)):
            renamed = there(key)
            assert renamed is None or back(renamed) == key


@given(keys, keys)
def test_no_two_keys_get_one_name(a, b):
    for naming in NAMINGS:
        if a != b and naming.theirs(a) is not None:
            assert naming.theirs(a) != naming.theirs(b)


@given(keys)
def test_split_and_join_are_inverse(key):
    assert keymaps.join(*keymaps.split(key)) == key


def test_names_agree_with_diffusers_own_converter():
    convert = pytest.importorskip("diffusers.loaders.single_file_utils").convert_wan_transformer_to_diffusers
    ours = set(expected_shapes(dataclasses.replace(PUBLISHED["wan2.1-t2v-1.3b"], num_layers=2)))
    ours |= {"blocks.0.attn2.add_k_proj.weight", "blocks.0.attn2.norm_added_k.weight"}
    ours |= {
        f"condition_embedder.image_embedder.{stem}.weight" for stem in ("norm1", "ff.net.0.proj", "ff.net.2", "norm2")
    }
    original = {keymaps.WAN.theirs(key): key for key in ours}
    assert convert(dict(original)) == {key: key for key in original.values()}
