"""The corpus of request bodies that every server must reject.

The bodies fit rows of any width, or texts such as IDs: the server's own description of an entry
defines what is valid. Each body comes with part of the reason that the error must give.
"""

import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple


class Bad(NamedTuple):
    """A body, and part of the reason in the error."""

    body: bytes
    reason: str


@dataclass(frozen=True)
class Rows:
    """A server's description of valid rows: a sample, the bounds of a value, and the row limit."""

    sample: list[float]
    lowest: float
    highest: float
    most: int
    # Of each column, if they differ; the two above are those of the first.
    bounds: Sequence[tuple[float, float]] = ()

    @property
    def width(self) -> int:
        return len(self.sample)

    @property
    def value(self) -> str:
        """A short valid value, so that many rows fit into a body."""
        return json.dumps(next(v for v in (1, 0, self.lowest) if self.lowest <= v <= self.highest))

    def row(self, first: str | None = None, width: int | None = None) -> str:
        """A row that is valid unless the given first value or width is not."""
        width = self.width if width is None else width
        usual = [*map(str, self.sample)] if self.bounds else [self.value] * self.width
        values = [first or usual[0], *usual[1:], self.value][:width]
        return f"[{','.join(values)}]"

    def body(self, first: str) -> str:
        """A request with one row, given its first value."""
        return f'{{"data": [{self.row(first)}]}}'

    @property
    def valid(self) -> list[list[float]]:
        """Different rows, also at the bounds."""
        if self.bounds:
            return [self.sample, *([bound[at] for bound in self.bounds] for at in (0, 1))]
        outermost = [[bound] * self.width for bound in (self.lowest, self.highest)]
        usual = [float(self.value)] * self.width
        return [self.sample, usual, *outermost, self.sample[::-1]][: self.most]

    @property
    def nulls(self) -> list[Any]:
        """As many invalid values as are possible."""
        return [[None] * self.width] * self.most

    @property
    def structure(self) -> tuple[str, str]:
        """The type and the shape of one row, as the book describes them."""
        return "float32", f"(1,{self.width})"


@dataclass(frozen=True)
class Texts:
    """A server's description of valid texts, such as IDs: a sample, the limit, the pattern."""

    sample: str
    most: int
    pattern: str | None = None

    @property
    def valid(self) -> list[str]:
        return [self.sample] * min(self.most, 3)

    @property
    def nulls(self) -> list[Any]:
        return [None] * self.most

    @property
    def structure(self) -> tuple[str, str]:
        return "str", "(1,1)"


class Pictures(Texts):
    """Texts that are pictures in base64."""


NOT_JSON: Mapping[str, tuple[str | bytes, str]] = {
    "empty": ("", "Invalid JSON"),
    "white space": ("   ", "Invalid JSON"),
    "cut off in the name": ('{"da', "Invalid JSON"),
    "cut off": ("{", "Invalid JSON"),
    "single quotes": ("{'data': []}", "Invalid JSON"),
    "no quotes": ("{data: []}", "Invalid JSON"),
    "a comment": ("{} // nothing", "Invalid JSON"),
    "two documents": ("{} {}", "Invalid JSON"),
    "a form": ("data=5.1&data=3.5", "Invalid JSON"),
    "XML": ("<data/>", "Invalid JSON"),
    "4,000 levels of lists": ("[" * 4_000 + "]" * 4_000, "recursion limit"),
    "2,000 levels of objects": ('{"data":' * 2_000 + "1" + "}" * 2_000, "recursion limit"),
    "4,000 brackets": ("[" * 4_000, "recursion limit"),
    "bytes that are no text": (b"\xff\xff", "Invalid JSON"),
    "a byte order mark": (b"\xef\xbb\xbf{}", "Invalid JSON"),
    "a PDF": (b"%PDF-1.4 \x80", "Invalid JSON"),
    "a PNG": (b"\x89PNG\r\n\x1a\n", "Invalid JSON"),
    "gzip": (b"\x1f\x8b\x08\x00\x00\x00", "Invalid JSON"),
}
NO_OBJECT: Mapping[str, tuple[str, str]] = {
    "null": ("null", "an object"),
    "true": ("true", "an object"),
    "a number": ("1", "an object"),
    "a text": ('"data"', "an object"),
    "an empty list": ("[]", "an object"),
    "a list of objects": ("[{}]", "an object"),
}
UNKNOWN_FIELDS: Mapping[str, tuple[str, str]] = {
    "an unknown field": ('{"xyzzy": 1}', "Extra inputs"),
    "2,000 unknown fields": (
        "{" + ",".join(f'"field{number}": 1' for number in range(2_000)) + "}",
        "unknown fields",
    ),
    "a field name of 20 kB": (f'{{"{"x" * 20_000}": 1}}', "Extra inputs"),
}


class Unsupported(NamedTuple):
    """A body in another format than JSON, its headers, and part of the reason in the error."""

    body: bytes
    headers: dict[str, str]
    reason: str


def unsupported(valid: bytes) -> dict[str, Unsupported]:
    """Returns bodies in other formats, given a valid one."""
    text, row = valid.decode(), b"5.1,3.5,1.4,0.2\n"
    zipped = gzip.compress(valid)
    json_type, form = ("application/json", "application/x-www-form-urlencoded")
    kinds: dict[str, tuple[bytes, str, str]] = {
        "UTF-16": (text.encode("utf-16"), json_type, "UTF-16"),
        "UTF-16 without a mark": (text.encode("utf-16-be"), json_type, "UTF-16"),
        "UTF-16 as its charset says": (
            text.encode("utf-16"),
            f"{json_type}; charset=utf-16",
            "UTF-16",
        ),
        "UTF-32": (text.encode("utf-32"), "text/plain", "UTF-32"),
        "zero bytes": (b"\x00" * 100, json_type, "UTF-32"),
        "CSV": (row * 2, "text/csv", "text/csv"),
        "CSV with a charset": (row * 2, "Text/CSV; charset=utf-8", "text/csv"),
        "CSV that curl sends": (row, form, form),
        "CSV without a type": (row, "", "no Content-Type"),
        "a form": (b"data=5.1&data=3.5", form, form),
        "XML": (b"<data/>", "application/xml", "application/xml"),
        "a PNG": (b"\x89PNG\r\n\x1a\n", "image/png", "image/png"),
        "a gzip file": (zipped, "application/gzip", "application/gzip"),
    }
    found = {
        name: Unsupported(body, {"content-type": media_type}, reason)
        for name, (body, media_type, reason) in kinds.items()
    }
    for coding in ("gzip", "GZIP", "br", "gzip, identity"):
        headers = {"content-type": json_type, "content-encoding": coding}
        found[f"the coding {coding}"] = Unsupported(zipped, headers, coding.lower())
    return found


def of_any_object(required: bool) -> dict[str, Bad]:
    """Returns bodies that are invalid wherever a JSON object is expected."""
    found = {**NOT_JSON, **NO_OBJECT, **UNKNOWN_FIELDS}
    if required:
        found["no field"] = ("{}", "Field required")
    return {name: bad(*parts) for name, parts in found.items()}


def of_any_list() -> dict[str, Bad]:
    """Returns bodies that are invalid wherever a JSON list of objects is expected."""
    objects = {"an object": "{}"} | {name: body for name, (body, _) in UNKNOWN_FIELDS.items()}
    values = {"null": "null", "true": "true", "a number": "1", "a text": '"data"'}
    found = {
        **NOT_JSON,
        **{name: (body, "valid array") for name, body in (objects | values).items()},
        "a list of numbers": ("[1]", "an object"),
        "a list of lists": ("[[]]", "an object"),
        "a list of nothing": ("[null]", "an object"),
    }
    return {name: bad(*parts) for name, parts in found.items()}


def of_rows(rows: Rows) -> dict[str, Bad]:
    """Returns bodies that are invalid where `{"data": rows}` is expected."""
    row, value, width = rows.row(), rows.value, rows.width
    least = f"at least {width} item"
    found: dict[str, tuple[str | bytes, str]] = {
        "a list of rows": (f"[{row}]", "an object"),
        "a misspelt field": (f'{{"dat": [{row}]}}', "Field required"),
        "a field in capitals": (f'{{"DATA": [{row}]}}', "Field required"),
        "a field too many": (f'{{"data": [{row}], "model": "x"}}', "Extra inputs"),
        "data twice": (f'{{"data": [{row}], "data": []}}', "at least 1 item"),
        "data is null": ('{"data": null}', "valid array"),
        "data is true": ('{"data": true}', "valid array"),
        "data is a number": (f'{{"data": {value}}}', "valid array"),
        "data is a text": (f'{{"data": "{value}"}}', "valid array"),
        "data is an object": (f'{{"data": {{"0": {row}}}}}', "valid array"),
        "data is no text": (b'{"data": "\xff"}', "Invalid JSON"),
        "half a character": ('{"data": "\\ud800"}', "Invalid JSON"),
        "a row without brackets": (f'{{"data": [{value}]}}', "valid array"),
        "no rows": ('{"data": []}', "at least 1 item"),
        "too many rows": (f'{{"data": [{",".join([row] * (rows.most + 1))}]}}', "at most"),
        "an empty row": ('{"data": [[]]}', least),
        "a value too few": (f'{{"data": [{short_row(rows)}]}}', least),
        "a value too many": (f'{{"data": [{rows.row(width=width + 1)}]}}', "at most"),
        "ragged rows": (f'{{"data": [{row}, {short_row(rows)}]}}', least),
        "an empty second row": (f'{{"data": [{row}, []]}}', least),
        "a row too deep": (f'{{"data": [[{row}]]}}', "valid number"),
        "a null row": ('{"data": [null]}', "valid array"),
        "a row that is a text": ('{"data": ["row"]}', "valid array"),
        "a row that is an object": ('{"data": [{}]}', "valid array"),
        "cut off in a row": (f'{{"data": [[{value}, {value}', "Invalid JSON"),
        "a trailing comma": (f'{{"data": [{row},]}}', "Invalid JSON"),
        "something after the end": (f'{{"data": [{row}]}}\x00', "Invalid JSON"),
    }
    for name, (first, reason) in wrong_values(rows).items():
        found[name] = (rows.body(first), reason)
    return {name: bad(*parts) for name, parts in found.items()}


def of_entries(rows: Rows | Texts) -> dict[str, Bad]:
    """Returns bodies that are invalid where `{"data": rows}` is expected, whatever a row is."""
    if isinstance(rows, Rows):
        return of_rows(rows)
    return of_pictures(rows) if isinstance(rows, Pictures) else of_texts(rows)


def of_texts(texts: Texts) -> dict[str, Bad]:
    """Returns bodies that are invalid where `{"data": texts}` is expected."""
    text = json.dumps(texts.sample)
    found: dict[str, tuple[str | bytes, str]] = {
        "a list of texts": (f"[{text}]", "an object"),
        "a misspelt field": (f'{{"dat": [{text}]}}', "Field required"),
        "a field in capitals": (f'{{"DATA": [{text}]}}', "Field required"),
        "a field too many": (f'{{"data": [{text}], "model": "x"}}', "Extra inputs"),
        "data twice": (f'{{"data": [{text}], "data": []}}', "at least 1 item"),
        "no texts": ('{"data": []}', "at least 1 item"),
        "too many texts": (f'{{"data": [{",".join([text] * (texts.most + 1))}]}}', "at most"),
        "data is no text": (b'{"data": "\xff"}', "Invalid JSON"),
        "half a character": ('{"data": ["\\ud800"]}', "Invalid JSON"),
        "cut off in a text": ('{"data": ["', "Invalid JSON"),
        "a trailing comma": (f'{{"data": [{text},]}}', "Invalid JSON"),
        "something after the end": (f'{{"data": [{text}]}}\x00', "Invalid JSON"),
    }
    for value in ("null", "true", "1", text, '{"0": "x"}'):
        found[f"data is {value[:20]}"] = (f'{{"data": {value}}}', "valid array")
    for value in ("null", "true", "false", "0", "1.5", "[]", f"[{text}]", "{}"):
        found[f"the text {value[:20]}"] = (f'{{"data": [{value}]}}', "valid string")
        found[f"the second text {value[:20]}"] = (f'{{"data": [{text}, {value}]}}', "valid string")
    for value in ("NaN", "Infinity", "-Infinity"):
        found[f"the text {value}"] = (f'{{"data": [{value}]}}', "valid string")
    if texts.pattern:
        for value in OUTSIDE_A_PATTERN:
            body = json.dumps({"data": [texts.sample, value]})
            found[f"the text {value[:20]!r}"] = (body, "should match pattern")
    return {name: bad(*parts) for name, parts in found.items()}


# None is an ID, and each has a meaning somewhere else.
OUTSIDE_A_PATTERN = (
    *("", " ", ".", "..", "../x", "/etc/passwd", "a/b", "a\\b", "a:b", "a\n", "\0", "a\0b"),
    *("é", "٣", "'; DROP TABLE x; --", "%2e%2e", "{a}", "*", "$(id)", "x" * 5_000),
)


def of_pictures(pictures: Pictures) -> dict[str, Bad]:
    """Returns bodies that are invalid where `{"data": pictures}` is expected."""
    picture = json.dumps(pictures.sample)
    unfinished = json.dumps(pictures.sample[: len(pictures.sample) // 8 * 4])
    found: dict[str, tuple[str | bytes, str]] = {
        "a list of pictures": (f"[{picture}]", "an object"),
        "a misspelt field": (f'{{"dat": [{picture}]}}', "Field required"),
        "a field in capitals": (f'{{"DATA": [{picture}]}}', "Field required"),
        "a field too many": (f'{{"data": [{picture}], "model": "x"}}', "Extra inputs"),
        "data twice": (f'{{"data": [{picture}], "data": []}}', "at least 1 item"),
        "data is null": ('{"data": null}', "valid array"),
        "data is a number": ('{"data": 1}', "valid array"),
        "data is a picture": (f'{{"data": {picture}}}', "valid array"),
        "data is an object": (f'{{"data": {{"0": {picture}}}}}', "valid array"),
        "half a character": ('{"data": "\\ud800"}', "Invalid JSON"),
        "no pictures": ('{"data": []}', "at least 1 item"),
        "too many": (f'{{"data": [{",".join([picture] * (pictures.most + 1))}]}}', "at most"),
        "a null picture": ('{"data": [null]}', "valid string"),
        "a number": ('{"data": [1]}', "valid string"),
        "true": ('{"data": [true]}', "valid string"),
        "pixels": ('{"data": [[0, 255]]}', "valid string"),
        "an object as picture": ('{"data": [{}]}', "valid string"),
        "an empty text": ('{"data": [""]}', "at least 1 character"),
        "no base64": ('{"data": ["%%%%"]}', "base64"),
        "base64 that is cut off": (f'{{"data": [{picture[:-2]}"]}}', "base64"),
        "base64 with a line break": (f'{{"data": [{picture[:50]}\\n{picture[50:]}]}}', "base64"),
        "other letters": ('{"data": ["\u00e4\u00e4\u00e4\u00e4"]}', "base64"),
        "no picture": ('{"data": ["AAAA"]}', "not a picture"),
        "only padding": ('{"data": ["===="]}', "picture 0"),
        "half a picture": (f'{{"data": [{unfinished}]}}', "incomplete"),
        "a second one that is none": (f'{{"data": [{picture}, "AAAA"]}}', "picture 1"),
        "cut off in a picture": (f'{{"data": [{picture[:50]}', "Invalid JSON"),
        "a trailing comma": (f'{{"data": [{picture},]}}', "Invalid JSON"),
        "something after the end": (f'{{"data": [{picture}]}}\x00', "Invalid JSON"),
    }
    return {name: bad(*parts) for name, parts in found.items()}


def wrong_values(rows: Rows) -> dict[str, tuple[str, str]]:
    """Returns invalid values."""
    return {
        "a null value": ("null", "valid number"),
        "true": ("true", "valid number"),
        "false": ("false", "valid number"),
        "a number as text": ('"1.5"', "valid number"),
        "an empty text": ('""', "valid number"),
        "a value too deep": (f"[{rows.value}]", "valid number"),
        "an object as value": ("{}", "valid number"),
        "NaN": ("NaN", "finite number"),
        "infinity": ("Infinity", "finite number"),
        "minus infinity": ("-Infinity", "finite number"),
        "NaN as text": ('"NaN"', "valid number"),
        "above float64": ("1e999", "finite number"),
        "below float64": ("-1e999", "finite number"),
        "a number of 400 digits": ("9" * 400, "number"),
        "above the highest": (json.dumps(beyond(rows.highest)), "less than or equal"),
        "below the lowest": (json.dumps(-beyond(-rows.lowest)), "greater than or equal"),
        "above float32": ("1e39", "less than or equal"),
        "below float32": ("-1e39", "greater than or equal"),
        "hexadecimal": ("0x10", "Invalid JSON"),
        "a leading zero": ("01", "Invalid JSON"),
        "a plus sign": ("+1", "Invalid JSON"),
        "no digit before the point": (".5", "Invalid JSON"),
    }


def at_the_limit(limit_bytes: int, rows: Rows | Texts | None) -> dict[str, bytes]:
    """Returns bodies of the maximum size that contain many small errors."""
    found = {
        "unknown fields": filled(limit_bytes, "{", (f'"k{number}":0' for number in count()), "}"),
        "lists in a field": filled(limit_bytes, '{"k":[', iter(lambda: "[[[[0]]]]", ""), "]}"),
        "brackets": b"[" * limit_bytes,
    }
    if rows:
        found |= {
            "numbers for entries": filled(limit_bytes, '{"data":[', iter(lambda: "0", ""), "]}"),
            "texts for entries": filled(limit_bytes, '{"data":[', iter(lambda: '""', ""), "]}"),
            "one endless text": b'{"data":["' + b"x" * (limit_bytes - 13) + b'"]}',
        }
    if isinstance(rows, Rows):
        wrong_row = json.dumps([""] * rows.width)
        found |= {
            "empty rows": filled(limit_bytes, '{"data":[', iter(lambda: "[]", ""), "]}"),
            "one endless row": filled(limit_bytes, '{"data":[[', iter(lambda: "0", ""), "]]}"),
            "rows of texts": filled(limit_bytes, '{"data":[', iter(lambda: wrong_row, ""), "]}"),
        }
    return found


def filled(limit_bytes: int, start: str, parts: Iterable[str], end: str) -> bytes:
    """Joins as many parts as fit with commas, between a start and an end."""
    chosen: list[str] = []
    size = len(start) + len(end)
    for part in parts:
        size += len(part) + 1
        if size > limit_bytes + 1:
            break
        chosen.append(part)
    return f"{start}{','.join(chosen)}{end}".encode()


def beyond(bound: float) -> float:
    """Returns a number slightly above a bound."""
    return bound + max(abs(bound), 1) * 0.01


def short_row(rows: Rows) -> str:
    return rows.row(width=rows.width - 1) if rows.width > 1 else "[]"


def bad(body: str | bytes, reason: str) -> Bad:
    return Bad(body.encode() if isinstance(body, str) else body, reason)
