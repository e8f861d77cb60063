"""Cameras as estimated: errors of the sizes asked for, of the clip's own, and none where none is asked for."""

from __future__ import annotations

import pytest
import torch

from worldline.data.pose_noise import PoseNoise
from worldline.functional.camera import relative_motion, rotation_yaw
from worldline.schema import WorldlineError

N, T = 600, 9
IDS = tuple(f"clip-{i}" for i in range(N))


@pytest.fixture(scope="module")
def paths() -> torch.Tensor:
    """Walks that turn 4 degrees and step 2 units ahead, from anywhere in the world."""
    step = torch.eye(4, dtype=torch.float64)
    step[:3, :3] = torch.from_numpy(rotation_yaw(4.0))
    step[2, 3] = 2.0
    start = torch.eye(4, dtype=torch.float64).repeat(N, 1, 1)
    start[:, :3, 3] = torch.randn(N, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 100
    out = [start]
    for _ in range(T - 1):
        out.append(out[-1] @ step)
    return torch.stack(out, dim=1)


def motion(c2w: torch.Tensor) -> torch.Tensor:
    return relative_motion(torch.linalg.inv(c2w))[:, 1:]


def rms(x: torch.Tensor) -> float:
    return float(x.square().sum(-1).mean().sqrt())


def test_no_noise_changes_no_bit(paths):
    assert PoseNoise().none
    assert torch.equal(PoseNoise().apply(paths, IDS), paths)


def test_a_step_turns_wrongly_by_as_much_as_asked(paths):
    wrong = PoseNoise(rotation=1.5).apply(paths, IDS)
    relative = torch.linalg.inv(paths[:, :-1]) @ paths[:, 1:]
    error = torch.linalg.inv(relative) @ torch.linalg.inv(wrong[:, :-1]) @ wrong[:, 1:]
    angle = torch.rad2deg(torch.arccos((error[..., :3, :3].diagonal(dim1=-2, dim2=-1).sum(-1) - 1).div(2).clamp(-1, 1)))
    assert float(angle.square().mean().sqrt()) == pytest.approx(1.5, rel=0.05)
    torch.testing.assert_close(motion(wrong)[..., 3:], motion(paths)[..., 3:], atol=1e-9, rtol=0)
    R = wrong[..., :3, :3]
    torch.testing.assert_close(R @ R.transpose(-1, -2), torch.eye(3, dtype=R.dtype).expand_as(R), atol=1e-9, rtol=0)


def test_a_step_goes_wrong_by_a_share_of_a_typical_step(paths):
    wrong = PoseNoise(translation=0.25).apply(paths, IDS)
    assert rms((motion(wrong) - motion(paths))[..., 3:]) == pytest.approx(0.25 * 2.0, rel=0.05)
    torch.testing.assert_close(motion(wrong)[..., :3], motion(paths)[..., :3], atol=1e-9, rtol=0)


def test_every_clip_has_a_unit_of_its_own(paths):
    wrong = PoseNoise(scale=0.5).apply(paths, IDS)
    ratio = motion(wrong)[..., 3:].norm(dim=-1) / 2.0
    assert float(ratio.std(dim=1).max()) < 1e-9, "one unit for the whole clip"
    assert float(ratio[:, 0].log().std()) == pytest.approx(0.5, rel=0.1)
    assert abs(float(ratio[:, 0].log().mean())) < 0.1


def test_errors_follow_each_other_and_the_path_drifts(paths):
    for smooth in (0.0, 0.7):
        error = (motion(PoseNoise(translation=1.0, smooth=smooth).apply(paths, IDS)) - motion(paths))[..., 3:]
        pairs = torch.stack([error[:, :-1].flatten(), error[:, 1:].flatten()])
        assert float(torch.corrcoef(pairs)[0, 1]) == pytest.approx(smooth, abs=0.05)
    wrong = PoseNoise(rotation=1.0).apply(paths, IDS)
    apart = (torch.linalg.inv(paths) @ wrong)[..., :3, :3].diagonal(dim1=-2, dim2=-1).sum(-1)
    off = torch.rad2deg(torch.arccos(((apart - 1) / 2).clamp(-1, 1))).mean(dim=0)
    assert float(off[0]) < 1e-5
    assert all(a < b for a, b in zip(off[:-1].tolist(), off[1:].tolist(), strict=True))


def test_errors_belong_to_the_clip(paths):
    noise = PoseNoise(rotation=1.0, translation=0.2, scale=0.3)
    wrong = noise.apply(paths, IDS)
    assert torch.equal(noise.apply(paths, IDS), wrong)
    backwards = noise.apply(paths.flip(0), IDS[::-1]).flip(0)
    torch.testing.assert_close(backwards, wrong, atol=1e-9, rtol=0)
    assert not torch.allclose(PoseNoise(rotation=1.0, translation=0.2, scale=0.3, seed=1).apply(paths, IDS), wrong)
    assert not torch.allclose(motion(wrong)[0], motion(wrong)[1])


def test_impossible_sizes_are_refused(paths):
    for wrong in ({"rotation": -1}, {"scale": -0.1}, {"smooth": 1.0}, {"smooth": -0.1}):
        with pytest.raises(WorldlineError, match="expected rotation, translation, scale >= 0"):
            PoseNoise(**wrong)
    with pytest.raises(WorldlineError, match="expected"):
        PoseNoise(rotation=1).apply(paths, IDS[:-1])
