"""Camera motion, PRoPE and RoPE against published numbers and their own invariants."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from worldline.functional.camera import (
    actions_of_motion,
    classes_of_actions,
    integrate,
    invert_se3,
    relative_motion,
    relative_to_first,
    rotation_pitch,
    rotation_yaw,
)
from worldline.functional.prope import apply_groups, projection_matrices
from worldline.functional.rope import apply_rope, rope_angles

K = torch.tensor([0.5050505, 0.89786756, 0.5, 0.5])


def walk() -> torch.Tensor:
    """The three w2c of "w*1,l*1": one step of 0.08 forward, then 3 degrees to the right."""
    c2w = [np.eye(4)]
    c2w.append(integrate(c2w[-1], 0, 0, (0, 0, 0.08)))
    c2w.append(integrate(c2w[-1], 3, 0, (0, 0, 0)))
    return torch.from_numpy(np.linalg.inv(np.stack(c2w))).float()


def test_signs():
    forward = np.array([0, 0, 1.0])
    assert (rotation_yaw(10) @ forward)[0] > 0, "right is +x"
    assert (rotation_pitch(10) @ forward)[1] < 0, "up is -y"
    moved = integrate(np.eye(4), 90, 0, (0, 0.5, 2))
    np.testing.assert_allclose(moved[:3, 3], [2, -0.5, 0], atol=1e-12)


def test_prope_numbers():
    P, P_inv = projection_matrices(walk(), K.expand(3, 4))
    expected = [
        [0.504358, 0, -0.026432, 0.002115],
        [0, 0.897868, 0, 0],
        [0.052336, 0, 0.998630, -0.079890],
        [0, 0, 0, 1],
    ]
    torch.testing.assert_close(P[2], torch.tensor(expected), atol=2e-6, rtol=0)
    inverse = [[1.977287, 0, 0.052336, 0], [0, 1.113750, 0, 0], [-0.103625, 0, 0.998630, 0.08], [0, 0, 0, 1]]
    torch.testing.assert_close(P_inv[2], torch.tensor(inverse), atol=2e-6, rtol=0)
    q, k, v = (torch.tensor(x).expand(1, 1, 3, 4) for x in ([1.0, 2, 3, 4], [0.5, -0.5, 1, 0.25], [0.0, 1, 0, 1]))
    M, M_inv = P[None], P_inv[None]
    q2, k2, v2 = apply_groups(M.transpose(-1, -2), q), apply_groups(M_inv, k), apply_groups(M_inv, v)
    torch.testing.assert_close(
        q2[0, 0],
        torch.tensor(
            [[0.505050, 1.795735, 3, 4], [0.505050, 1.795735, 3, 3.76], [0.661366, 1.795735, 2.969456, 3.762444]]
        ),
        atol=2e-5,
        rtol=0,
    )
    logits = (q2 @ k2.transpose(-1, -2) / 2)[0, 0]
    expected_logits = [[1.75, 1.78, 1.713099], [1.72, 1.75, 1.683099], [1.782410, 1.812104, 1.75]]
    torch.testing.assert_close(logits, torch.tensor(expected_logits), atol=5e-6, rtol=0)
    out = apply_groups(M, torch.nn.functional.scaled_dot_product_attention(q2, k2, v2))[0, 0]
    expected_out = [[0, 1, 0.053282, 1], [0, 1, -0.026718, 1], [0.000705, 1, -0.026646, 1]]
    torch.testing.assert_close(out, torch.tensor(expected_out), atol=5e-6, rtol=0)


def test_prope_does_not_know_the_world_frame():
    P, P_inv = projection_matrices(walk(), K.expand(3, 4))
    torch.testing.assert_close(P @ P_inv, torch.eye(4).expand(3, 4, 4), atol=1e-5, rtol=0)
    world = torch.from_numpy(integrate(np.eye(4), 40, 10, (1, 2, 3))).float()
    Q, Q_inv = projection_matrices(walk() @ world, K.expand(3, 4))
    torch.testing.assert_close(Q[2] @ Q_inv[0], P[2] @ P_inv[0], atol=1e-5, rtol=1e-5)


def test_rigid_inverse_and_gauge():
    path = np.stack([integrate(np.eye(4), 25 * i, 3 * i, (0.1, 0, i)) for i in range(4)])
    torch.testing.assert_close(invert_se3(torch.from_numpy(path)), torch.linalg.inv(torch.from_numpy(path)))
    relative = relative_to_first(path)
    np.testing.assert_allclose(relative[0], np.eye(4), atol=1e-12)
    np.testing.assert_allclose(path[0] @ relative[3], path[3], atol=1e-12)


@pytest.mark.parametrize("head_dim", [16, 64, 128])
def test_rope_is_relative_and_splits_as_wan(head_dim):
    q, k = torch.randn(1, 1, 1, head_dim, dtype=torch.float64), torch.randn(1, 1, 1, head_dim, dtype=torch.float64)

    def logit(a, b):
        return (
            apply_rope(q.float(), *rope_angles(torch.tensor([a]), head_dim))
            @ apply_rope(k.float(), *rope_angles(torch.tensor([b]), head_dim)).transpose(-1, -2)
        ).item()

    assert logit([5, 3, 7], [2, 1, 1]) == pytest.approx(logit([103, 4, 9], [100, 2, 3]), abs=1e-3)
    cos, _ = rope_angles(torch.tensor([[1, 0, 0]]), head_dim)
    d2 = head_dim // 2
    turned = (cos[0] != 1).sum().item()
    assert turned <= d2 - 2 * (d2 // 3)
    if head_dim == 128:  # 22 : 21 : 21 complex pairs
        moved = [(rope_angles(torch.tensor([axis]), 128)[1][0] != 0).nonzero().flatten() for axis in np.eye(3).tolist()]
        assert [(m.min().item(), m.max().item()) for m in moved] == [(0, 21), (22, 42), (43, 63)]


def test_relative_motion_is_the_step_in_the_previous_axes():
    path = [integrate(np.eye(4), 70, 20, (3, 1, 2))]
    path.append(integrate(path[-1], 8, 0, (0.01, 0, 0.08)))
    path.append(integrate(path[-1], 0, 5, (0, 0, 0)))
    path.append(path[-1])
    w2c = torch.from_numpy(np.linalg.inv(np.stack(path)))
    motion = relative_motion(w2c)
    yaw, pitch = np.deg2rad(8), np.deg2rad(5)
    step = rotation_yaw(8) @ np.array([0.01, 0, 0.08])
    expected = [[0] * 6, [0, yaw, 0, *step], [pitch, 0, 0, 0, 0, 0], [0] * 6]
    np.testing.assert_allclose(motion.numpy(), expected, atol=1e-9)
    world = torch.from_numpy(integrate(np.eye(4), 33, 5, (1, 2, 3)))
    torch.testing.assert_close(relative_motion(w2c @ world), motion, atol=1e-9, rtol=0)


def test_actions_shown_by_a_motion():
    c2w, expected = np.eye(4), []
    path = [c2w]
    for yaw, pitch, move, held in [
        (3, 0, (0, 0, 0), {6}),
        (0, -3, (0, 0, 0.1), {9, 4}),
        (0, 0, (-0.1, 0, 0.1), {1, 4}),
        (-3, 3, (0, 0.1, 0), {7, 8, 2}),
        (0, 0, (0, 0, -0.1), {5}),
        (0, 0, (0.005, 0, 0), set()),
    ]:
        c2w = integrate(c2w, yaw, pitch, move)
        path.append(c2w)
        expected.append(held)
    motion = relative_motion(torch.linalg.inv(torch.from_numpy(np.stack(path))))
    shown = actions_of_motion(motion)
    assert shown.shape == (7, 10)
    assert [set(row.nonzero().flatten().tolist()) for row in shown] == [set(), *expected]


def test_class_numbers_are_those_of_the_vocabulary():
    from itertools import product

    from worldline.control import actions

    level = np.array([(right, 0, *rest) for right, *rest in product((-1, 0, 1), repeat=4)], np.int8)
    numbers = classes_of_actions(torch.from_numpy(actions.multi_hot(level)))
    assert numbers.tolist() == actions.class_ids(level).tolist()
    assert sorted(numbers.tolist()) == list(range(81))
