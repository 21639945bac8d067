"""Other arms, and the studio that draws them: names, poses, boxes, and seeds."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest

from llarva.errors import LlarvaError
from llarva.tabletop.arms import ARMS, END_EFFECTORS, draw_pose, hand_point, light_model, mounted
from llarva.tabletop.studio import SEEN_ROBOTS, UNSEEN_ROBOT, Studio, box_of, draw_texture


@pytest.mark.parametrize("robot", [*SEEN_ROBOTS, UNSEEN_ROBOT], ids=str)
def test_every_robot_compiles_and_works_in_front_of_itself(robot: tuple[str, str | None]) -> None:
    arm = mounted(*robot)
    model = arm.spec.compile()
    data, inside = mujoco.MjData(model), 0
    for seed in range(8):
        draw_pose(model, data, arm, np.random.default_rng(seed))
        for name in (*arm.joints, *arm.grip):
            low, high = model.joint(name).range
            assert low - 1e-6 <= data.qpos[model.joint(name).qposadr[0]] <= high + 1e-6, name
        inside += bool(np.linalg.norm(hand_point(model, data, arm)) < 1.6 * arm.reach)
    assert inside == 8 and len(arm.joints) in (5, 6, 7)


def test_what_does_not_exist_or_fit_is_refused() -> None:
    for wrong in (("puma", None), ("ur5e", None), ("ur5e", "hook"), ("panda", "suction_cup")):
        with pytest.raises(LlarvaError):
            mounted(*wrong)
    with pytest.raises(LlarvaError, match="suction_cup"):
        light_model("../panda")


def test_the_unseen_robot_is_not_among_the_seen() -> None:
    arm, tool = UNSEEN_ROBOT
    assert arm not in {a for a, _ in SEEN_ROBOTS} and tool not in {t for _, t in SEEN_ROBOTS}
    assert {a for a, _ in SEEN_ROBOTS} | {arm} == set(ARMS)
    assert {t for _, t in SEEN_ROBOTS if t} | {tool} == set(END_EFFECTORS)


def test_pictures_follow_from_their_seed_alone() -> None:
    studio = Studio("ur5e", "suction_cup", 64)
    first, _, again = (studio.picture(seed) for seed in (5, 6, 5))
    studio.close()
    assert np.array_equal(first.image, again.image) and np.array_equal(first.point, again.point)
    assert first.image.std() > 5


def test_boxes_hold_the_hand_and_nothing_else() -> None:
    studio, near = Studio("jaco", "jaco_three_finger", 96), 0
    for seed in range(12):
        picture = studio.picture(seed, without_arm=0.0)
        if picture.box is None:
            continue
        x0, y0, x1, y1 = picture.box
        middle, reach = (picture.box[:2] + picture.box[2:]) / 2, 1.5 * max(x1 - x0, y1 - y0) + 4
        near += bool(np.abs(picture.point - middle).max() < reach)
        assert 0 <= x0 < x1 <= 96 and 0 <= y0 < y1 <= 96
    bare = [studio.picture(seed, without_arm=1.0).box for seed in range(3)]
    studio.close()
    assert near >= 6 and bare == [None] * 3


def test_small_things() -> None:
    assert box_of(np.zeros((4, 4), bool)) is None
    assert draw_texture(np.random.default_rng(0)).shape == (64, 64, 3)
    with pytest.raises(LlarvaError, match="16 to 512"):
        Studio("panda", size=8)
