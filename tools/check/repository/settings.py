"""Rules about settings and environment variables."""

import ast
from collections.abc import Iterator

from tools.check.repository.tree import Repository, module
from tools.check.rules import rule
from tools.read.settings import defaults_of, settings_files, settings_in, variables_of

# Variables that a library reads itself: OpenTelemetry defines its own.
OF_LIBRARIES = ("OTEL_",)


@rule()
def compose_sets_only_what_is_read(repository: Repository) -> Iterator[str]:
    for compose in repository.composes:
        for service in compose.built():
            known = variables_of(compose.pattern_dir, service)
            given, by_programs = set(service.environment), set(service.program_variables)
            # A program reads variables that begin with its name, as uvicorn reads UVICORN_LOOP.
            prefixes = (f"{service.command[0].upper()}_", *OF_LIBRARIES)
            own = {name for name in given if name.startswith(prefixes)}
            for name in sorted(given - known - by_programs - own):
                unread = f"{service.name} sets {name}, which no setting reads"
                what = "add it to settings.py, or to x-program-variables with the reason"
                yield f"{compose.path}: {unread}; {what}"
            for name in sorted(by_programs - given | by_programs & known):
                yield f"{compose.path}: x-program-variables need not list {name}; remove it"


@rule()
def every_setting_is_read(repository: Repository) -> Iterator[str]:
    for pattern in repository.patterns:
        for settings in settings_files(pattern):
            read = set()
            for path in settings.parent.rglob("*.py"):
                for node in ast.walk(module(path)):
                    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                        owner = ast.unparse(node.value).lower()
                        if "settings" in owner or (owner, path) == ("self", settings):
                            read.add(node.attr)
            for name in settings_in(settings).keys() - read:
                yield f"{settings}: nothing reads {name}; remove it"


@rule()
def every_setting_has_a_default(repository: Repository) -> Iterator[str]:
    for pattern in repository.patterns:
        for settings in settings_files(pattern):
            for name, field in settings_in(settings).items():
                if not list(defaults_of(field)):
                    yield f"{settings}: {name} has no default; add one that works on a laptop"
