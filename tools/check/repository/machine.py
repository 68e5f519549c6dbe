"""Rules that keep machine-specific and personal data out of the repository."""

import re
import subprocess
from collections.abc import Iterator

from tools.check.repository.tree import Repository
from tools.check.rules import rule

# Hosts that files may name. Add a host once you know that it is public.
PUBLIC_HOSTS = {
    "download.pytorch.org",
    "github.com",
    # Where npm says that a package accepts money.
    "opencollective.com",
    "wikibook.co.kr",
    "www.cs.toronto.edu",
    # The namespace of SVG.
    "www.w3.org",
}
RESERVED_HOST = re.compile(r"(.+\.)?(example(\.com|\.net|\.org)?|invalid|test|local)")
# The target of a cache mount in a Dockerfile is a path in the image.
MACHINE_PATH = re.compile(
    r"(?<![\w.~-])(?<!type=cache,target=)/(?:root|(?:home|Users)/\w+|opt|mnt)(?![\w-])"
)
URL_HOST = re.compile(r"\bhttps?://((?:[\w-]+\.)+[a-z]{2,})(?![\w.-])")
INDEX_HOST = re.compile(r"\b(?:pypi|artifactory|devpi|nexus)(?:\.[\w-]+)+", re.I)
MAIL_HOST = re.compile(r"(?<![\w.+:/-])[\w.+-]+@((?:[\w-]+\.)+[a-z]{2,})\b")


@rule()
def nothing_that_git_ignores_is_committed(repository: Repository) -> Iterator[str]:
    command = ["git", "ls-files", "-z", "--cached", "--ignored", "--exclude-standard"]
    listing = subprocess.run(command, cwd=repository.root, capture_output=True, check=True)
    for name in filter(None, listing.stdout.decode().split("\0")):
        yield f"{repository.root}/{name}: .gitignore lists this file; run git rm --cached"


@rule()
def no_path_is_of_one_machine(repository: Repository) -> Iterator[str]:
    for _, place, line in repository.lines():
        if found := MACHINE_PATH.search(line):
            yield f"{place}: {found[0]} may exist on one machine only; use a relative path"


@rule()
def no_host_is_a_private_one(repository: Repository) -> Iterator[str]:
    for _, place, line in repository.lines():
        hosts = {host for host in URL_HOST.findall(line) if not RESERVED_HOST.fullmatch(host)}
        for host in sorted(hosts - PUBLIC_HOSTS | set(INDEX_HOST.findall(line))):
            yield f"{place}: {host} may be private; remove it, or add it to PUBLIC_HOSTS"


@rule()
def no_mail_address_is_in_a_file(repository: Repository) -> Iterator[str]:
    for path, place, line in repository.lines():
        mails = [host for host in MAIL_HOST.findall(line) if not RESERVED_HOST.fullmatch(host)]
        if mails and path.name not in {"LICENSE", "AUTHORS"}:
            yield f"{place}: contains a mail address at {mails[0]}; remove it"
