"""Render one tiny scene with the backend named in MUJOCO_GL; exit 0 if a real picture came out."""

import sys

import mujoco

SCENE = '<mujoco><worldbody><light pos="0 0 2"/><geom size=".4" rgba="1 0 0 1"/></worldbody></mujoco>'

model = mujoco.MjModel.from_xml_string(SCENE)
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
with mujoco.Renderer(model, height=32, width=32) as renderer:
    renderer.update_scene(data)
    picture = renderer.render()
sys.exit(0 if picture.max() > 0 else 1)
