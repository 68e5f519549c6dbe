"""Writes every generated file or, with --check, compares it with what it should be."""

import argparse
import sys
from pathlib import Path

from tools.generate.files import ERRORS, differences, write
from tools.read.patterns import ROOT


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only compare; exit 1 if one differs")
    parser.add_argument("root", nargs="?", type=Path, default=ROOT, help="root of the repository")
    arguments = parser.parse_args()
    try:
        if not arguments.check:
            write(arguments.root)
            return 0
        found = list(differences(arguments.root))
    except ERRORS as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 1
    for difference in found:
        print(f"error: {difference}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
