"""The model that reads keys from frames: what is shipped, how it reads, how it is trained."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from worldline.data.reserved import FIRST_EVALUATION_MAP, ReservedMapError
from worldline.evaluate import idm_training, inverse_dynamics
from worldline.evaluate.figures import BY_NAME
from worldline.evaluate.idm_training import KeyBatch, KeyReading, KeyWindows, labels, mirrored, train_idm, varied
from worldline.evaluate.inverse_dynamics import SHIPPED, InverseDynamics, InverseDynamicsConfig, load, read_keys
from worldline.evaluate.keys_page import key_tables
from worldline.evaluate.metrics.keys import balanced_accuracy, confusion, held_keys
from worldline.evaluate.score import Score
from worldline.evaluate.suites import Entry, cases
from worldline.evaluate.truth import truth_of
from worldline.methods.base import Rng
from worldline.schema import CameraPath, Controls, ShapeError, WorldlineError

TINY = InverseDynamicsConfig(height=32, width=48, filters=16, channels=(16, 16, 16), hidden=32)


def drifting(rng: np.random.Generator, keys: np.ndarray, size: tuple[int, int] = (32, 48)) -> np.ndarray:
    """Luminance uint8 [F + 1, H, W] of a smooth pattern that slides by two pixels a step against the turn key."""
    import cv2

    wide = cv2.GaussianBlur(rng.uniform(0, 255, (size[0], 512)).astype(np.float32), (0, 0), 2)
    wide = 128 + (wide - wide.mean()) * 40 / wide.std()
    place = np.concatenate([[200], 200 + 2 * np.cumsum(keys.astype(int) - 1)])
    return np.stack([wide[:, p : p + size[1]] for p in place]).round().clip(0, 255).astype(np.uint8)


def test_what_is_shipped_is_small_and_was_judged_on_maps_that_it_may_be_judged_on():
    assert SHIPPED.stat().st_size <= 2_000_000
    card = json.loads(SHIPPED.with_suffix(".json").read_text())
    assert card["heldout"]["truth"]["balanced_accuracy"]["mean"] > 0.9
    assert card["heldout"]["codec"]["balanced_accuracy"]["mean"] > 0.8
    assert card["seconds"] <= 600
    counts = np.array(card["heldout"]["truth"]["counts"]["turn"])
    assert balanced_accuracy(counts) == pytest.approx(card["heldout"]["truth"]["balanced_accuracy"]["turn"], abs=1e-4)


def test_a_replay_is_read_right_at_any_size_and_its_mirror_image_with_sides_exchanged(tmp_path):
    pytest.importorskip("vizdoom")
    import cv2

    (case,) = cases([Entry("S2", "yaw", 1, frames=40)])
    frames = truth_of(case, tmp_path).frames
    asked = held_keys(case.controls)
    read = read_keys(frames)
    assert read.shape == (40, 3)
    assert balanced_accuracy(confusion(asked, read)[0]) > 0.85
    assert (read_keys(frames[:, :, ::-1].copy())[:, 0] == 2 - read[:, 0]).mean() > 0.85
    large = np.stack([cv2.resize(f, (200, 120), interpolation=cv2.INTER_CUBIC) for f in frames])
    assert (read_keys(large)[:, 0] == read[:, 0]).mean() > 0.85
    assert (read_keys(np.repeat(frames[:1], 41, axis=0))[:, 0] == 1).all()


def test_a_long_clip_is_read_in_spans_as_if_it_were_read_at_once(monkeypatch):
    torch.manual_seed(0)
    model = InverseDynamics(TINY).eval()
    frames = np.random.default_rng(0).integers(0, 256, (60, 32, 48, 3), dtype=np.uint8)
    whole = read_keys(frames, model)
    assert len(np.unique(whole)) > 1
    monkeypatch.setattr(inverse_dynamics, "AT_ONCE", 7)
    assert np.array_equal(read_keys(frames, model), whole)


def test_level_and_contrast_of_a_frame_change_nothing():
    torch.manual_seed(0)
    model = InverseDynamics(TINY).eval()
    light = torch.from_numpy(drifting(np.random.default_rng(0), np.full(9, 2))).float()[None]
    torch.testing.assert_close(model(light), model(0.7 * light + 30), rtol=1e-3, atol=1e-3)
    with pytest.raises(ShapeError):
        model(light[:, :1])
    with pytest.raises(WorldlineError, match="train-idm"):
        load(SHIPPED.with_name("none.safetensors"))


def test_it_learns_to_read_which_way_a_picture_slides():
    rng, light, keys = np.random.default_rng(0), [], []
    for _ in range(48):
        asked = np.repeat(rng.integers(0, 3, (4, 3)), 6, axis=0)
        light.append(drifting(rng, asked[:, 0]))
        keys.append(asked.astype(np.int8))
    pool = np.stack(light[:40]), np.stack(keys[:40])
    torch.manual_seed(0)
    model = InverseDynamics(TINY)
    method, data = KeyReading(model, pool[1]), KeyWindows([pool], 17, 0.0)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for step in range(60):
        optimizer.zero_grad()
        method.loss(data.batch(0, step, 8), Rng(0, step))["loss"].backward()
        optimizer.step()
    read = np.stack([model.eval()(torch.from_numpy(c[None]).float())[0].argmax(-1).numpy() for c in light[40:]])
    right = [balanced_accuracy(confusion(np.concatenate(keys[40:]), read.reshape(-1, 3))[a]) for a in range(3)]
    assert right[0] > 0.8
    assert max(right[1:]) < 0.5  # nothing in these pictures tells the other keys


def test_a_mirror_exchanges_turning_and_strafing_and_leaves_what_no_frame_tells():
    keys = np.array([[0, 0, 2], [1, 2, -1], [2, -1, 1]])
    assert mirrored(keys).tolist() == [[2, 0, 0], [1, 2, -1], [0, -1, 1]]
    light = drifting(np.random.default_rng(0), np.full(9, 2)).astype(np.float32)
    other = varied(light, np.random.default_rng(3))
    assert other.shape == light.shape
    assert 0 <= other.min() <= other.max() <= 255
    assert not np.allclose(other, light)


def test_steps_into_a_wall_are_told_by_no_frame():
    move = np.tile((0.0, 0, 1), (20, 1))
    c2w = np.tile(np.eye(4), (21, 1, 1))
    c2w[:11, 0, 3] = 4.0 * np.arange(11)  # ten steps, then a wall
    c2w[11:, 0, 3] = 40

    class Walk:
        frames = np.zeros((21, 8, 8, 3), dtype=np.uint8)
        controls = Controls(move, np.zeros((20, 3)))
        cameras = CameraPath(c2w, np.array([0.4, 0.6, 0.5, 0.5]))

    found = labels(Walk(), 4.0)
    assert (found[:10] == [1, 2, 1]).all()
    assert (found[12:, 1:] == idm_training.UNSEEN).all()
    assert (found[:, 0] == 1).all()
    batch = KeyBatch(torch.zeros(1, 21, 32, 48), torch.from_numpy(found[None].astype(np.int64)))
    seen = np.tile([[0, 0, 0], [1, 1, 1], [2, 2, 2]], (1, 1, 1))
    assert torch.isfinite(KeyReading(InverseDynamics(TINY), seen).loss(batch, Rng(0, 0))["loss"])


def test_maps_of_the_evaluation_are_refused(tmp_path):
    class Clips:
        root, info = tmp_path, {}
        rows = ({"map_seed": FIRST_EVALUATION_MAP, "split": "train"},)

        def split(self, name):
            return self

    with pytest.raises(ReservedMapError):
        train_idm(Clips(), None, tmp_path / "out")


def key_scores(right: float) -> dict[str, Score]:
    """Four episodes whose keys are read right with that probability, else as the next class."""
    rng, made = np.random.default_rng(2), {}
    for i in range(4):
        asked = rng.integers(0, 3, (300, 3))
        asked[:, 2] = 1  # nobody strafes
        read = np.where(rng.random((300, 3)) < right, asked, (asked + 1) % 3)
        name = f"S2-yaw-{i:03d}"
        made[name] = Score(name, "S2", "yaw", "ood-map", {}, {"keys": asked, "read": read})
    return made


def test_figures_of_keys_stand_between_a_constant_answer_and_the_replay():
    rows = {"model": key_scores(0.6), "replay": key_scores(0.9)}
    found = {n: BY_NAME[n].of(list(rows["model"].values()), rows) for n in ("idm_accuracy", "idm_turn", "idm_share")}
    assert found["idm_accuracy"]["value"] == pytest.approx(0.6, abs=0.03)  # of turn and forward: strafe has one class
    assert found["idm_turn"]["low"] < 0.6 < found["idm_turn"]["high"]
    assert found["idm_share"]["value"] == pytest.approx((0.6 - 1 / 3) / (0.9 - 1 / 3), abs=0.05)
    assert BY_NAME["idm_strafe"].of(list(rows["model"].values()), rows)["status"] == "skipped"
    page = key_tables(rows)
    assert page.count("<table>") == 2
    assert page.count("<th>left</th>") == 2  # a row and a column of turning, none of strafing
    assert key_tables({"model": {}, "replay": {}}) == ""
