"""Checks the repository against its rules; prints "FILE: problem; what to do" and exits 1."""

import sys

from tools.check.manifests.shape import CUSTOM_RESOURCES
from tools.check.repository.tree import Repository
from tools.check.rules import all_rules, findings
from tools.read.patterns import ROOT


def main() -> int:
    repository, rules = Repository(ROOT), all_rules()
    for each in CUSTOM_RESOURCES:
        if not each.file.is_file():
            note = f"the schemas of {each.owner} are not available and are not checked"
            print(f"note: {note}", file=sys.stderr)
    found = [finding for rule in rules for finding in findings(repository, rule)]
    print(*found or [f"{len(rules)} rules: all hold"], sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
