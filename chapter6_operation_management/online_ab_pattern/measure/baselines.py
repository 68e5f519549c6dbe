"""A new version with planted faults, and the mesh without what keeps users with one version."""

import numpy as np
from numpy.typing import NDArray

from tools.mesh.istio import Json

from ..app import main
from ..app.model import Model

is_failing = False


class Failing(Model):
    """Predicts, unless it is told to fail."""

    def predict(self, rows: list[list[float]]) -> NDArray[np.float32]:
        if is_failing:
            raise RuntimeError("a planted fault")
        return super().predict(rows)


def without_stickiness(manifest: Json) -> None:
    """Drops sticky.yml."""
    if manifest.get("metadata", {}).get("name") == "sticky":
        manifest.clear()


def without_split(manifest: Json) -> None:
    """Sends every user to the old version."""
    without_stickiness(manifest)
    for route in manifest.get("spec", {}).get("http", []):
        if len(route["route"]) > 1:
            route["route"] = [{"destination": route["route"][0]["destination"]}]


main.Model = Failing  # type: ignore[attr-defined]
app = main.app


@app.post("/fault")
async def plant() -> None:
    """Makes the model fail, or well again."""
    global is_failing
    is_failing = not is_failing
