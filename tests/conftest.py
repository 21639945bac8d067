"""Every test draws with the library that the simulator chooses; that must happen before mujoco is imported."""

import llarva.tabletop.gl  # noqa: F401
