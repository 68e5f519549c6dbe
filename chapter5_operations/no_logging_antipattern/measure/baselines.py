"""What uvicorn's access log tells, line by line: the evidence of a server that has nothing else."""

import json
import logging
import re
import time
from collections.abc import Iterator
from pathlib import Path

from uvicorn.logging import AccessFormatter

from ..app.incidents import Played

# uvicorn's own format has no time; container runtimes add it.
FORMAT = '%(asctime)s %(levelprefix)s %(client_addr)s - "%(request_line)s" %(status_code)s'
MESSAGE = '%s - "%s %s HTTP/%s" %d'
LINE = re.compile(r'(\S+) INFO: +([\d.]+):\d+ - "\S+ (\S+) HTTP/1.1" (\d+) ')
# All callers come through one proxy.
ADDRESS = "10.0.0.1:50000"


def access_log(played: Played) -> Iterator[str]:
    """Yields the lines that uvicorn would have written about the simulated requests."""
    formatter = AccessFormatter(FORMAT, "%Y-%m-%dT%H:%M:%SZ", use_colors=False)
    formatter.converter = time.gmtime
    for receipt in played.receipts:
        asked = (ADDRESS, "POST", "/predict/label", "1.1", receipt.status)
        record = logging.LogRecord("uvicorn.access", logging.INFO, "", 0, MESSAGE, asked, None)
        record.created = played.start + receipt.call.second
        yield formatter.format(record)


def write_records(lines: Iterator[str], directory: Path) -> None:
    """Writes what the lines say as records, so that the same questions can be asked."""
    directory.mkdir()
    with (directory / "access.jsonl").open("w", encoding="utf-8") as file:
        for number, line in enumerate(lines):
            if not (found := LINE.match(line)):
                raise ValueError(f"not a line of an access log: {line}")
            at, caller, path, status = found.groups()
            told = {"at": at, "caller": caller, "path": path, "status": int(status)}
            file.write(json.dumps({"kind": "request", "id": str(number), **told}) + "\n")
