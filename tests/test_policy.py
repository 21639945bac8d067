"""The policy asks what training rows ask, serves robots apart, and refuses nonsense before anything moves."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from llarva.decoding import untrained_checkpoint
from llarva.instructions.format import InstructionFormat
from llarva.instructions.numbers import BinNumbers, DecimalNumbers, Range
from llarva.kinematics import proprioception
from llarva.models.checkpoints import Checkpoint
from llarva.models.tiny import TinySize
from llarva.policy import Policy, PolicyError, known_control_modes
from llarva.robots import get_robot

MODE = "end_effector_delta"
PANDA = get_robot("panda")
HOME = np.array(PANDA.home, np.float32)
FORMAT = InstructionFormat(
    "llarva-workbench-v1",
    BinNumbers(64, {"trace": Range((0.0,) * 2, (64.0,) * 2), f"state:{MODE}": Range((-1.0,) * 7, (1.0,) * 7),
                    f"action:{MODE}": Range((-1.0,) * 7, (1.0,) * 7)}),
    "panda", history=3, n=4, trace_points=4, image_size=(64, 64),
)


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    size = TinySize(width=64, mlp_width=96, heads=4, vision_layers=1, text_layers=2, image_size=64)
    return untrained_checkpoint(FORMAT, ["push the red button"], 0, size)


def look(seed: int, joint: float = 0.0) -> dict[str, Any]:
    image = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    state = HOME.copy()
    state[0] += joint
    return {"image": image, "state": state, "gripper_open": np.ones(1, np.float32)}


def test_history_holds_every_step_and_pads_with_the_oldest(checkpoint: Checkpoint) -> None:
    policy = Policy(checkpoint, MODE, execute=2)
    policy.reset(["push the red button"])
    asked: list[str] = []
    real = policy.decoder.generate
    policy.decoder.generate = lambda images, prompts, likely: asked.extend(prompts) or real(images, prompts)  # type: ignore
    for step in range(5):
        policy.step([look(step, joint=0.1 * step)])
    states = [proprioception(PANDA, MODE, look(0, 0.1 * step)["state"], 1.0) for step in range(5)]
    expected = [FORMAT.prompt("push the red button", np.stack(part), MODE)
                for part in (states[:1], states[:3], states[2:5])]
    assert asked == expected
    policy.reset(["go"])
    policy.act([look(9)])
    assert asked[-1] == FORMAT.prompt("go", proprioception(PANDA, MODE, HOME, 1.0)[None], MODE)


def test_robots_in_a_batch_are_apart(checkpoint: Checkpoint) -> None:
    together, words = Policy(checkpoint, MODE, batch=3, execute=3), ["go", "push the red button", "wait"]
    together.reset(words)
    actions = [together.step([look(10 * step + row) for row in range(3)])[0] for step in range(4)]
    for row in range(3):
        alone = Policy(checkpoint, MODE, execute=3)
        alone.reset([words[row]])
        for step in range(4):
            assert np.array_equal(alone.step([look(10 * step + row)])[0][0], actions[step][row])


def test_rows_may_be_served_in_any_order_and_number(checkpoint: Checkpoint) -> None:
    policy = Policy(checkpoint, MODE, batch=3, execute=1)
    policy.reset(["go", "push the red button", "wait"])
    forward, _ = policy.step([look(0), look(1), look(2)])
    policy.reset(["wait", "go"], indices=[2, 0])
    backward, chunks = policy.step([look(2), look(0)], indices=[2, 0])
    assert np.array_equal(backward[0], forward[2]) and np.array_equal(backward[1], forward[0])
    assert all(chunk is not None and chunk.actions.shape == (1, 7) and chunk.trace.shape == (4, 2) for chunk in chunks)


def test_actions_are_the_chunk_that_was_answered(checkpoint: Checkpoint) -> None:
    policy = Policy(checkpoint, MODE)
    policy.reset(["go"])
    first, chunks = policy.step([look(0)])
    rest = [policy.step([look(i)]) for i in range(1, 4)]
    assert all(chunk == [None] for _, chunk in rest)
    assert np.array_equal(np.stack([first[0], *(actions[0] for actions, _ in rest)]), chunks[0].actions)
    assert np.array_equal(FORMAT.parse(chunks[0].text, MODE).actions, chunks[0].actions)
    assert policy.step([look(5)])[1][0] is not None


@pytest.mark.parametrize("key,value,says", [
    ("image", np.zeros((64, 64, 3)), "float64"),
    ("image", np.zeros((32, 64, 3), np.uint8), r"\[32, 64, 3\].*\[64, 64, 3\]"),
    ("image", np.zeros((64, 64), np.uint8), r"\[64, 64\]"),
    ("state", np.zeros(6), "7 numbers"),
    ("state", np.zeros((7, 1)), "7 numbers"),
    ("state", np.full(7, np.inf), "not finite"),
    ("state", np.array(["a"] * 7), "7 numbers"),
    ("gripper_open", np.array([np.nan]), "gripper_open.*not finite"),
    ("gripper_open", np.zeros(2), "1 numbers"),
])
def test_wrong_observations_are_named(checkpoint: Checkpoint, key: str, value: Any, says: str) -> None:
    policy = Policy(checkpoint, MODE)
    policy.reset(["go"])
    with pytest.raises(PolicyError, match=says):
        policy.act([{**look(0), key: value}])


def test_a_missing_entry_is_named(checkpoint: Checkpoint) -> None:
    policy = Policy(checkpoint, MODE)
    policy.reset(["go"])
    with pytest.raises(PolicyError, match="lacks state.*has image, gripper_open"):
        policy.act([{key: value for key, value in look(0).items() if key != "state"}])


def test_wrong_requests(checkpoint: Checkpoint) -> None:
    with pytest.raises(PolicyError, match="'joint_velocity'.*end_effector_delta"):
        Policy(checkpoint, "joint_velocity")
    for execute in (0, 5):
        with pytest.raises(PolicyError, match="predicts n = 4"):
            Policy(checkpoint, MODE, execute=execute)
    with pytest.raises(PolicyError, match="at least one robot"):
        Policy(checkpoint, MODE, batch=0)
    policy = Policy(checkpoint, MODE, batch=2)
    with pytest.raises(PolicyError, match="no instruction yet"):
        policy.act([look(0)], indices=[1])
    for indices in ([0, 0], [0, 2], [0]):
        with pytest.raises(PolicyError, match="distinct robots of 0–1"):
            policy.reset(["a", "b"], indices)


def test_known_control_modes_follow_the_numbers() -> None:
    assert known_control_modes(FORMAT) == (MODE,)
    assert known_control_modes(replace(FORMAT, numbers=DecimalNumbers())) == PANDA.control_modes


def test_robots_may_be_at_different_places_in_their_chunks(checkpoint: Checkpoint) -> None:
    policy = Policy(checkpoint, MODE, batch=2, execute=2)
    policy.reset(["go", "push the red button"])
    policy.step([look(0)], indices=[0])
    _, chunks = policy.step([look(1), look(2)])
    assert chunks[0] is None and chunks[1] is not None
    alone = Policy(checkpoint, MODE, execute=2)
    alone.reset(["push the red button"])
    assert alone.act([look(2)])[0].text == chunks[1].text
