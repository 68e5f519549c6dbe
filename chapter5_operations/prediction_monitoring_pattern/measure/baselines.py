"""The API with a switch: while the file FAILING exists, one prediction in five is a 500."""

import os
from pathlib import Path
from typing import Any

from fastapi import HTTPException, Request

from ..app import logged, main

FAILING = Path(os.environ.get("FAILING", "/nowhere"))
predict_and_log = logged.predict_and_log
app = main.app


def fail(request: Request, rows: list[list[float]], **marks: bool) -> Any:
    if FAILING.exists() and request.scope["job_id"][0] in "012":
        raise HTTPException(500, "planted")
    return predict_and_log(request, rows, **marks)


logged.predict_and_log = fail
