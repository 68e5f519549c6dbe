"""Rules about what npm installs."""

import json
from collections.abc import Iterator

from tools.check.repository.tree import Repository, values_of
from tools.check.rules import rule

# npm then writes no addresses into the lock, which are those of one machine's registry.
SETTING = "omit-lockfile-registry-resolved=true"


@rule()
def locks_of_npm_name_no_address(repository: Repository) -> Iterator[str]:
    for path in repository.files_ending("package-lock.json"):
        for _, address in values_of(json.loads(path.read_text("utf-8")), "resolved"):
            yield f"{path}: {address} may be of one machine only; remove every `resolved`"


@rule()
def npm_is_told_to_write_no_address_and_has_a_lock(repository: Repository) -> Iterator[str]:
    for path in repository.files_ending("package.json"):
        settings, lock = path.with_name(".npmrc"), path.with_name("package-lock.json")
        if not settings.is_file() or SETTING not in settings.read_text("utf-8").splitlines():
            yield f"{settings}: npm would write addresses into the lock; write {SETTING}"
        if not lock.is_file():
            yield f"{lock}: npm ci needs a lock; run npm install --package-lock-only"
