"""Rules against secrets in plain text."""

import re
from collections.abc import Iterator

from tools.check.manifests.subjects import (
    Container,
    Object,
    every_container,
    kustomizations,
    mapping,
    of_kind,
)
from tools.check.rules import rule

SECRET_WORD = re.compile("PASSWORD|TOKEN|SECRET|KEY")
# A name with one of these endings is a property of a secret, not the secret itself.
SECRET_ATTRIBUTE = re.compile("_(FILE|PATH|SECONDS|LENGTH|BYTES)$")
PASSWORD_IN_ADDRESS = re.compile(r"://[^/@\s]*:(?!\$\()[^/@\s]+@")


@rule(of_kind("Secret"))
def no_secret_is_written_out(secret: Object) -> Iterator[str]:
    if secret.body.get("data") or secret.body.get("stringData"):
        yield "a Secret in plain text; use a secretGenerator with an env file that is not committed"


@rule(kustomizations)
def no_secret_is_generated_from_literals(kustomization: Object) -> Iterator[str]:
    for generator in kustomization.body.get("secretGenerator") or []:
        if generator.get("literals"):
            yield f"{generator['name']} holds literals; use an env file that is not committed"


@rule(kustomizations)
def files_of_generated_secrets_are_ignored(kustomization: Object) -> Iterator[str]:
    # Git would also take the file of a directory that was copied out.
    gitignore = kustomization.pattern.directory / ".gitignore"
    ignored = gitignore.read_text(encoding="utf-8").splitlines() if gitignore.is_file() else []
    for generator in kustomization.body.get("secretGenerator") or []:
        for name in [*(generator.get("envs") or []), *(generator.get("files") or [])]:
            path = f"manifests/{name.rpartition('=')[2]}"
            if path not in ignored:
                yield f"{path} may be committed; add it to the pattern's .gitignore"


@rule(of_kind("ConfigMap"))
def no_secret_is_in_a_config_map(config_map: Object) -> Iterator[str]:
    for name, value in mapping(config_map.body.get("data")).items():
        if is_secret(name, value):
            yield f"{name} is in plain text; take it from a Secret"


@rule(every_container)
def no_secret_is_in_a_containers_environment(container: Container) -> Iterator[str]:
    for variable in container.body.get("env") or []:
        if is_secret(variable["name"], str(variable.get("value") or "")):
            yield f"{variable['name']} is in plain text; take it from a Secret"


@rule(every_container)
def no_secret_is_in_a_command(container: Container) -> Iterator[str]:
    if any(PASSWORD_IN_ADDRESS.search(word) for word in container.own_command):
        yield "the command contains a password; take it from a Secret"


def is_secret(name: str, value: str) -> bool:
    named = SECRET_WORD.search(name.upper()) and not SECRET_ATTRIBUTE.search(name.upper())
    # An expansion such as $(PASSWORD) takes the value from another variable.
    literal = value and not re.fullmatch(r"\$\(\w+\)", value)
    return bool((named and literal) or PASSWORD_IN_ADDRESS.search(value))
