"""Stand-in for PyRep: it wants CoppeliaSim's folder and library path, and a display when it launches."""

import os

from pyrep.errors import PyRepError

__version__ = "4.1.0.3"

if os.environ.get("COPPELIASIM_ROOT", "") not in os.environ.get("LD_LIBRARY_PATH", "").split(":"):
    raise ImportError("libcoppeliaSim.so.1: cannot open shared object file: No such file or directory")


class PyRep:
    def __init__(self) -> None:
        if "COPPELIASIM_ROOT" not in os.environ:
            raise PyRepError("COPPELIASIM_ROOT not defined.")
        self.launched = False

    def launch(self, scene_file: str = "", headless: bool = False) -> None:
        if not os.environ.get("DISPLAY"):
            print('qt.qpa.xcb: could not connect to display ""', flush=True)
            os.abort()
        self.launched = True

    def shutdown(self) -> None:
        self.launched = False
