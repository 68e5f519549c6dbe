"""The container of Codespaces and VS Code has the right Python and shows every page."""

import json
import re
import tomllib

from tools.read.patterns import ROOT, patterns


def test_the_container_fits_the_lock_and_the_readmes() -> None:
    container = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text("utf-8"))
    assert set(container) == {"name", "image", "features", "forwardPorts"}
    python = tomllib.loads((ROOT / "Pipfile").read_text("utf-8"))["requires"]["python_version"]
    oldest = python.removeprefix(">=")
    assert container["image"] == f"mcr.microsoft.com/devcontainers/python:{oldest}-bookworm"
    readmes = "".join((pattern / "README.md").read_text("utf-8") for pattern in patterns())
    pages = {int(port) for port in re.findall(r"<http://localhost:(\d+)", readmes)}
    assert container["forwardPorts"] == sorted(pages)
