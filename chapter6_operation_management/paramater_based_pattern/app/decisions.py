"""Decides by the parameters: `stop` comes first, then `active`, then the threshold."""

from collections.abc import Mapping, Sequence

from pydantic import BaseModel

from .parameters import InForce, ModelParameters, Parameters


class Decisions(BaseModel):
    """1 or 0 of each model for each row; `fallback` names the models that have not decided."""

    prediction: list[dict[str, int]]
    parameters: str
    fallback: list[str]


def to_ask(parameters: Parameters) -> dict[str, ModelParameters]:
    """Returns the models that may be asked."""
    if parameters.stop:
        return {}
    return {name: model for name, model in parameters.models.items() if model.active}


def decide(
    in_force: InForce, probabilities: Mapping[str, Sequence[float] | None], rows: int
) -> Decisions:
    """Decides for each row; a model without probabilities stands for its fallback."""
    columns: dict[str, Sequence[int]] = {}
    fallback = []
    for name, model in in_force.values.models.items():
        found = probabilities.get(name)
        if found is not None:
            columns[name] = [int(value >= model.threshold) for value in found]
        else:
            fallback.append(name)
            if model.fallback is not None:
                columns[name] = [model.fallback] * rows
    prediction = [{name: column[row] for name, column in columns.items()} for row in range(rows)]
    return Decisions(prediction=prediction, parameters=in_force.version, fallback=fallback)
