"""Asks pip which environments it can make for models that want different versions of a library."""

import os
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from tools.generate.environment import pip_of

# What each of five packages wants; the last two are the library that the models share.
WHEELS = {
    ("iris_model", "1"): "features<2",
    ("wine_model", "1"): "features",
    ("digits_model", "1"): "features>=2",
    ("features", "1"): None,
    ("features", "2"): None,
}
MODELS = ("iris_model", "wine_model", "digits_model")


def write_wheels(directory: Path) -> None:
    """Writes packages without any code, which is all that a resolver reads."""
    for (name, version), wanted in WHEELS.items():
        info = f"{name}-{version}.dist-info"
        requires = f"Requires-Dist: {wanted}\n" if wanted else ""
        files = {
            "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requires}",
            "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            "RECORD": "",
        }
        with zipfile.ZipFile(directory / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
            for file, content in files.items():
                wheel.writestr(f"{info}/{file}", content)


@cache
def pip() -> list[str]:
    """Returns the command of pip, which takes a second to find."""
    return pip_of(Path(sys.prefix))[0]


def resolves(wheels: Path, packages: Iterable[str]) -> bool:
    """Tells whether pip finds versions with which all packages can be in one environment."""
    options = ["--dry-run", "--ignore-installed", "--no-index", "--find-links", str(wheels)]
    run = subprocess.run(
        [*pip(), "--isolated", "install", *options, *packages],
        # No settings of this machine: another folder of wheels might have a package of that name.
        env=os.environ | {"PIP_CONFIG_FILE": os.devnull},
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode and "ResolutionImpossible" not in run.stderr:
        raise RuntimeError(f"pip failed for another reason: {run.stderr}")
    return run.returncode == 0


def environments(wheels: Path, is_together: bool) -> int:
    """Returns how many environments resolve: one for all models, or one for each."""
    wanted = [MODELS] if is_together else [(model,) for model in MODELS]
    return sum(resolves(wheels, packages) for packages in wanted)
