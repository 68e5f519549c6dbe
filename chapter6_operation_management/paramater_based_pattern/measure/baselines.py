"""The controls: the proxy, and parts of it, with one mechanism off."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ..app import decisions, main
from ..app.decisions import Decisions, decide, to_ask
from ..app.models import Models
from ..app.parameters import InForce, ModelParameters, Parameters

Probabilities = Mapping[str, Sequence[float] | None]


def ask_all(parameters: Parameters) -> dict[str, ModelParameters]:
    """Asks models that are off, too, as the book's proxy does."""
    return parameters.models


def hide(in_force: InForce, probabilities: Probabilities, rows: int) -> Decisions:
    """Hides the answers of the models that are off."""
    shown = to_ask(in_force.values)
    answers = {name: answer for name, answer in probabilities.items() if name in shown}
    return decide(in_force, answers, rows)


def decide_without_version(in_force: InForce, probabilities: Probabilities, rows: int) -> Decisions:
    return decide(in_force, probabilities, rows).model_copy(update={"parameters": ""})


class Stale:
    """Swaps the version first and the values one request later."""

    def __init__(self) -> None:
        self.values: Parameters | None = None

    def decide(self, in_force: InForce, probabilities: Probabilities, rows: int) -> Decisions:
        old, self.values = self.values or in_force.values, in_force.values
        return decide(in_force.model_copy(update={"values": old}), probabilities, rows)


def decide_backwards(in_force: InForce, probabilities: Probabilities, rows: int) -> Decisions:
    """Compares the wrong way round."""
    right = decide(in_force, probabilities, rows)
    turned = [{name: 1 - value for name, value in row.items()} for row in right.prediction]
    return right.model_copy(update={"prediction": turned})


def default_last(raw: dict[str, Any]) -> dict[str, Any]:
    """Lets `default` replace what the models set themselves, as if it were read after them."""
    models = {name: own | raw["default"] for name, own in raw["models"].items()}
    return raw | {"models": models}


class OneAttempt(Models):
    """Does not try again."""

    async def ask(
        self, name: str, model: ModelParameters, path: str, body: bytes | None, rows: int
    ) -> list[float] | None:
        once = model.model_copy(update={"attempts": 1})
        return await super().ask(name, once, path, body, rows)


app = main.app


@app.post("/without/{mechanism}")
async def switch_off(mechanism: Literal["off", "version", "swap"]) -> None:
    """Switches one mechanism off, and those of before on again."""
    decisions.to_ask = ask_all if mechanism == "off" else to_ask
    decides = {"off": hide, "version": decide_without_version, "swap": Stale().decide}
    decisions.decide = decides[mechanism]
