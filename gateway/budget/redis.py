"""The store that machines share: Redis or Valkey, one script per verb, on the server's own clock.

Every key carries the tag `{gateway}`, so that all of a script's keys lie in one slot of a cluster: a request's limits
are drawn in one script, which one shard runs many thousand times a second. An answer that does not come within tens of
milliseconds is given up; nothing is retried here, because every verb may be repeated by its caller.
"""

import json
import math
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import astuple
from hashlib import sha1
from typing import TYPE_CHECKING, Any

import orjson

from gateway.budget.meter import BUCKETS
from gateway.budget.store import (
    HEADROOM_SHARE,
    HOUR,
    KEEP_ACCOUNTS,
    KEEP_ROWS,
    KEEP_WORKERS,
    RECALL,
    Account,
    Entry,
    KeyExists,
    ManagedKey,
    Reply,
    Report,
    Standing,
    StoreDown,
    UnknownKey,
    UsageBy,
    UsageRecord,
    UsageTotal,
    by_hour,
    summed,
)

if TYPE_CHECKING:
    from redis.asyncio import Redis

_TAG = "{gateway}:"
_RECOVERY = 3.0  # seconds after a loss of memory in which workers state again what they know, and nothing is granted
_DIMENSIONS = ("key", "team", "model", "backend", "task")


class _Script:
    """A Lua script and the digest that Redis knows it by."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.digest = sha1(text.encode(), usedforsecurity=False).hexdigest()


# Fields of an account's hash: s spent; b:N bucket; g:W granted, h:W held, c:W spent by worker W; r, w recall until, by.
# Amounts stay below 2^53, where Lua's doubles are exact; "%.0f" because Lua writes large numbers as 1e+15.
_COMMON = """
local function clock(override)
  if override ~= '' then return tonumber(override) end
  local t = redis.call('TIME')
  return tonumber(t[1]) + tonumber(t[2]) / 1e6
end
local function whole(n) return string.format('%.0f', n) end
local function ends(rolling, number) return (number + 2) * (rolling / BUCKETS) + rolling end
local function load(key, workers, account, me, now, prune)
  local book = {spent = 0, granted = 0, held = 0, doubt = 0, idle = 0, recall = 0, by = '', buckets = {}}
  local flat = redis.call('HGETALL', key)
  local grants, holds, dead = {}, {}, {}
  for i = 1, #flat, 2 do
    local f, v = flat[i], flat[i + 1]
    local kind, name = string.sub(f, 1, 2), string.sub(f, 3)
    if kind == 'g:' then grants[name] = tonumber(v)
    elseif kind == 'h:' then holds[name] = tonumber(v)
    elseif kind == 'b:' then
      local number = tonumber(name)
      if ends(account.rolling, number) > now then
        book.buckets[#book.buckets + 1] = {number, tonumber(v)}
        book.spent = book.spent + tonumber(v)
      else dead[#dead + 1] = f end
    elseif f == 's' then book.spent = book.spent + tonumber(v)
    elseif f == 'r' then book.recall = tonumber(v)
    elseif f == 'w' then book.by = v end
  end
  table.sort(book.buckets, function(a, b) return a[1] < b[1] end)
  for worker, granted in pairs(grants) do
    if granted > 0 then
      local held = holds[worker] or 0
      local until_ = tonumber(redis.call('HGET', workers, 't:' .. worker) or '0')
      if until_ > now or worker == me then
        book.granted = book.granted + granted
        book.held = book.held + held
        if worker ~= me then book.idle = book.idle + granted - held end
      elseif account.forget < 0 or now <= until_ + account.forget then
        book.doubt = book.doubt + granted
      else
        dead[#dead + 1] = 'g:' .. worker
        dead[#dead + 1] = 'h:' .. worker
        dead[#dead + 1] = 'c:' .. worker
      end
    end
  end
  if prune then for _, f in ipairs(dead) do redis.call('HDEL', key, f) end end
  return book
end
local function standing(book, account, now, drawn, short, me)
  local frees, clears, freed = -1, -1, 0
  for _, pair in ipairs(book.buckets) do
    local left = math.ceil((ends(account.rolling, pair[1]) - now) * 1000)
    freed = freed + pair[2]
    if short > 0 and frees < 0 and freed >= short then frees = left end
    clears = left
  end
  local recall = 0
  if book.recall > now and book.by ~= me then recall = 1 end
  return {book.spent, book.granted, book.held, book.doubt, book.idle, drawn, recall, frees, clears}
end
""".replace("BUCKETS", str(BUCKETS))

# KEYS: workers, meta, the accounts. ARGV: the report as JSON, now for tests.
_SYNC = _Script(
    _COMMON
    + """
local p = cjson.decode(ARGV[1])
local now = clock(ARGV[2])
local workers, meta, me = KEYS[1], KEYS[2], p.worker
local epoch = redis.call('HGET', meta, 'epoch')
if not epoch then
  epoch = p.fresh
  redis.call('HSET', meta, 'epoch', epoch, 'since', string.format('%.3f', now), 'recover', '0')
end
if p.epoch ~= '' and p.epoch ~= epoch then
  local since = tonumber(redis.call('HGET', meta, 'since'))
  redis.call('HSET', meta, 'recover', string.format('%.3f', since + p.recovery))
  return {epoch, 0, 0, {}}
end
if p.number <= tonumber(redis.call('HGET', workers, 'n:' .. me) or '0') then return {epoch, 0, 0, {}} end
local lease = now + p.lease
if p.closing then lease = now end
redis.call('HSET', workers, 't:' .. me, string.format('%.3f', lease), 'n:' .. me, whole(p.number))
local recovering = 0
if tonumber(redis.call('HGET', meta, 'recover')) > now then recovering = 1 end
local books, refused = {}, recovering == 1
for i, e in ipairs(p.entries) do
  local key = KEYS[2 + i]
  local total = tonumber(redis.call('HGET', key, 'c:' .. me) or e.base)
  for _, point in ipairs(e.spent) do
    if point[2] > total then
      local delta = whole(point[2] - total)
      total = point[2]
      if e.rolling > 0 then
        local number = math.floor((now - point[1]) / (e.rolling / BUCKETS))
        if ends(e.rolling, number) > now then redis.call('HINCRBY', key, 'b:' .. whole(number), delta) end
      else redis.call('HINCRBY', key, 's', delta) end
    end
  end
  if e.gone then redis.call('HDEL', key, 'g:' .. me, 'h:' .. me, 'c:' .. me)
  else
    redis.call('HSET', key, 'c:' .. me, whole(total), 'g:' .. me, whole(e.granted), 'h:' .. me, whole(e.held))
  end
  if e.keep_until > 0 then redis.call('EXPIREAT', key, e.keep_until)
  elseif e.rolling > 0 then redis.call('EXPIRE', key, math.ceil(e.rolling * 2 + 86400)) end
  local book = load(key, workers, e, me, now, true)
  book.free = e.limit - book.spent - book.granted - book.doubt
  books[i] = book
  if e.need > 0 and book.free < e.need then
    refused = true
    book.recall, book.by = now + p.recall, me
    redis.call('HSET', key, 'r', string.format('%.3f', book.recall), 'w', me)
  end
end
local out = {}
for i, e in ipairs(p.entries) do
  local book, drawn, short = books[i], 0, 0
  if refused then short = e.need - book.free
  elseif e.need > 0 then
    drawn = e.need + math.min(math.max(e.want - e.need, 0), math.floor((book.free - e.need) / p.share))
    book.granted = book.granted + drawn
    redis.call('HSET', KEYS[2 + i], 'g:' .. me, whole(e.granted + drawn))
  end
  out[i] = standing(book, e, now, drawn, short, me)
end
return {epoch, 1, recovering, out}
""".replace("BUCKETS", str(BUCKETS))
)

_STANDINGS = _Script(
    _COMMON
    + """
local now = clock(ARGV[2])
local out = {}
for i, account in ipairs(cjson.decode(ARGV[1])) do
  out[i] = standing(load(KEYS[1 + i], KEYS[1], account, '', now, false), account, now, 0, 0, '')
end
return out
"""
)

_RELEASE = _Script(
    _COMMON
    + """
local now = clock(ARGV[2])
local book = load(KEYS[2], KEYS[1], cjson.decode(ARGV[1]), '', now, true)
for _, f in ipairs(redis.call('HKEYS', KEYS[2])) do
  if string.sub(f, 1, 2) == 'g:' then
    local worker = string.sub(f, 3)
    if tonumber(redis.call('HGET', KEYS[1], 't:' .. worker) or '0') <= now then
      redis.call('HSET', KEYS[2], f, '0', 'h:' .. worker, '0')
    end
  end
end
return book.doubt
"""
)

# Workers that were last heard of long ago: what they were granted stays in doubt on its accounts.
_SWEEP = _Script(
    _COMMON
    + """
local now = clock(ARGV[2])
local flat = redis.call('HGETALL', KEYS[1])
for i = 1, #flat, 2 do
  if string.sub(flat[i], 1, 2) == 't:' and tonumber(flat[i + 1]) < now - tonumber(ARGV[1]) then
    redis.call('HDEL', KEYS[1], flat[i], 'n:' .. string.sub(flat[i], 3))
  end
end
return 1
"""
)

# KEYS: the batch's mark, rows, hours, each hour's hash. ARGV: rows, sums as JSON, since when rows are kept, the hours.
_USAGE = _Script(
    """
if not redis.call('SET', KEYS[1], '1', 'NX', 'EX', 86400) then return 0 end
for _, row in ipairs(cjson.decode(ARGV[1])) do redis.call('ZADD', KEYS[2], row[1], row[2]) end
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', ARGV[3])
for i, sums in ipairs(cjson.decode(ARGV[2])) do
  for _, sum in ipairs(sums) do redis.call('HINCRBY', KEYS[3 + i], sum[1], sum[2]) end
end
for i = 4, #KEYS do redis.call('ZADD', KEYS[3], ARGV[i], ARGV[i]) end
return 1
"""
)

_CREATE_KEY = _Script(
    """
for _, record in ipairs(redis.call('HVALS', KEYS[1])) do
  if cjson.decode(record)[2] == ARGV[3] then return 0 end
end
if redis.call('HSETNX', KEYS[1], ARGV[1], ARGV[2]) == 0 then return 0 end
redis.call('HINCRBY', KEYS[2], 'keys', 1)
return 1
"""
)

_REPLACE_KEY = _Script(
    """
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then return -1 end
if (redis.call('HGET', KEYS[2], 'keys') or '0') ~= ARGV[3] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('HINCRBY', KEYS[2], 'keys', 1)
return 1
"""
)


class RedisStore:
    """A `Store` at a `redis://`, `rediss://` or `unix://` URL.

    `timeout` bounds connecting and each exchange that a request may wait for; `slow_timeout` usage and managed keys.
    `clock` replaces the server's own in tests.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float = 0.08,
        slow_timeout: float = 2.0,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._url = url
        self._timeout = timeout
        self._slow_timeout = slow_timeout
        self._clock = clock
        self._quick: Redis | None = None
        self._slow: Redis | None = None
        self._unknown_script: tuple[type[Exception], ...] = ()
        self._failures: tuple[type[Exception], ...] = (OSError, TimeoutError)

    async def open(self) -> None:
        """Connect; raises `StoreDown` when nobody answers at the URL."""
        from redis.asyncio import Redis  # noqa: PLC0415  (heavy: only with this store)
        from redis.asyncio.retry import Retry  # noqa: PLC0415
        from redis.backoff import NoBackoff  # noqa: PLC0415
        from redis.exceptions import NoScriptError, RedisError  # noqa: PLC0415

        def client(timeout: float) -> "Redis":
            return Redis.from_url(
                self._url,
                socket_timeout=timeout,
                socket_connect_timeout=timeout,
                retry=Retry(NoBackoff(), 0),
                decode_responses=True,
            )

        self._unknown_script, self._failures = (NoScriptError,), (RedisError, OSError, TimeoutError)
        self._quick, self._slow = client(self._timeout), client(self._slow_timeout)
        try:
            await self._run(_SWEEP, ["workers"], [KEEP_WORKERS, self._now()], slow=True)
        except StoreDown:
            await self.close()
            raise

    async def close(self) -> None:
        """Close the connections."""
        for client in (self._quick, self._slow):
            if client is not None:
                await client.aclose()
        self._quick = self._slow = None

    async def sync(self, report: Report) -> Reply:
        """See `Store.sync`."""
        payload = {
            "worker": report.worker,
            "number": report.number,
            "lease": report.lease,
            "epoch": report.epoch,
            "closing": report.closing,
            "fresh": secrets.token_hex(8),
            "recovery": min(report.lease, _RECOVERY),
            "recall": RECALL,
            "share": HEADROOM_SHARE,
            "entries": [_entry(entry) for entry in report.entries],
        }
        keys = ["workers", "meta", *(_account_key(entry.account) for entry in report.entries)]
        epoch, applied, recovering, standings = await self._run(_SYNC, keys, [json.dumps(payload), self._now()])
        return Reply(epoch, bool(applied), bool(recovering), tuple(_standing(one) for one in standings))

    async def standings(self, accounts: Sequence[Account]) -> tuple[Standing, ...]:
        """See `Store.standings`."""
        if not accounts:
            return ()
        payload = json.dumps([_terms(account) for account in accounts])
        keys = ["workers", *(_account_key(account) for account in accounts)]
        return tuple(_standing(one) for one in await self._run(_STANDINGS, keys, [payload, self._now()], slow=True))

    async def release(self, account: Account) -> int:
        """See `Store.release`."""
        keys = ["workers", _account_key(account)]
        return int(await self._run(_RELEASE, keys, [json.dumps(_terms(account)), self._now()], slow=True))

    async def once(self, mark: str, seconds: float) -> bool:
        """See `Store.once`."""
        milliseconds = max(math.ceil(seconds * 1000), 1)
        return bool(
            await self._ask(lambda redis: redis.set(f"{_TAG}once:{mark}", 1, nx=True, px=milliseconds), slow=False)
        )

    async def write_usage(self, batch: str, records: Sequence[UsageRecord]) -> None:
        """See `Store.write_usage`."""
        hours: dict[int, dict[str, int]] = {}
        for (hour, *dimensions), amounts in by_hour(records).items():
            sums = hours.setdefault(hour, {})
            sums.update({json.dumps([index, *dimensions]): amount for index, amount in enumerate(amounts)})
        rows = [(one.at, _row(one, f"{batch}/{i}")) for i, one in enumerate(records)]
        sums_of_hours = [[(name, str(amount)) for name, amount in sums.items()] for sums in hours.values()]
        newest = max((one.at for one in records), default=0.0)
        keys = [f"batch:{batch}", "usage", "hours", *(f"hour:{hour}" for hour in hours)]
        arguments = [json.dumps(rows), json.dumps(sums_of_hours), newest - KEEP_ROWS, *hours]
        await self._run(_USAGE, keys, arguments, slow=True)

    async def usage(self, by: UsageBy, since: float, zone: str = "UTC") -> list[UsageTotal]:
        """See `Store.usage`."""
        hours = await self._ask(lambda redis: redis.zrangebyscore(f"{_TAG}hours", int(since // HOUR), "+inf"))
        rows: dict[str, list[int]] = {}
        for hour in hours:
            found = await self._ask(lambda redis, hour=hour: redis.hgetall(f"{_TAG}hour:{hour}"))  # type: ignore[misc]
            for name, amount in found.items():
                index, *dimensions = json.loads(name)
                label = str(hour) if by == "day" else dimensions[_DIMENSIONS.index(by)]
                rows.setdefault(label, [0, 0, 0, 0])[index] += int(amount)
        return summed([(label, one, two, three, four) for label, (one, two, three, four) in rows.items()], by, zone)

    async def recent_usage(self, count: int) -> list[UsageRecord]:
        """See `Store.recent_usage`."""
        rows = await self._ask(lambda redis: redis.zrevrange(f"{_TAG}usage", 0, count - 1))
        return [
            UsageRecord(**{name: value for name, value in json.loads(row).items() if name != "row"}) for row in rows
        ]

    async def create_key(self, key: ManagedKey) -> None:
        """See `Store.create_key`."""
        arguments = [key.name, json.dumps(astuple(key)), key.hash]
        if not await self._run(_CREATE_KEY, ["keys", "meta"], arguments, slow=True):
            raise KeyExists(f"a key {key.name!r} exists already; rotate it, or choose another name")

    async def replace_key(self, key: ManagedKey, version: int) -> bool:
        """See `Store.replace_key`."""
        arguments = [key.name, json.dumps(astuple(key)), version]
        replaced = int(await self._run(_REPLACE_KEY, ["keys", "meta"], arguments, slow=True))
        if replaced < 0:
            raise UnknownKey(f"there is no managed key {key.name!r}; `gateway keys list` shows those there are")
        return replaced == 1

    async def keys(self) -> list[ManagedKey]:
        """See `Store.keys`."""
        records = await self._ask(lambda redis: redis.hvals(f"{_TAG}keys"))
        return sorted((_key_of(record) for record in records), key=lambda key: key.name)

    async def keys_version(self) -> int:
        """See `Store.keys_version`."""
        return int(await self._ask(lambda redis: redis.hget(f"{_TAG}meta", "keys"), slow=False) or 0)

    async def _run(self, script: _Script, keys: Sequence[str], arguments: Sequence[Any], *, slow: bool = False) -> Any:
        tagged = [_TAG + key for key in keys]
        try:
            return await self._ask(
                lambda redis: redis.evalsha(script.digest, len(tagged), *tagged, *arguments), slow=slow
            )
        except self._unknown_script:
            return await self._ask(lambda redis: redis.eval(script.text, len(tagged), *tagged, *arguments), slow=slow)

    async def _ask(self, command: "Callable[[Redis], Awaitable[Any]]", *, slow: bool = True) -> Any:
        client = self._slow if slow else self._quick
        if client is None:
            raise StoreDown("the store is not open")
        try:
            return await command(client)
        except self._unknown_script:
            raise
        except self._failures as error:
            raise StoreDown(f"Redis does not answer as it should: {error or type(error).__name__}") from error

    def _now(self) -> str:
        return "" if self._clock is None else repr(self._clock())


def _row(record: UsageRecord, row: str) -> str:
    """A record as a member of the set of all rows; `row` keeps two equal ones apart."""
    return orjson.dumps(record).decode()[:-1] + f',"row":{json.dumps(row)}}}'


def _account_key(account: Account) -> str:
    return f"account:{account.id}"


def _terms(account: Account) -> dict[str, float]:
    return {"rolling": account.rolling, "forget": -1 if account.forget is None else account.forget}


def _entry(entry: Entry) -> dict[str, Any]:
    ends = entry.account.ends
    return {
        **_terms(entry.account),
        "limit": entry.limit,
        "spent": entry.spent,
        "base": entry.base,
        "granted": entry.granted,
        "held": entry.held,
        "need": entry.need,
        "want": entry.want,
        "gone": entry.gone,
        "keep_until": 0 if ends is None else math.ceil(ends + KEEP_ACCOUNTS),
    }


def _standing(fields: Sequence[int]) -> Standing:
    spent, granted, held, in_doubt, idle, drawn, recall, frees, clears = fields
    return Standing(
        spent=spent,
        granted=granted,
        held=held,
        in_doubt=in_doubt,
        idle=idle,
        drawn=drawn,
        recall=bool(recall),
        frees_in=None if frees < 0 else frees / 1000,
        clears_in=None if clears < 0 else clears / 1000,
    )


def _key_of(record: str) -> ManagedKey:
    name, key_hash, created, team, allow, *rest = json.loads(record)
    return ManagedKey(name, key_hash, created, team, tuple(allow), *rest)
