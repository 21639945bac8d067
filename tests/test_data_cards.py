"""Cards of the 37 subsets of Open X-Embodiment that LLARVA was pre-trained on: all there, and as the overview says."""

import re
from pathlib import Path

import pytest

from llarva.card_fields import UNVERIFIED, Part
from llarva.cards import load_card, load_cards
from llarva.robots import CONTROL_MODES

CARDS = load_cards(Path(__file__).parents[1] / "data_cards")
# Robot, steps per second (0: not given), episodes of the training split, camera, height, width.
OVERVIEW = """
austin_buds_dataset              panda        20     50 image          128 128
austin_sailor_dataset            panda        20    240 image          128 128
austin_sirius_dataset            panda        20    559 image           84  84
bc_z                             google_robot 10  39350 image          171 213
berkeley_autolab_ur5             ur5           5    896 image          480 640
berkeley_cable_routing           panda        10   1482 image          128 128
berkeley_fanuc_manipulation      fanuc_mate   10    415 image          224 224
berkeley_rpt                     panda        30    908 hand_image     480 640
bridge                           widowx        5  25460 image          480 640
cmu_play_fusion                  panda         5    576 image          128 128
columbia_cairlab_pusht_real      ur5          10    122 image          240 320
dlr_edan_shared_control          dlr_edan      5    104 image          360 640
dlr_sara_grid_clamp              dlr_sara     10    107 image          480 640
dlr_sara_pour                    dlr_sara     10    100 image          480 640
fractal20220817_data             google_robot  3  87212 image          256 320
furniture_bench_dataset          panda        10   5100 image          224 224
jaco_play                        jaco_2       10    976 image          224 224
kaist_nonprehensile              panda        10    201 image          480 640
kuka                             kuka_iiwa    10 580392 image          512 640
language_table                   xarm         10 442226 rgb            360 640
maniskill_dataset                panda        20  30213 image          256 256
nyu_franka_play_dataset          panda         3    365 image          128 128
robo_net                         multi_robot   1  82775 image          240 320
roboturk                         sawyer       10   1796 front_rgb      480 640
stanford_hydra_dataset           panda        10    570 image          240 320
stanford_kuka_multimodal_dataset kuka_iiwa    20   3000 image          128 128
stanford_mask_vit                sawyer        0   9109 image          480 480
stanford_robocook                panda         5   2460 image_1        256 256
taco_play                        panda        15   3242 rgb_static     150 200
tokyo_u_lsmo                     cobotta      10     50 image          120 120
toto                             panda        30    902 image          480 640
ucsd_pick_and_place_dataset      xarm          3   1355 image          224 224
utaustin_mutex                   panda        20   1500 image          128 128
utokyo_pr2_opening_fridge        pr2          10     64 image          128 128
utokyo_pr2_tabletop_manipulation pr2          10    192 image          128 128
utokyo_xarm_pick_and_place       xarm         10     92 image          224 224
viola                            panda        20    135 agentview_rgb  224 224
"""
ROWS = [line.split() for line in OVERVIEW.strip().splitlines()]
SUBSETS = [row[0] for row in ROWS]


def test_every_data_set_has_a_card():
    assert len(SUBSETS) == 37
    assert set(CARDS) == {*SUBSETS, "tabletop", "rlbench"}
    assert len({CARDS[name].robot for name in SUBSETS} - {"multi_robot"}) == 13


@pytest.mark.parametrize("row", ROWS, ids=SUBSETS)
def test_cards_agree_with_the_overview(row):
    name, robot, rate, episodes, camera, height, width = row
    card = CARDS[name]
    assert card.format == "rlds" and card.traces == "detection" and card.robot == robot
    assert card.rate_hz == (float(rate) or None) and card.size.episodes == int(episodes)
    assert card.camera.key == f"steps/observation/{camera}"
    assert card.camera.image_size == (int(height), int(width))
    assert card.fields is not None
    assert card.fields.builder in (name, f"{name}_converted_externally_to_rlds")


@pytest.mark.parametrize("name", SUBSETS)
def test_cards_tell_what_their_data_mean(name):
    card = CARDS[name]
    for word in ("**Gripper**", "**Action**", "**State**", "**Camera**", "**Known faults.**", "**Traces.**"):
        assert card.text.count(word) == 1, word
    assert "@" in card.citation and card.citation.count("{") == card.citation.count("}")
    assert UNVERIFIED in card.text or set(card.unverified) <= {"size.steps", "licence"}
    assert 12 <= len(card.text.splitlines()) <= 40
    assert all(len(line) <= 120 for line in card.text.splitlines())
    # The workbench's own modes promise units; a card that cannot keep the promise uses a mode of its own.
    for mode in set(card.control_modes) & set(CONTROL_MODES):
        assert UNVERIFIED not in dict(card.actions[mode]).values()


@pytest.mark.parametrize("name", SUBSETS)
def test_recipes_are_within_the_fields(name):
    fields = CARDS[name].fields
    recipes = [part for parts in fields.actions.values() for part in parts or ()] + list(fields.state or ())
    recipes += [
        p for p in (fields.gripper, fields.end_effector_position, fields.end_effector_rotation) if isinstance(p, Part)
    ]
    assert recipes
    for part in recipes:
        assert part.field.startswith(("steps/action", "steps/observation/"))
        assert part.take is None or len(set(part.take)) == len(part.take)


@pytest.mark.parametrize("name", SUBSETS)
def test_texts_and_recipes_say_the_same(name):
    """A fault that the text admits has its remedy in the head, and what is read is not said to be left out."""
    card = CARDS[name]
    if re.search("empty (instruction|sentence)", card.text):
        assert card.language.when_empty
    if "velocities, left out" in card.text:
        assert not any("velocity" in entry for entry, _ in card.fields.state_layout)


def test_texts_are_their_own():
    seen = {}
    for name in SUBSETS:
        for sentence in CARDS[name].text.replace("\n", " ").split(". "):
            if len(sentence) > 90:
                assert sentence not in seen, f"{name} and {seen.get(sentence)}: {sentence}"
                seen[sentence] = name


def test_the_readme_shows_a_card_that_loads(tmp_path):
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"```markdown\n(.*?)```", readme, re.S)
    (tmp_path / "my_arm.md").write_text(text, encoding="utf-8")
    card = load_card(tmp_path / "my_arm.md")
    assert set(card.unverified) == {"homepage", "citation", "size.steps"}
    assert card.fields.actions["end_effector_delta"][0].scale == (0.001,)
