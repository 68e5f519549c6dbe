"""Rules about Dockerfiles and their images."""

import json
import re
from collections.abc import Iterator

from tools.check.repository.tree import Repository
from tools.check.rules import rule
from tools.read.command import without_address
from tools.read.compose import Build
from tools.read.dockerfile import stages

# PyTorch is locked without a digest, so that pip can choose the build. It is installed separately.
UNHASHED = ["-r", "torch.txt"]
# These may hold a password, so a build gets them as secrets, named in lower case.
INDEXES = ["PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"]
PROXIES = {"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"}


@rule()
def dockerfiles_are_clean_for_hadolint(repository: Repository) -> Iterator[str]:
    options = ["--no-color", "--disable-ignore-pragma"]
    for line in repository.output_of("hadolint", *options, *map(str, repository.dockerfiles)):
        yield re.sub(r":(\d+) ", r":\1: ", f"{line}; see hadolint's wiki", count=1)


@rule()
def base_images_have_a_version(repository: Repository) -> Iterator[str]:
    for path in repository.dockerfiles:
        found = stages(path)
        for image in {stage.image for stage in found.values()} - found.keys():
            if not has_version(image):
                yield f"{path}: {image} is not pinned; write IMAGE:VERSION"


def has_version(image: str) -> bool:
    tag = image.rpartition("/")[2].partition("@")[0].partition(":")[2]
    return bool(re.search(r"\d", tag)) and "$" not in image


@rule()
def image_runs_as_a_numeric_user_who_is_not_root(repository: Repository) -> Iterator[str]:
    for path, stage, _ in repository.served_stages():
        if not re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", user := stage.last("USER")):
            yield f"{path}: USER is {user or 'root'}; use a numeric id such as 10001:10001"


@rule()
def image_starts_what_compose_starts(repository: Repository) -> Iterator[str]:
    for path, stage, services in repository.served_stages():
        try:
            command = list(json.loads(stage.last("CMD")))
        except ValueError:
            yield f'{path}: CMD is not in exec form; write CMD ["program", "argument"]'
            continue
        # Replicas have their own address in Compose, but the image's address in Kubernetes.
        comparable = without_address if any(service.labels for service in services) else list
        if comparable(command) not in [comparable(service.command) for service in services]:
            names = ", ".join(service.name for service in services)
            yield f"{path}: CMD differs from the Compose command of {names}; use the same"


@rule()
def variables_of_images_also_hold_without_docker(repository: Repository) -> Iterator[str]:
    for path, stage, services in repository.served_stages():
        for name, value in stage.variables().items():
            for service in services:
                if re.search(r"^/|\$", value) and name not in service.environment:
                    what = f"ENV {name}={value} has a meaning in the image only"
                    yield f"{path}: {what}; set {name} of {service.name} in docker-compose.yml too"


@rule()
def modes_in_images_do_not_depend_on_the_umask(repository: Repository) -> Iterator[str]:
    for path, stage, _ in repository.served_stages():
        for keyword, rest in stage.instructions:
            # pip reads the requirements as root.
            fine = r"--(chmod|from)=|^requirements[\w-]*\.txt \.$"
            if keyword in {"ADD", "COPY"} and not re.search(fine, rest):
                yield f"{path}: {keyword} {rest} keeps the modes of the clone; add --chmod=755"


@rule()
def chmod_in_images_leaves_directories_open(repository: Repository) -> Iterator[str]:
    for path in repository.dockerfiles:
        runs = {rest for stage in stages(path).values() for _, rest in stage.instructions}
        for found in sorted({each for run in runs for each in re.findall(r"chmod \d+ \S*\*", run)}):
            reason = "shuts the directories that it matches"
            yield f"{path}: `{found}` {reason}; write chmod -R a=rX and the directory"


@rule()
def pip_checks_hashes_in_images(repository: Repository) -> Iterator[str]:
    for path in repository.dockerfiles:
        runs = " && ".join(rest for s in stages(path).values() for _, rest in s.instructions)
        for words in (part.split() for part in re.split(r"&&|[;|]", runs)):
            others = [word for word in words if word != "--no-compile"]
            hashed = "--require-hashes" in words or others[-3:] == ["install", *UNHASHED]
            if {"pip", "install"} <= set(words) and not hashed:
                yield f"{path}: `{' '.join(words)}` does not verify hashes; add --require-hashes"


@rule()
def pip_in_images_uses_the_indexes_of_the_shell(repository: Repository) -> Iterator[str]:
    for path in repository.dockerfiles:
        runs = {rest for stage in stages(path).values() for _, rest in stage.instructions}
        for run in (run for run in runs if re.search(r"\bpip (.* )?install ", run)):
            for name in INDEXES:
                secret = name.lower()
                mount = f"--mount=type=secret,id={secret}"
                value = f'{name}="$(cat /run/secrets/{secret})"'
                for missing in (part for part in (mount, value) if part not in run):
                    yield f"{path}: pip does not see {name} in `{run[:50]}`; add {missing}"


@rule()
def builds_get_the_indexes_and_proxies_of_the_shell(repository: Repository) -> Iterator[str]:
    secrets = {name.lower(): name for name in INDEXES}
    for compose in repository.composes:
        for service in compose.built():
            build = service.build or Build()
            given = {name: compose.secrets[name] for name in build.secrets}
            unset = {name for name, value in build.args.items() if value is None}
            if given != secrets or not unset >= PROXIES:
                what = f"the build of {service.name} gets other secrets or arguments"
                yield f"{compose.path}: {what}; copy x-build and secrets of web_single_pattern"


@rule()
def docker_context_begins_with_nothing(repository: Repository) -> Iterator[str]:
    for path in repository.files_ending(".dockerignore"):
        lines = [line for line in path.read_text("utf-8").splitlines() if line[:1] not in {"", "#"}]
        if lines[:1] != ["*"]:
            yield f"{path}: it lists exclusions; start with `*`, then allow files with `!`"
