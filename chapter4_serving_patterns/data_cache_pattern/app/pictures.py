"""Returns prepared pictures from the cache; those that are missing are fetched and prepared."""

import asyncio
import json
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Self

from .cache import Cache, Found
from .codec import digest_of, encode, key_of, value_bytes
from .images import PictureError, tensor_from
from .pixels import Preprocessing
from .settings import Settings
from .store import Store


class Pictures:
    """The store, the cache in front of it, and the thread in which pictures are prepared."""

    def __init__(self, settings: Settings) -> None:
        self.freshness = settings.freshness
        file = (settings.model_directory / "preprocessing.json").read_bytes()
        self.preprocessing = Preprocessing(**json.loads(file)["tensor"])
        # The model that was trained with this preprocessing names it so.
        self.pair = sha256(file).hexdigest()
        self.digest = digest_of(self.preprocessing)
        self.store = Store(settings)
        self.cache = Cache(
            settings.redis_url,
            # A request sends one command at a time.
            max_connections=settings.max_requests_at_once,
            deadline_seconds=settings.redis_deadline_seconds,
            lease_seconds=settings.lease_seconds,
            ttl_seconds=settings.ttl_seconds,
            value_bytes=value_bytes(self.preprocessing.side),
        )
        # One, because more would share the core and make every response slower.
        self.thread = ThreadPoolExecutor(max_workers=1)

    @classmethod
    @asynccontextmanager
    async def opened(cls, settings: Settings) -> AsyncIterator[Self]:
        """Yields the pictures, and closes all connections at the end."""
        pictures = cls(settings)
        try:
            yield pictures
        finally:
            await pictures.cache.redis.aclose()
            pictures.store.close()
            pictures.thread.shutdown()

    async def get_many(self, ids: list[str]) -> Found:
        """Returns the prepared picture of each ID.

        Raises:
            UnknownPicturesError: the store has no such picture.
            PictureError: what the store has cannot be prepared.
        """
        has_version = self.freshness == "version"
        versions = await self.store.versions(ids) if has_version else {}
        keys = [key_of(each, versions.get(each), self.digest) for each in ids]
        id_of = dict(zip(keys, ids, strict=True))

        async def compute(missing: list[bytes]) -> list[bytes]:
            return await self.fetch([id_of[key] for key in missing])

        return await self.cache.get_many(keys, compute)

    async def fetch(self, ids: list[str]) -> list[bytes]:
        """Fetches and prepares pictures.

        A picture that has changed since its version was looked up is stored under the old version,
        which nobody asks for any more.
        """
        images = await self.store.pictures(ids)
        return await self.prepared(images, ids)

    async def prepared(self, images: dict[str, bytes], ids: list[str]) -> list[bytes]:
        """Prepares pictures outside the event loop, so that hits and `/health` do not wait."""
        loop = asyncio.get_running_loop()
        return [await loop.run_in_executor(self.thread, self.prepare, i, images[i]) for i in ids]

    def prepare(self, picture_id: str, image: bytes) -> bytes:
        try:
            return encode(tensor_from(image, self.preprocessing))
        except PictureError as error:
            raise PictureError(f"picture {picture_id}: {error}") from error

    async def put(self, picture_id: str, image: bytes) -> tuple[bool, bool]:
        """Stores a picture that can be prepared, and caches it ahead of the first request.

        Returns whether the ID is new, and whether the prepared picture is in the cache.
        """
        [value] = await self.prepared({picture_id: image}, [picture_id])
        version, is_new = await self.store.put(picture_id, image)
        key = key_of(picture_id, version if self.freshness == "version" else None, self.digest)
        return is_new, await self.cache.store({key: value}) == 1
