"""Small RLDS data sets, one for each way in which the field lays out its actions, words and pictures.

`generate` makes the values in numpy alone. `python tests/rlds_sets.py FOLDER` has TensorFlow Datasets write them, as
its own RLDS tooling does; that is how `tests/golden/rlds` came about.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rlds_parts import DELTA, HEIGHT, WIDTH, RldsSet, card, image, normal, numbered, picture, tensor

EPISODES = 2
SETS: dict[str, RldsSet] = {}

# A flat vector, JPEG, text in every step: most of the converted sets.
SETS["flat_seven"] = RldsSet(
    lambda tfds: (
        {"image": image(tfds, "jpeg"), "wrist_image": image(tfds), "state": tensor(tfds, np.float32, 8)},
        tensor(tfds, np.float32, 7),
        {"language_instruction": tfds.features.Text(), "language_embedding": tensor(tfds, np.float32, 16)},
        {"file_path": tfds.features.Text()},
    ),
    lambda rng, t, count: {
        "observation": {"image": picture(rng), "wrist_image": picture(rng), "state": normal(rng, 8)},
        "action": np.append(normal(rng, 6), np.float32(t % 2)),
        "language_instruction": "put the red cup down",
        "language_embedding": np.full(16, 0.25, np.float32),
    },
    card(
        "flat_seven",
        mode="end_effector_delta",
        layout=DELTA,
        action="[{field: steps/action, take: [0, 1, 2]}, {field: steps/action, take: [3, 4, 5], rotation: euler_xyz}, "
        "{field: steps/action, take: [6], gripper: {closed: 1, open: 0}}]",
        state="{layout: [a: rad, b: rad, c: rad, d: rad, e: rad, f: rad, g: rad], "
        "parts: [{field: steps/observation/state, take: [0, 1, 2, 3, 4, 5, 6]}]}",
        gripper="{field: steps/observation/state, take: [7], gripper: {closed: 1, open: -1}}",
        more="  success: steps/reward\n",
    ),
    lambda rng, index: {"file_path": f"/data/someone/episode_{index}.npy"},
)

# Nested xyz, rotation, gripper push, base, one-hot termination; words in the observation: fractal, kuka, roboturk.
SETS["nested_push"] = RldsSet(
    lambda tfds: (
        {"image": image(tfds, "jpeg"), "natural_language_instruction": tfds.features.Text()}
        | {"gripper_closed": tensor(tfds, np.float32, 1), "natural_language_embedding": tensor(tfds, np.float32, 16)},
        {
            "world_vector": tensor(tfds, np.float32, 3),
            "rotation_delta": tensor(tfds, np.float32, 3),
            "gripper_closedness_action": tensor(tfds, np.float32, 1),
            "base_displacement_vector": tensor(tfds, np.float32, 2),
            "base_displacement_vertical_rotation": tensor(tfds, np.float32, 1),
            "terminate_episode": tensor(tfds, np.int32, 3),
        },
        {},
        {"attributes": {"index": np.int64, "sim": np.bool_}},
    ),
    lambda rng, t, count: {
        "observation": {
            "image": picture(rng),
            "natural_language_instruction": "pick rxbar blueberry from bottom drawer",
            "gripper_closed": np.float32([t / count]),
            "natural_language_embedding": np.zeros(16, np.float32),
        },
        "action": {
            "world_vector": normal(rng, 3),
            "rotation_delta": normal(rng, 3),
            "gripper_closedness_action": np.float32([[0, 1, 0, -1, 0.1][t % 5]]),
            "base_displacement_vector": np.zeros(2, np.float32),
            "base_displacement_vertical_rotation": normal(rng, 1),
            "terminate_episode": np.int32([t == count - 1, t < count - 1, 0]),
        },
    },
    card(
        "nested_push",
        robot="google_robot",
        rate="3",
        layout=DELTA + ", base turn: rad, stop: 1 = stop",
        language="steps/observation/natural_language_instruction",
        action="[{field: steps/action/world_vector, size: 3}, "
        "{field: steps/action/rotation_delta, size: 3, rotation: rotation_vector}, "
        "{field: steps/action/gripper_closedness_action, size: 1, gripper: {closed: 1, open: -1, change: true}}, "
        "{field: steps/action/base_displacement_vertical_rotation, size: 1}, "
        "{field: steps/action/terminate_episode, take: [0]}]",
        gripper="{field: steps/observation/gripper_closed, size: 1, gripper: {closed: 1, open: 0}}",
    ),
    lambda rng, index: {"attributes": {"index": index, "sim": bool(index)}},
)

# Scalars, a boolean gripper, pictures of any size: bridge, toto, berkeley_autolab_ur5.
SETS["scalars"] = RldsSet(
    lambda tfds: (
        {"image": tfds.features.Image(), "natural_language_instruction": tfds.features.Text()}
        | {"state": tensor(tfds, np.float32, 7), "gripper": np.bool_},
        {
            "world_vector": tensor(tfds, np.float32, 3),
            "rotation_delta": tensor(tfds, np.float32, 3),
            "open_gripper": np.bool_,
            "gripper_closedness_action": np.float32,
            "terminate_episode": np.float32,
        },
        {},
        {},
    ),
    lambda rng, t, count: {
        "observation": {
            "image": picture(rng),
            "natural_language_instruction": "sweep the green cloth to the left",
            "state": np.append(normal(rng, 3), (q := normal(rng, 4)) / np.linalg.norm(q)).astype(np.float32),
            "gripper": t % 2 == 0,
        },
        "action": {
            "world_vector": normal(rng, 3),
            "rotation_delta": normal(rng, 3),
            "open_gripper": t >= 2,
            "gripper_closedness_action": np.float32(0),
            "terminate_episode": np.float32(t == count - 1),
        },
    },
    card(
        "scalars",
        robot="widowx",
        rate="5",
        mode="end_effector_delta",
        layout=DELTA,
        language="{field: steps/observation/natural_language_instruction}",
        action="[{field: steps/action/world_vector, size: 3, scale: [1, -1, 0.5]}, "
        "{field: steps/action/rotation_delta, size: 3, rotation: euler_zyx}, "
        "{field: steps/action/open_gripper, size: 1, gripper: {closed: 0, open: 1}}]",
        gripper="command",
        more="  end_effector_position: {field: steps/observation/state, take: [0, 1, 2]}\n"
        "  end_effector_rotation: {field: steps/observation/state, take: [6, 3, 4, 5], rotation: quaternion_wxyz}\n",
    ),
)

# Two numbers, words as numbers of characters that change on the way, a picture key of its own: language_table.
SETS["code_points"] = RldsSet(
    lambda tfds: (
        {"rgb": image(tfds), "instruction": tensor(tfds, np.int32, 64)}
        | {"effector_translation": tensor(tfds, np.float32, 2)},
        tensor(tfds, np.float32, 2),
        {},
        {"episode_id": np.str_},
    ),
    lambda rng, t, count: {
        "observation": {
            "rgb": picture(rng),
            "instruction": np.array(
                [ord(c) for c in ("schiebe den Würfel" if t < 2 else "zurück ↩").ljust(64, "\0")], np.int32
            ),
            "effector_translation": normal(rng, 2),
        },
        "action": normal(rng, 2),
    },
    card(
        "code_points",
        robot="xarm",
        layout="delta x: m, delta y: m",
        camera="steps/observation/rgb",
        language="{field: steps/observation/instruction, encoding: code_points, changes: split}",
        action="[{field: steps/action, size: 2}]",
        state="{layout: [x: m, y: m], parts: [{field: steps/observation/effector_translation, size: 2}]}",
    ),
    lambda rng, index: {"episode_id": f"episode {index}"},
)

# Ten future way points, integers for the gripper, words for some episodes only: bc_z.
SETS["way_points"] = RldsSet(
    lambda tfds: (
        {"image": image(tfds, "jpeg"), "natural_language_instruction": tfds.features.Text()}
        | {"present/xyz": tensor(tfds, np.float32, 3), "present/sensed_close": tensor(tfds, np.float32, 1)},
        {
            "future/xyz_residual": tensor(tfds, np.float32, 30),
            "future/axis_angle_residual": tensor(tfds, np.float32, 30),
            "future/target_close": tensor(tfds, np.int64, 10),
        },
        {},
        {},
    ),
    lambda rng, t, count: {
        "observation": {
            "image": picture(rng),
            "natural_language_instruction": "" if t % 2 else "place the bottle in the tray",
            "present/xyz": normal(rng, 3),
            "present/sensed_close": np.float32([0.2]),
        },
        "action": {
            "future/xyz_residual": normal(rng, 30),
            "future/axis_angle_residual": normal(rng, 30),
            "future/target_close": np.int64(np.arange(10) > t),
        },
    },
    card(
        "way_points",
        robot="google_robot",
        mode="end_effector_delta",
        layout=DELTA,
        language="steps/observation/natural_language_instruction",
        action="[{field: steps/action/future/xyz_residual, take: [0, 1, 2]}, "
        "{field: steps/action/future/axis_angle_residual, take: [0, 1, 2], rotation: rotation_vector}, "
        "{field: steps/action/future/target_close, take: [0], gripper: {closed: 1, open: 0}}]",
        gripper="{field: steps/observation/present/sensed_close, size: 1, gripper: {closed: 1, open: 0}}",
    ),
)

# Doubles, many numbers, no words at all: nyu_franka_play, kaist_nonprehensile, cmu_play_fusion, robo_net.
SETS["doubles"] = RldsSet(
    lambda tfds: (
        {"image": image(tfds), "depth": tensor(tfds, np.float32, HEIGHT, WIDTH), "state": tensor(tfds, np.float64, 13)},
        tensor(tfds, np.float64, 15),
        {"language_instruction": tfds.features.Text()},
        {},
    ),
    lambda rng, t, count: {
        "observation": {"image": picture(rng), "depth": np.zeros((HEIGHT, WIDTH), np.float32)}
        | {"state": rng.normal(size=13)},
        "action": rng.normal(size=15),
        "language_instruction": "",
    },
    card(
        "doubles",
        mode="joint_motion",
        layout=numbered(14) + ", stop: 1 = stop",
        language="{field: steps/language_instruction, when_empty: play with the kitchen}",
        action="[{field: steps/action, size: 15}]",
        frame="none",
        state="{layout: [" + numbered(13) + "], parts: [{field: steps/observation/state, size: 13}]}",
        gripper="unverified",
    ),
)

# One instruction per episode, pictures as bare numbers in the wrong order of colours, lying on their side.
SETS["per_episode"] = RldsSet(
    lambda tfds: (
        {"image": tensor(tfds, np.uint8, HEIGHT, WIDTH, 3), "tip": tensor(tfds, np.float32, 4, 4)},
        {"position": tensor(tfds, np.float32, 3), "gripper": tensor(tfds, np.float32)},
        {},
        {"language": tfds.features.Text(), "other_words": tfds.features.Text()},
    ),
    lambda rng, t, count: {
        "observation": {"image": picture(rng), "tip": np.eye(4, dtype=np.float32) + np.float32(0.125) * t},
        "action": {"position": normal(rng, 3), "gripper": np.float32(0.04 * t)},
    },
    card(
        "per_episode",
        robot="jaco_2",
        mode="end_effector_pose",
        layout="x: m, y: m, z: m, gripper: 1 = open",
        camera_more=", channels: bgr, turn: 90",
        language="{field: [language, other_words]}",
        action="[{field: steps/action/position, size: 3}, "
        "{field: steps/action/gripper, size: 1, gripper: {closed: 0, open: 0.08}}]",
        gripper="command",
        more="  end_effector_position: {field: steps/observation/tip, take: [3, 7, 11]}\n",
    ),
    lambda rng, index: {"language": f"push block {index}", "other_words": "" if index else "move it"},
)

# What TFDS can store besides: compressed and shapeless tensors, sequences in steps, small and unsigned integers.
SETS["odd_types"] = RldsSet(
    lambda tfds: (
        {
            "image": image(tfds),
            "zipped": tensor(tfds, np.float64, 2, 3, encoding="zlib"),
            "raw": tensor(tfds, np.uint8, 5, encoding="bytes"),
            "shapeless": tensor(tfds, np.int16, None, None, encoding="zlib"),
            "names": tfds.features.Sequence(tfds.features.Text()),
            "boxes": tfds.features.Sequence({"corner": tensor(tfds, np.float32, 2), "id": np.uint8}),
            "kind": tfds.features.ClassLabel(num_classes=4),
            "signed": np.int8,
            "unsigned": np.uint64,
            "half": tensor(tfds, np.float16, 2),
            "words": tensor(tfds, np.str_, 2),
            "frames": tfds.features.Video(shape=(None, HEIGHT, WIDTH, 3), encoding_format="png"),
        },
        tensor(tfds, np.float32, 1),
        {"language_instruction": tfds.features.Text()},
        {"whole": tensor(tfds, np.float32, None, 2), "tags": tfds.features.Sequence(tfds.features.Text())},
    ),
    lambda rng, t, count: {
        "observation": {
            "image": picture(rng),
            "zipped": rng.normal(size=(2, 3)),
            "raw": np.arange(5, dtype=np.uint8) + np.uint8(t),
            "shapeless": np.arange((t + 1) * 2, dtype=np.int16).reshape(t + 1, 2) - 1,
            "names": ["cup"] * (t % 3),
            "boxes": [{"corner": normal(rng, 2), "id": 200 + i} for i in range((t + 1) % 3)],
            "kind": t % 4,
            "signed": -t,
            "unsigned": 2**64 - 1 - t,
            "half": np.float16([t, 0.5]),
            "words": ["a", f"b{t}"],
            "frames": [picture(rng)] * (t % 2),
        },
        "action": normal(rng, 1),
        "language_instruction": "grüße",
    },
    card("odd_types", layout="push: none", action="[{field: steps/action, size: 1}]"),
    lambda rng, index: {"whole": normal(rng, 3 + index, 2), "tags": ["x"] * index},
)


def generate(name: str) -> Iterator[dict[str, Any]]:
    """The episodes of a set in the form that TFDS encodes; the second is one step longer."""
    chosen = SETS[name]
    for index in range(EPISODES):
        rng, count = np.random.default_rng([sorted(SETS).index(name), index]), 3 + index
        steps = [
            chosen.step(rng, t, count)
            | {"is_first": t == 0, "is_last": t == count - 1, "is_terminal": t == count - 1}
            | {"reward": np.float32(t == count - 1), "discount": np.float32(1)}
            for t in range(count)
        ]
        yield {"steps": steps, "number": index} | chosen.episode(rng, index)


def build(name: str, folder: Path, file_format: str = "tfrecord") -> Any:
    """Have TFDS write a set into `folder`; returns its builder."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.rlds import rlds_base

    observation, action, step, episode = SETS[name].features(tfds)
    config = rlds_base.DatasetConfig(
        name="default",
        observation_info=observation,
        action_info=action,
        reward_info=np.float32,
        discount_info=np.float32,
        step_metadata_info=step,
        episode_metadata_info={"number": np.int32} | episode,
    )

    def examples(self: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        for index, item in enumerate(generate(name)):
            yield str(index), item

    methods = {
        "VERSION": tfds.core.Version("1.0.0"),
        "__module__": __name__,
        "pkg_dir_path": None,
        "_info": lambda self: rlds_base.build_info(config, self),
        "_split_generators": lambda self, manager: {"train": examples(self)},
        "_generate_examples": examples,
    }
    base = tfds.core.GeneratorBasedBuilder
    made = type(base)(tfds.core.naming.snake_to_camelcase(name), (base,), methods, skip_registration=True)
    builder = made(data_dir=folder, file_format=file_format)
    builder.download_and_prepare()
    return builder


if __name__ == "__main__":
    for each in SETS:
        build(each, Path(sys.argv[1]))
        features = Path(sys.argv[1], each, "1.0.0", "features.json")
        features.write_text(json.dumps(json.loads(features.read_text()), separators=(",", ":")))
