"""Exports requirements from the lock; run as a program, it makes the lock portable.

It also resolves pipenv, which installs and resolves the lock and therefore cannot be part of it.
"""

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from tools.read.patterns import ROOT, patterns

HEADER = "# Exported from Pipfile.lock by make lock: "
# CPU builds of PyTorch have their own version label and digests. Without both, the pin matches
# whichever build the configured index provides.
UNLABELLED = "torch"
# The version of pipenv is in the first line; to change it, edit that line and run `make lock`.
PIPENV = ROOT / "tools/generate/pipenv-requirements.txt"
PIPENV_HEADER = "# Resolved by make lock: "


class RequirementsError(Exception):
    """A requirements file cannot be exported."""


def remove_old_categories(lock: dict[str, Any], pipfile: dict[str, Any]) -> None:
    """Removes from the lock the categories that the Pipfile no longer has, which pipenv keeps."""
    named = {key_of(name) for name in pipfile}
    for key in lock.keys() - named - {"_meta"}:
        del lock[key]


def make_portable(lock: dict[str, Any]) -> None:
    """Removes from the lock what is valid on one machine only: index URLs and CPU labels."""
    lock["_meta"]["sources"] = []
    for category, packages in lock.items():
        if category != "_meta":
            for name, package in packages.items():
                package.pop("index", None)
                if name == UNLABELLED:
                    package["version"] = package["version"].partition("+")[0]
                    package.pop("hashes", None)


def categories(text: str) -> list[str]:
    """Returns the categories that the first line of a requirements file names."""
    first, _, _ = text.partition("\n")
    if not first.startswith(HEADER):
        raise RequirementsError(f'the first line is not "{HEADER}<categories>"')
    return first.removeprefix(HEADER).split()


def key_of(category: str) -> str:
    """Returns the name that a category of the Pipfile has in the lock."""
    return {"packages": "default", "dev-packages": "develop"}.get(category, category)


def packages_of(lock: dict[str, Any], names: list[str]) -> dict[str, dict[str, Any]]:
    """Returns the packages of some lock categories, sorted by name."""
    locked: dict[str, dict[str, Any]] = {}
    for name in names:
        key = key_of(name)
        if key not in lock or key == "_meta":
            known = ", ".join(key for key in lock if key != "_meta")
            raise RequirementsError(f"the lock has no category {name}; it has: {known}")
        locked |= lock[key]
    return dict(sorted(locked.items()))


def render(lock: dict[str, Any], names: list[str]) -> str:
    """Returns the text of a requirements file: pinned packages with digests."""
    return text_of(HEADER + " ".join(names), packages_of(lock, names))


def text_of(header: str, packages: dict[str, dict[str, Any]]) -> str:
    lines = [header]
    for name, package in packages.items():
        extras = f"[{','.join(package['extras'])}]" if "extras" in package else ""
        marker = f" ; {package['markers']}" if "markers" in package else ""
        digests = "".join(f" \\\n    --hash={digest}" for digest in package.get("hashes", []))
        lines.append(f"{name}{extras}{package['version']}{marker}{digests}")
    return "\n".join(lines) + "\n"


def exported(root: Path = ROOT) -> dict[Path, str]:
    """Returns the text that each pattern's requirements files should have."""
    lock = json.loads((root / "Pipfile.lock").read_text())
    texts = {}
    for pattern in patterns(root):
        for path in sorted(pattern.glob("requirements*.txt")):
            try:
                texts[path] = render(lock, categories(path.read_text()))
            except RequirementsError as error:
                raise RequirementsError(f"{path.relative_to(root)}: {error}") from error
    return texts


def resolved(wanted: str, lock: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns what pip would install, in the versions of the lock where it has any."""
    locked = packages_of(lock, [key for key in lock if key != "_meta"])
    with NamedTemporaryFile("w", suffix=".txt") as constraints:
        constraints.writelines(f"{name}{package['version']}\n" for name, package in locked.items())
        constraints.flush()
        # Every package exists as one wheel for all machines, so one digest is enough.
        pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
        pip += ["--only-binary", ":all:", "--constraint", constraints.name, "--report", "-", wanted]
        report = json.loads(subprocess.run(pip, check=True, stdout=subprocess.PIPE).stdout)
    packages = {
        package["metadata"]["name"].lower(): {
            "version": f"=={package['metadata']['version']}",
            "hashes": [f"sha256:{package['download_info']['archive_info']['hashes']['sha256']}"],
        }
        for package in report["install"]
    }
    return dict(sorted(packages.items()))


def main() -> None:
    path = ROOT / "Pipfile.lock"
    lock = json.loads(path.read_text())
    remove_old_categories(lock, tomllib.loads((ROOT / "Pipfile").read_text()))
    make_portable(lock)
    path.write_text(json.dumps(lock, indent=4, sort_keys=True) + "\n")
    header, _, _ = PIPENV.read_text().partition("\n")
    PIPENV.write_text(text_of(header, resolved(header.removeprefix(PIPENV_HEADER), lock)))


if __name__ == "__main__":
    main()
