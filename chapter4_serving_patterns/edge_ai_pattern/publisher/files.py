"""Reads what is published once, so that only known paths have a response."""

import gzip
import json
import re
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".wasm": "application/wasm",
    ".webmanifest": "application/manifest+json",
}
# The files of the page are asked for again with the tag that the browser has; a file whose name is
# its digest never changes; the channel is asked for anew.
REVALIDATE, FOREVER, NEVER = "no-cache", "public, max-age=31536000, immutable", "no-store"
RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
DIGEST = re.compile(r"[0-9a-f]{64}")
PAGE, WORKER, KEY = "index.html", "worker.js", "public_key"


class PublishError(Exception):
    """Something to publish is missing."""


@dataclass(frozen=True)
class File:
    """A file to send; `packed` is its content by gzip, if it is stored so."""

    content: bytes
    media_type: str
    cache_control: str
    packed: bytes | None = None

    @property
    def integrity(self) -> str:
        """The digest as browsers write it."""
        return f"sha256-{b64encode(sha256(self.content).digest()).decode()}"


def read_app(web: Path, models: Path) -> dict[str, File]:
    """Returns the files of the page by path.

    The service worker begins with their digests, so it changes if one of them does, and browsers
    then install the new app.
    """
    try:
        found = {
            f"/{path.name}": File(path.read_bytes(), TYPES[path.suffix], REVALIDATE)
            for path in sorted(web.iterdir())
            if path.suffix in TYPES
        }
        # Pinned: it comes with the page and not with a release.
        found[f"/{KEY}"] = File((models / KEY).read_bytes(), "text/plain", REVALIDATE)
        for name in RUNTIME:
            packed = (web / "runtime" / f"{name}.gz").read_bytes()
            content, media_type = gzip.decompress(packed), TYPES[Path(name).suffix]
            found[f"/runtime/{name}"] = File(content, media_type, REVALIDATE, packed)
        found["/"] = found.pop(f"/{PAGE}")
        worker = found.pop(f"/{WORKER}")
    except (OSError, KeyError) as error:
        raise PublishError(f"run make up in the pattern's directory: {error}") from error
    digests = json.dumps({path: file.integrity for path, file in found.items()})
    content = f"const FILES = {digests};\n".encode() + worker.content
    return found | {f"/{WORKER}": File(content, worker.media_type, REVALIDATE)}


def read_releases(models: Path) -> dict[str, File]:
    """Returns the files of all releases by path, each named by its digest."""
    folder = models / "releases"
    paths = [path for path in folder.iterdir() if DIGEST.fullmatch(path.name)]
    return {
        f"/releases/{path.name}": File(path.read_bytes(), "application/octet-stream", FOREVER)
        for path in paths
    }


def read_channel(models: Path, release: int) -> File:
    """Returns the signed envelope of the release that devices should have."""
    path = models / "releases" / f"{release}.json"
    try:
        return File(path.read_bytes(), TYPES[".json"], NEVER)
    except OSError as error:
        known = ", ".join(sorted(each.stem for each in path.parent.glob("*.json")))
        raise PublishError(f"there is no release {release}; there are: {known}") from error


def headers_of(file: File, accepted: str, tags: str) -> tuple[int, bytes, Mapping[str, str]]:
    """Returns status, content and headers for a request that accepts some encodings."""
    headers = {"content-type": file.media_type, "cache-control": file.cache_control}
    if file.cache_control == REVALIDATE:
        headers["etag"] = f'"{file.integrity}"'
        if headers["etag"] in tags:
            return 304, b"", headers
    if file.packed is None:
        return 200, file.content, headers
    headers["vary"] = "accept-encoding"
    if "gzip" in accepted:
        return 200, file.packed, headers | {"content-encoding": "gzip"}
    return 200, file.content, headers
