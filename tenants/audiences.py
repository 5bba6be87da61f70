"""Custom Audiences of Meta's that an app's people go into, and the runs that push them there.

A run is taken by moving on when it is due, as access tokens are, so one process has it until its lease ends; what it
has sent is written down after each batch, so whoever takes it next goes on from there. An index allows an audience one
run that has not ended.
"""
# Piccolo keeps a table's engine in `_meta`, and its annotations leave type arguments open.
# pyright: reportPrivateUsage=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import re
import secrets
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlencode

from piccolo.columns.combination import Or

from tenants.errors import InvalidValue, NotFound
from tenants.reports.segments import Segment, segment_of
from tenants.secrets import SecretKey
from tenants.tables import App, Audience, AudienceRun, as_key, clean_name, fresh_id, transaction

# Each is a day's worth of pushing; their list shows all of them.
MAX_AUDIENCES = 50
# A batch of ten thousand takes Meta a minute and a half at most, and finding the people less.
LEASE_MS = 300_000
# A run that Meta has had waiting for so long has an audience of yesterday.
RUN_FOR = timedelta(days=1)
RUNS_SHOWN = 20
_RUNS_KEPT = timedelta(days=90)
_DAY = timedelta(days=1)
# Nothing is put off for as long, but by a clock that was ahead.
_TOO_LONG = 2 * _DAY

_AUDIENCE_ID = re.compile(r"[0-9]{1,30}")
_TOKEN = re.compile(r"[!-~]{16,1000}")


class TakenRun(NamedTuple):
    """A run to go on with, until `until` (ms). `token` is None where the key no longer fits."""

    run: AudienceRun
    audience: Audience
    app: App
    segment: Segment
    token: str | None
    until: int

    def __repr__(self) -> str:
        return f"TakenRun({self.run.id})"


async def create(
    app: App, key: SecretKey, name: str, audience_id: str, token: str, segment: Segment, daily: bool, now: datetime
) -> Audience:
    """A new audience. Raises InvalidValue, or NotFound when the app is gone."""
    values: dict[str, Any] = {
        "app": app.id,
        "name": clean_name(name),
        "audience_id": _clean_audience_id(audience_id),
        "sealed_token": key.encrypt(_clean_token(token), _place(app)),
        "segment": urlencode(segment.pairs()),
        "created_at": now,
        "daily_at": now if daily else None,
    }
    async with transaction():
        if not await App.exists().where(App.id == app.id):
            raise NotFound
        if await Audience.count().where(Audience.app == app.id) >= MAX_AUDIENCES:
            raise InvalidValue("name", f"An app has {MAX_AUDIENCES} audiences at most. Remove one first.")
        audience = Audience(**values, **await fresh_id())
        await audience.save()
    return audience


async def change(
    app: App,
    key: SecretKey,
    audience: Audience,
    *,
    name: str,
    audience_id: str,
    token: str,
    segment: Segment,
    daily: bool,
    now: datetime,
) -> bool:
    """Keep all this; an empty token leaves the one there is. Whether a run that goes on begins anew by it.

    Raises InvalidValue, or NotFound when it is gone.
    """
    values: dict[Any, Any] = {
        Audience.name: clean_name(name),
        Audience.audience_id: _clean_audience_id(audience_id),
        Audience.segment: urlencode(segment.pairs()),
    }
    if token.strip():
        values[Audience.sealed_token] = key.encrypt(_clean_token(token), _place(app))
    if daily != bool(audience.daily_at):
        values[Audience.daily_at] = now if daily else None
    into = (Audience.audience_id, Audience.segment)
    async with transaction():
        was = await Audience.select(*into).where(Audience.id == audience.id, Audience.app == app.id).first()
        if was is None:
            raise NotFound
        await Audience.update(values).where(Audience.id == audience.id)
        if [was["audience_id"], was["segment"]] == [values[column] for column in into]:
            return False
        return await _begin_anew(audience, now)


async def _begin_anew(audience: Audience, now: datetime) -> bool:
    """Have a run that goes on begin with its first person: those before went elsewhere. Whoever has it loses it."""
    values: dict[Any, Any] = {
        AudienceRun.due_at: _milliseconds(now),
        AudienceRun.session: _new_session(),
        AudienceRun.after: None,
        AudienceRun.batches: 0,
        AudienceRun.people: 0,
        AudienceRun.sent: 0,
        AudienceRun.received: 0,
        AudienceRun.invalid: 0,
        AudienceRun.error: "",
    }
    going = AudienceRun.update(values).where(AudienceRun.audience == audience.id, AudienceRun.due_at.is_not_null())
    return bool(await going.returning(AudienceRun.id))


async def list_audiences(app: App) -> list[Audience]:
    """The app's audiences, oldest first."""
    return await Audience.objects().where(Audience.app == app.id).order_by(Audience.id)


async def find(app: App, audience_id: int) -> Audience:
    """The app's audience with this id of ours. Raises NotFound."""
    found = await Audience.objects().where(Audience.id == as_key(audience_id), Audience.app == app.id).first()
    if found is None:
        raise NotFound
    return found


async def remove(app: App, audience: Audience) -> None:
    """Forget the audience and its runs; who is in it at Meta stays there."""
    await Audience.delete().where(Audience.id == audience.id, Audience.app == app.id)


def segment_kept(audience: Audience) -> Segment:
    """Who goes into it."""
    return segment_of(parse_qsl(audience.segment, keep_blank_values=True))


async def runs(audience: Audience) -> list[AudienceRun]:
    """Its newest runs, newest first."""
    return (
        await AudienceRun.objects()
        .where(AudienceRun.audience == audience.id)
        .order_by(AudienceRun.id, ascending=False)
        .limit(RUNS_SHOWN)
    )


async def last_runs(listed: list[Audience]) -> dict[int, AudienceRun]:
    """The newest run of each audience that has one, by the audience's id."""
    if not listed:
        return {}
    newest = await AudienceRun.raw(
        f"SELECT max(id) AS id FROM audience_run WHERE audience IN ({', '.join(['{}'] * len(listed))}) "
        "GROUP BY audience",
        *(each.id for each in listed),
    )
    found = await AudienceRun.objects().where(AudienceRun.id.is_in([row["id"] for row in newest])) if newest else []
    return {run.audience: run for run in found}


async def request_run(audience: Audience, now: datetime) -> bool:
    """Have the audience pushed; False when it is being pushed already."""
    async with transaction():
        return await _add_run(audience.id, now)


async def _add_run(audience: int, now: datetime) -> bool:
    added = await AudienceRun.raw(
        "INSERT INTO audience_run (audience, requested_at, due_at, session) VALUES ({}, {}, {}, {}) "
        "ON CONFLICT DO NOTHING RETURNING id",
        audience,
        now,
        _milliseconds(now),
        _new_session(),
    )
    return bool(added)


def _new_session() -> int:
    # Meta's sessions have 64 bits, JSON's numbers 53.
    return secrets.randbits(53)


async def unscoped_any() -> bool:
    """Whether there are audiences."""
    return await Audience.exists()


async def unscoped_any_due(now: datetime) -> bool:
    """Whether there is anything to plan or to push."""
    due = (AudienceRun.due_at <= _milliseconds(now)) | (AudienceRun.due_at > _milliseconds(now + _TOO_LONG))
    return await Audience.exists().where(_day_has_come(now)) or await AudienceRun.exists().where(due)


def _day_has_come(now: datetime) -> Or:
    return Or(Audience.daily_at <= now, Audience.daily_at > now + _TOO_LONG)


async def unscoped_plan(now: datetime) -> None:
    """Have all audiences pushed whose day has come, and forget old runs."""
    async with transaction():
        for row in await Audience.select(Audience.id, Audience.daily_at).where(_day_has_come(now)):
            # At the same time of day, however late it is today.
            at: datetime = row["daily_at"]
            planned = Audience.update({Audience.daily_at: at + ((now - at) // _DAY + 1) * _DAY})
            # Another machine may have planned it meanwhile.
            if await planned.where(Audience.id == row["id"], Audience.daily_at == at).returning(Audience.id):
                await _add_run(row["id"], now)
        await AudienceRun.delete().where(AudienceRun.finished_at < now - _RUNS_KEPT)


async def unscoped_take_run(key: SecretKey, now: datetime) -> TakenRun | None:
    """A run that is due, for whoever takes it alone, for as long as the lease is."""
    until = _milliseconds(now) + LEASE_MS
    skip_held = "FOR UPDATE SKIP LOCKED" if AudienceRun._meta.db.engine_type == "postgres" else ""
    async with transaction():
        taken = await AudienceRun.raw(
            # Found once: PostgreSQL may look for it for each row of the table, and take several.
            "WITH due AS MATERIALIZED (SELECT id FROM audience_run WHERE due_at <= {} OR due_at > {} "
            f"ORDER BY due_at LIMIT 1 {skip_held}) "
            "UPDATE audience_run SET due_at = {}, attempts = attempts + 1, started_at = coalesce(started_at, {}) "
            "WHERE id IN (SELECT id FROM due) RETURNING id",
            _milliseconds(now),
            _milliseconds(now + _TOO_LONG),
            until,
            now,
        )
        if not taken:
            return None
        run = await AudienceRun.objects().where(AudienceRun.id == taken[0]["id"]).first()
        audience = run and await Audience.objects().where(Audience.id == run.audience).first()
        app = audience and await App.objects().where(App.id == audience.app).first()
    if not run or not audience or not app:
        return None
    token = key.try_decrypt(audience.sealed_token, _place(app))
    return TakenRun(run, audience, app, segment_kept(audience), token, until)


async def sent(taken: TakenRun, after: bytes, people: int, rows: int, received: int, invalid: int) -> TakenRun | None:
    """A batch is with Meta; the lease begins anew. None: the run is no longer ours, or gone."""
    run = taken.run
    until = _milliseconds(datetime.now(UTC)) + LEASE_MS
    values: dict[Any, Any] = {
        AudienceRun.after: after,
        AudienceRun.people: people,
        AudienceRun.batches: run.batches + 1,
        AudienceRun.sent: run.sent + rows,
        AudienceRun.received: run.received + received,
        AudienceRun.invalid: run.invalid + invalid,
        AudienceRun.attempts: 1,
        AudienceRun.error: "",
        AudienceRun.due_at: until,
    }
    return await _update(taken, values, until)


async def wait(taken: TakenRun, until: datetime, error: str) -> None:
    """Go on with the run then; `error` says why it waits."""
    await _update(taken, {AudienceRun.due_at: _milliseconds(until), AudienceRun.error: error}, taken.until)


async def finish(taken: TakenRun, error: str = "") -> None:
    """The run has ended, well unless there is an error."""
    values: dict[Any, Any] = {
        AudienceRun.finished_at: datetime.now(UTC),
        AudienceRun.due_at: None,
        AudienceRun.error: error,
    }
    await _update(taken, values, taken.until)


async def _update(taken: TakenRun, values: dict[Any, Any], until: int) -> TakenRun | None:
    mine = (AudienceRun.id == taken.run.id) & (AudienceRun.due_at == taken.until)
    changed = await AudienceRun.update(values).where(mine).returning(AudienceRun.id)
    if not changed:
        return None
    run = await AudienceRun.objects().where(AudienceRun.id == taken.run.id).first()
    return run and taken._replace(run=run, until=until)


def _clean_audience_id(audience_id: str) -> str:
    audience_id = audience_id.strip()
    if not _AUDIENCE_ID.fullmatch(audience_id):
        raise InvalidValue("audience_id", "An audience ID is a number of up to 30 digits.")
    return audience_id


def _clean_token(token: str) -> str:
    token = token.strip()
    if not _TOKEN.fullmatch(token):
        raise InvalidValue("audience_token", "An access token has letters and digits, without spaces.")
    return token


def _place(app: App) -> bytes:
    return b"audience " + app.id.bytes


def _milliseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)
