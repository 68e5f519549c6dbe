"""Times and sizes."""

FIGURE_TARGETS: dict[str, tuple[str, float]] = {}


def measure_all(*_: object) -> dict[str, float]:
    return {}
