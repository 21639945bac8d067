"""Prepare this checkout: the virtual environment, its packages, the system's OpenGL library, a browser for one test.

Usage: python tools/setup.py packages run|dev|docs
       python tools/setup.py gl
       python tools/setup.py browser

Called by the Makefile; needs nothing but the standard library. It is written so that an old Python can still parse it
and say which version is wanted.
"""

import os
import shutil
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, ".venv")
VENV_PYTHON = os.path.join(VENV, "bin", "python")
MINIMUM = (3, 11)
# Extras of pyproject.toml for each purpose; a bigger set also serves the purposes before it.
PURPOSES = {"run": ("", ["run"]), "dev": ("[dev]", ["run", "dev"]), "docs": ("[dev,docs]", ["run", "dev", "docs"])}
EGL_PACKAGES = ["libegl1", "libgl1-mesa-dri", "libopengl0"]
OSMESA_PACKAGES = ["libosmesa6"]


def say(text):
    print("[setup] " + text, flush=True)


def stop(text):
    print("[setup] " + text, file=sys.stderr, flush=True)
    raise SystemExit(1)


def touch(name, text=""):
    with open(os.path.join(VENV, name), "w") as file:
        file.write(text)


def apt_command():
    """Return the apt-get command that this user may run without being asked anything, or None."""
    if shutil.which("apt-get") is None:
        return None
    if os.geteuid() == 0:
        return ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get"]
    if shutil.which("sudo") and subprocess.call(["sudo", "-n", "true"], stderr=subprocess.DEVNULL) == 0:
        return ["sudo", "-n", "env", "DEBIAN_FRONTEND=noninteractive", "apt-get"]
    return None


def apt_install(packages):
    """Install system packages where that is possible; return whether it worked."""
    apt = apt_command()
    if apt is None:
        return False
    say("installing system packages: " + " ".join(packages))
    subprocess.call(apt + ["update", "-qq"], stdout=subprocess.DEVNULL)
    install = apt + ["install", "-y", "-qq", "--no-install-recommends"] + packages
    return subprocess.call(install, stdout=subprocess.DEVNULL) == 0


def ensure_python():
    if sys.version_info < MINIMUM:
        found = "%s is %d.%d.%d" % ((sys.executable,) + tuple(sys.version_info[:3]))
        stop("Python 3.11 or newer is needed, %s. Install it, or name it: make PYTHON=/path/to/python3.11" % found)


def ensure_venv():
    """Create .venv with pip inside, installing Debian's separate venv package where it is missing."""
    pip = [VENV_PYTHON, "-m", "pip", "--version"]
    if os.path.exists(VENV_PYTHON) and subprocess.call(pip, stdout=subprocess.DEVNULL) == 0:
        return
    probe = [sys.executable, "-c", "import venv, ensurepip"]
    if subprocess.call(probe, stderr=subprocess.DEVNULL) != 0:
        package = "python%d.%d-venv" % sys.version_info[:2]
        if not (apt_install([package]) and subprocess.call(probe, stderr=subprocess.DEVNULL) == 0):
            stop("%s cannot make virtual environments; install the system package %s." % (sys.executable, package))
    say("creating .venv with %s" % sys.executable)
    subprocess.check_call([sys.executable, "-m", "venv", "--clear", VENV])
    # Debian 12's pip (23.0) cannot resolve some extras under constraints; an old one is kept where no newer can be had.
    upgrade = [VENV_PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--upgrade", "pip"]
    subprocess.call(upgrade, stderr=subprocess.DEVNULL)


def install_packages(purpose):
    ensure_python()
    ensure_venv()
    extras, serves = PURPOSES[purpose]
    say("installing Python packages into .venv (the first time takes a few minutes and about 2 GB)")
    pip = [VENV_PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # Build back ends warn about every editable installation.
    quiet = dict(os.environ, PYTHONWARNINGS="ignore")
    if subprocess.call(pip + ["--constraint", "constraints.txt", "--editable", "." + extras], cwd=ROOT, env=quiet) != 0:
        stop("pip could not install the packages; its message stands above.")
    for name in serves:
        touch(".installed-" + name)


def working_backend():
    """Return the first OpenGL backend that renders a picture here, or None."""
    wanted = os.environ.get("MUJOCO_GL")
    for backend in [wanted] if wanted else ["egl", "osmesa"]:
        environment = dict(os.environ, MUJOCO_GL=backend)
        probe = [VENV_PYTHON, os.path.join(ROOT, "tools", "gl_probe.py")]
        try:
            silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            if subprocess.call(probe, env=environment, timeout=120, **silent) == 0:
                return backend
        except subprocess.TimeoutExpired:
            continue
    return None


def prepare_gl():
    backend = working_backend()
    for packages in (EGL_PACKAGES, OSMESA_PACKAGES):
        if backend is None and apt_install(packages):
            backend = working_backend()
    if backend is None:
        stop(
            "MuJoCo cannot draw: neither EGL nor OSMesa works. Install the system packages %s (or %s) and try again."
            % (" ".join(EGL_PACKAGES), " ".join(OSMESA_PACKAGES))
        )
    say("pictures are drawn with MUJOCO_GL=" + backend)
    touch(".gl", backend)


def is_debian():
    try:
        with open("/etc/os-release") as file:
            return any(line.strip() == "ID=debian" for line in file)
    except OSError:
        return False


def prepare_browser():
    """Install Chromium for the explorer's browser test where that is simple; the test skips itself without one."""
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next((path for path in map(shutil.which, names) if path), "")
    # Ubuntu's chromium package only starts the snap of that name, which containers cannot run.
    if not browser and is_debian() and apt_install(["chromium"]):
        browser = shutil.which("chromium") or ""
    if not browser:
        say("no Chromium found: the browser test will be skipped (install the system package chromium to run it)")
    touch(".browser", browser)


if __name__ == "__main__":
    if sys.argv[1:2] == ["packages"] and sys.argv[2] in PURPOSES:
        install_packages(sys.argv[2])
    elif sys.argv[1:] == ["gl"]:
        prepare_gl()
    elif sys.argv[1:] == ["browser"]:
        prepare_browser()
    else:
        stop("usage: setup.py packages run|dev|docs, setup.py gl, or setup.py browser")
