# Copied from chapter4_serving_patterns/asynchronous_pattern/app/jobs.py
"""The queue: jobs wait in a Redis stream, and each job has a record of its state."""

import json
from hashlib import sha256
from typing import Any, NamedTuple
from uuid import uuid4

from redis import Redis, ResponseError
from redis.asyncio import Redis as AsyncRedis

STREAM, GROUP, COUNTS, DEAD = "jobs", "workers", "jobs:counts", "jobs:dead"
# The finished jobs in their order, each with the memory that it takes.
FINISHED = "jobs:finished"
DEAD_LETTERS_KEPT = 1_000

# An entry stays in the stream until its job is finished, so at any time the accepted jobs are the
# done ones, the failed ones and those in the stream. Each script is a transaction: it takes effect
# as a whole or not at all.

# A client library may resend a command whose reply was lost, so the script first checks whether the
# job exists. XADD is the first write: if memory is full it fails, and nothing has changed.
ENQUEUE = """
local stream, counts, record, key = unpack(KEYS)
local job, kind, rows, fingerprint, limit = unpack(ARGV)
local accepted = job .. ' ' .. fingerprint
if redis.call('EXISTS', record) == 1 then return accepted end
local before = key and redis.call('GET', key)
if before then return before end
if redis.call('XLEN', stream) >= tonumber(limit) then return 'full' end
local entry = redis.call('XADD', stream, '*', 'job', job, 'kind', kind, 'rows', rows,
                         'key', key or '')
redis.call('SET', record, entry)
redis.call('HINCRBY', counts, 'accepted', 1)
if key then redis.call('SET', key, accepted) end
return accepted
"""

# The record of an unfinished job is its entry ID. The job is running while its lease is renewed.
LOOK = """
local record = redis.call('GET', KEYS[2])
if not record or string.sub(record, 1, 1) == '{' then return record end
local pending = redis.pcall('XPENDING', KEYS[1], ARGV[1], record, record, 1)[1]
if pending and pending[3] < tonumber(ARGV[2]) then return 'running' end
return 'queued'
"""

COUNT = """
local counts = redis.call('HMGET', KEYS[2], 'accepted', 'done', 'failed')
counts[4] = redis.call('XLEN', KEYS[1])
return counts
"""

# Only one worker can acknowledge an entry, so a job is finished once, even if a suspended worker
# wakes up late. XACK is the first write because Redis allows it when memory is full; after a write,
# Redis allows the others in the script too.
#
# Above the limit, the oldest results are deleted with their keys. Redis was measured to take 200
# bytes for a result besides its content, and 350 for a key. What has expired still counts until it
# is the oldest; its key may then belong to a newer job.
FINISH = """
local stream, counts, dead, results = unpack(KEYS)
local group, ttl, kept, max_bytes = unpack(ARGV)
local finished = 0
local bytes = tonumber(redis.call('HGET', counts, 'result_bytes') or 0)
for i = 5, #ARGV, 5 do
  local entry, record, key, status, content = unpack(ARGV, i, i + 4)
  local pending = redis.call('XPENDING', stream, group, entry, entry, 1)[1]
  if redis.call('XACK', stream, group, entry) == 1 then
    if status == 'failed' then
      local found = redis.call('XRANGE', stream, entry, entry)[1] or {entry, {}}
      redis.call('XADD', dead, 'MAXLEN', '~', kept, '*', 'entry', entry, 'deliveries', pending[4],
                 'failure', content, unpack(found[2]))
    end
    redis.call('XDEL', stream, entry)
    if redis.call('SET', record, content, 'EX', ttl, 'XX') then
      redis.call('HINCRBY', counts, status, 1)
      local size = #content + 200 + (key == '' and 0 or 350)
      redis.call('RPUSH', results, size .. ' ' .. record .. ' ' .. key)
      bytes = redis.call('HINCRBY', counts, 'result_bytes', size)
    end
    if key ~= '' then redis.call('EXPIRE', key, ttl) end
    finished = finished + 1
  end
end
while bytes > tonumber(max_bytes) do
  local size, record, key = string.match(redis.call('LPOP', results), '(%d+) (%S+) (%S*)')
  redis.call('DEL', record)
  local owner = key ~= '' and redis.call('GET', key)
  if owner and 'job:' .. string.match(owner, '%S+') == record then redis.call('DEL', key) end
  bytes = redis.call('HINCRBY', counts, 'result_bytes', -size)
end
return finished
"""

# A worker that was suspended must not take back jobs that another one has taken over.
KEEP = """
for i = 3, #ARGV do
  if redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1, ARGV[2])[1] then
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[i], 'JUSTID')
  end
end
"""

# What a worker holds returns to the queue, and the delivery is not counted. What has expired may
# have been given back before.
GIVE_BACK = """
local group, consumer, lease_ms = unpack(ARGV)
local given_back = 0
for _, pending in ipairs(redis.call('XPENDING', KEYS[1], group, '-', '+', 10000, consumer)) do
  local entry, _, idle_ms, deliveries = unpack(pending)
  if idle_ms < tonumber(lease_ms) then
    redis.call('XCLAIM', KEYS[1], group, consumer, 0, entry, 'IDLE', lease_ms,
               'RETRYCOUNT', deliveries - 1, 'JUSTID')
    given_back = given_back + 1
  end
end
return given_back
"""

# Deleting a consumer also deletes its list of pending entries, so that must be empty.
FORGET = """
for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local name, pending, idle_ms = consumer[2], consumer[4], consumer[6]
  if pending == 0 and (name == ARGV[2] or idle_ms > tonumber(ARGV[3])) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], name)
  end
end
"""


class QueueFullError(Exception):
    """The queue already holds the maximum number of pending jobs."""


class KeyReusedError(Exception):
    """The idempotency key was used before, with a different request."""


class Delivery(NamedTuple):
    """A stream entry as delivered to a worker; `number` counts its deliveries, including this."""

    entry: bytes
    fields: dict[bytes, bytes]
    number: int

    def text(self, field: str) -> str:
        """Returns a field as text; empty if the field is missing."""
        return self.fields.get(field.encode(), b"").decode(errors="replace")


class Outcome(NamedTuple):
    """The final status of a job, `done` or `failed`, and the response that callers get."""

    delivery: Delivery
    status: str
    content: str


def compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def record_of(job_id: str) -> str:
    return f"job:{job_id}"


async def enqueue(
    redis: AsyncRedis, kind: str, rows: list[list[float]], idempotency_key: str | None, limit: int
) -> str:
    """Stores a job and returns its ID; a repeated request with the same key gets the same job.

    Raises:
        QueueFullError: `limit` jobs are pending.
        KeyReusedError: the idempotency key belongs to a different request.
    """
    job_id, body = uuid4().hex, compact(rows)
    keys = [STREAM, COUNTS, record_of(job_id)]
    if idempotency_key is not None:
        keys.append(f"idempotency:{sha256(idempotency_key.encode()).hexdigest()}")
    fingerprint = sha256(f"{kind} {body}".encode()).hexdigest()
    reply = await redis.eval(ENQUEUE, len(keys), *keys, job_id, kind, body, fingerprint, limit)
    if reply == b"full":
        raise QueueFullError
    accepted_id, accepted_fingerprint = reply.decode().split()
    if accepted_fingerprint != fingerprint:
        raise KeyReusedError
    return str(accepted_id)


async def look(redis: AsyncRedis, job_id: str, lease_seconds: float) -> str | None:
    """Returns the state of a job as JSON, or None if the ID is unknown or expired."""
    lease_ms = round(lease_seconds * 1000)
    reply = await redis.eval(LOOK, 2, STREAM, record_of(job_id), GROUP, lease_ms)
    if reply in (b"queued", b"running"):
        return compact({"job_id": job_id, "status": reply.decode()})
    return None if reply is None else reply.decode()


async def count(redis: AsyncRedis) -> dict[str, int]:
    """Counts the accepted, done, failed and pending jobs, all at one instant."""
    counts = await redis.eval(COUNT, 2, STREAM, COUNTS)
    names = ("accepted", "done", "failed", "pending")
    return {name: int(value or 0) for name, value in zip(names, counts, strict=True)}


async def check_writable(redis: AsyncRedis) -> None:
    """Fails if Redis does not accept writes: it is full, cannot save, or is a read-only replica."""
    # Once a job has been accepted this changes nothing, so Redis does not write to its disk.
    await redis.hsetnx(COUNTS, "accepted", "0")


def create_group(redis: Redis) -> None:
    """Creates the workers' consumer group, starting at the oldest job, unless it exists."""
    # When memory is full, Redis refuses to create even a group that exists, so look first.
    groups: Any = redis.xinfo_groups(STREAM) if redis.exists(STREAM) else []
    if any(group["name"] == GROUP.encode() for group in groups):
        return
    try:
        redis.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
    except ResponseError as error:
        # Another worker has just created it.
        if "BUSYGROUP" not in str(error):
            raise


def take_new(redis: Redis, consumer: str, count: int, wait_seconds: float) -> list[Delivery]:
    """Takes up to `count` jobs that no worker has had; if there are none, waits for one."""
    wait_ms = round(wait_seconds * 1000)
    reply: Any = redis.xreadgroup(GROUP, consumer, {STREAM: ">"}, count=count, block=wait_ms)
    return [Delivery(entry, fields, 1) for _, entries in reply for entry, fields in entries]


def take_expired(
    redis: Redis, consumer: str, lease_seconds: float, max_deliveries: int
) -> Delivery | None:
    """Takes over one job whose lease has expired.

    A job that has used up its deliveries is delivered once more, with a larger number, so that
    the worker can give it up.
    """
    lease_ms = round(lease_seconds * 1000)
    expired: Any = redis.xpending_range(STREAM, GROUP, "-", "+", 10, idle=lease_ms)
    for pending in expired:
        entry, count = pending["message_id"], pending["times_delivered"] + 1
        counted = min(count, max_deliveries)
        # If several workers try, only one succeeds: for the others the job is no longer expired.
        claimed: Any = redis.xclaim(STREAM, GROUP, consumer, lease_ms, [entry], retrycount=counted)
        if claimed:
            # Redis 6 returns None for an entry that was deleted from the stream.
            return Delivery(entry, claimed[0][1] or {}, count)
    return None


def keep(redis: Redis, consumer: str, entries: list[bytes]) -> None:
    """Renews the leases of the entries that the worker still holds."""
    redis.eval(KEEP, 1, STREAM, GROUP, consumer, *entries)


def give_back(redis: Redis, consumer: str, lease_seconds: float) -> int:
    """Lets any worker take the jobs that this one holds; returns how many these were."""
    lease_ms = round(lease_seconds * 1000)
    given_back: Any = redis.eval(GIVE_BACK, 1, STREAM, GROUP, consumer, lease_ms)
    return int(given_back)


def finish(redis: Redis, outcomes: list[Outcome], ttl_seconds: int, max_result_bytes: int) -> int:
    """Stores outcomes and removes the jobs from the queue; returns how many were still open."""
    arguments = [
        argument
        for delivery, status, content in outcomes
        for argument in (
            delivery.entry,
            record_of(delivery.text("job")),
            delivery.text("key"),
            status,
            content,
        )
    ]
    keys = (STREAM, COUNTS, DEAD, FINISHED)
    limits = (ttl_seconds, DEAD_LETTERS_KEPT, max_result_bytes)
    finished: Any = redis.eval(FINISH, len(keys), *keys, GROUP, *limits, *arguments)
    return int(finished)


def forget_consumers(redis: Redis, consumer: str, idle_seconds: float) -> None:
    """Deletes a consumer, and all that were idle for this long, unless they hold jobs."""
    redis.eval(FORGET, 1, STREAM, GROUP, consumer, round(idle_seconds * 1000))
