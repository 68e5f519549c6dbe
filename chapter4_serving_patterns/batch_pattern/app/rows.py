"""Moves rows between PostgreSQL and NumPy in the binary format of COPY."""

from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from psycopg2 import sql

from .schema import FEATURES

SIGNATURE = b"PGCOPY\n\xff\r\n\0"
# The signature, the flags and the length of an extension, both 0.
HEADER = SIGNATURE + bytes(8)
TRAILER = b"\xff\xff"
FLOAT4 = 700

READ = sql.SQL("""COPY (
    SELECT item_id, "values" FROM items WHERE item_id BETWEEN {first} AND {last} AND NOT EXISTS (
        SELECT FROM predictions WHERE item_id = items.item_id AND model_version = {model_version}
    ) ORDER BY item_id
) TO STDOUT (FORMAT binary)""")
WRITE_ITEMS = 'COPY items ("values") FROM STDIN (FORMAT binary)'
WRITE = """COPY predictions (item_id, model_version, job_id, label, probabilities)
FROM STDIN (FORMAT binary)"""


def array_of(width: int) -> np.dtype[np.void]:
    """Describes an array of one dimension, as PostgreSQL sends it."""
    names = ("size", "dimensions", "nulls", "type", "width", "first")
    value = np.dtype([("size", ">i4"), ("value", ">f4")])
    return np.dtype([*((name, ">i4") for name in names), ("values", value, (width,))])


def filled(values: NDArray[np.float32]) -> NDArray[np.void]:
    """Returns each row of values as an array of PostgreSQL."""
    width = values.shape[1]
    arrays = np.zeros(len(values), array_of(width))
    # The size of an array does not include its own four bytes.
    arrays["size"], arrays["dimensions"] = arrays.itemsize - 4, 1
    arrays["type"], arrays["width"], arrays["first"] = FLOAT4, width, 1
    arrays["values"]["size"], arrays["values"]["value"] = 4, values
    return arrays


ITEM = np.dtype(
    [("fields", ">i2"), ("size", ">i4"), ("item_id", ">i8"), ("row", array_of(FEATURES))]
)


def read(cursor: Any, model_version: str, first: int, last: int) -> tuple[NDArray[np.int64], Any]:
    """Returns the ids and the rows of the items in a range that have no prediction."""
    bounds = {"first": first, "last": last, "model_version": model_version}
    query = READ.format(**{name: sql.Literal(value) for name, value in bounds.items()})
    content = BytesIO()
    cursor.copy_expert(query, content)
    found = content.getvalue()
    body = found[len(HEADER) : -len(TRAILER)]
    if found[: len(SIGNATURE)] != SIGNATURE or len(body) % ITEM.itemsize:
        raise ValueError("PostgreSQL has sent rows of another format")
    rows = np.frombuffer(body, ITEM)
    values = rows["row"]["values"]["value"].astype(np.float32)
    return rows["item_id"].astype(np.int64), values


def write(
    cursor: Any,
    model_version: str,
    job_id: int,
    item_ids: NDArray[np.int64],
    probabilities: NDArray[np.float32],
) -> None:
    """Stores the predictions of some items."""
    version = model_version.encode()
    columns = {
        "item_id": (">i8", item_ids),
        "model_version": (f"S{len(version)}", version),
        "job_id": (">i8", job_id),
        # The first of several most probable labels.
        "label": (">i2", probabilities.argmax(axis=1)),
    }
    arrays = filled(probabilities)
    fields = [("fields", ">i2")]
    for name, (kind, _) in columns.items():
        fields += [(f"{name} size", ">i4"), (name, kind)]
    records = np.zeros(len(item_ids), [*fields, ("array", arrays.dtype)])
    records["fields"] = len(columns) + 1
    for name, (kind, values) in columns.items():
        records[f"{name} size"], records[name] = np.dtype(kind).itemsize, values
    records["array"] = arrays
    copy(cursor, WRITE, records)


def write_items(cursor: Any, values: NDArray[np.float32]) -> None:
    """Stores items."""
    arrays = filled(values)
    records = np.zeros(len(values), [("fields", ">i2"), ("array", arrays.dtype)])
    records["fields"], records["array"] = 1, arrays
    copy(cursor, WRITE_ITEMS, records)


def copy(cursor: Any, statement: str, records: NDArray[np.void]) -> None:
    cursor.copy_expert(statement, BytesIO(HEADER + records.tobytes() + TRAILER))
