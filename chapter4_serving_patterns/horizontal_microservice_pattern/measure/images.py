"""Counts the images that a new model of one service changes; it needs Docker."""

from tools.measure.docker import build_options, docker
from tools.read.compose import Build, Compose, load

from .processes import HERE

UPDATED = "virginica"


def build(compose: Compose, name: str, seed: int) -> str:
    """Builds the image of a service with a model of this seed, and returns its digest."""
    service = compose.services[name].build or Build()
    given = {arg: value for arg, value in service.args.items() if value} | {"SEED": str(seed)}
    arguments = [word for arg, value in given.items() for word in ("--build-arg", f"{arg}={value}")]
    options = [*build_options(compose, name), *arguments, "--target", service.target or ""]
    return docker("build", "--quiet", *options, str(HERE))


def count_images_of_one_update() -> int:
    """Trains one service anew, and counts the images that are others than before."""
    compose = load(HERE, variables={})
    names = [*compose.of_up()]
    before = {name: build(compose, name, seed=0) for name in names}
    after = {name: build(compose, name, seed=int(name == UPDATED)) for name in names}
    return sum(before[name] != after[name] for name in names)
