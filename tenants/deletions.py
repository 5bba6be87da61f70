"""One person deleted everywhere, with a receipt; or what is left of that to do.

    at once, in one transaction    identifiers, visitor cookies, merged persons, and what might be placed again; of each
                                   key a hash is kept, so that no late hit brings them back (forgotten.py)
    soon after, again and again    events, properties and aliases in the event store, which may be away; rejections
                                   that hold the person's e-mail address; access tokens they sent
    by each machine for itself     digested hits in the journal (server/upkeep.py), hits set aside (server/digest.py)

A person's id may go on: it is a visitor's cookie, and the browser still has it. What it does after the deletion is a
new, anonymous visitor's; so only what came before is removed. `Deletion.work` holds what to look for until all is gone,
and until the engine has let go of the files.

A mutation's text stays on the disk. It names persons and hits by their ids, which then lead nowhere, and nothing else.
"""
# Piccolo keeps a table's engine in `_meta`, and its annotations leave type arguments open.
# pyright: reportPrivateUsage=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import asyncio
import base64
import functools
import re
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote, unquote
from uuid import UUID, uuid4

import msgspec

from tenants import access_tokens, bulk
from tenants.erasures import TABLES, Before, Found, Store, mutate
from tenants.errors import NotFound
from tenants.events import NOBODY, Queries
from tenants.forgotten import forget
from tenants.identifiers import EMAIL_KIND, FBID_KIND, UUID_KIND, merged_with, person_key, survivors, unscoped_roots
from tenants.rewriting import PROPERTIES, property_version
from tenants.tables import (
    App,
    Deletion,
    IdentifiedBatch,
    Identifier,
    IdentityClock,
    IdentitySection,
    Person,
    Reattribution,
    Visitor,
    transaction,
)

# What one round looks at: a mutation reads every part that may hold the person's rows.
_AT_ONCE = 20
# Those of each app in turn, and of one app those first that were never looked at.
_NEXT = (
    "SELECT id FROM (SELECT id, looked_at, ROW_NUMBER() OVER (PARTITION BY app_id ORDER BY looked_at, requested_at) "
    "AS turn FROM deletion WHERE done_at IS NULL) AS pending ORDER BY turn, looked_at LIMIT {}"
)
# Rows named one by one in a mutation.
_NAMED_AT_ONCE = 1_000
# Asked about in one query; most have one id.
_PEOPLE_AT_ONCE = 1_000
# Everybody who writes waits meanwhile, at most ten seconds: a store that takes longer is asked again later.
_LOCKED_SECONDS = 4.0
# A machine's last batch stays written down for good; one that is not stored by then is of a machine that is gone.
_UNDER_WAY = timedelta(days=2)
# The engine looks for 255 texts at once; in Base64 an address is a dozen.
_ADDRESSES_AT_ONCE = 20
_SHOWN = 1_000
# Machines' clocks differ by less.
_AHEAD = timedelta(minutes=5)


class _Work(msgspec.Struct, array_like=True):
    """What to look for. `revision`: of the app's aliases, those up to it are the deleted person's."""

    persons: list[UUID]
    visitors: list[bytes]
    uuids: list[str]
    emails: list[str]
    fbids: list[str]
    before: int
    revision: int
    # Events that turned out to be theirs, and to be somebody else's, after they were stored otherwise.
    also: list[UUID]
    but: list[UUID]
    # When nothing was left in the event store (seconds); the engine keeps the files for a while.
    gone_at: int | None = None
    # Of each count of the receipt: what was removed, and what a mutation is to remove that may not have begun.
    removed: dict[str, tuple[int, int]] = {}
    # As whose `also` were stored.
    was: list[UUID] = []


async def find_person(app: App, store: Queries, person: str) -> UUID:
    """The app's person with this id, known or not, who they are in the end. Raises NotFound, Unavailable."""
    try:
        asked = UUID(person)
    except ValueError:
        raise NotFound from None
    # Python reads braces and missing hyphens too; a person has one address.
    if asked == NOBODY or str(asked) != person:
        raise NotFound
    found = (await survivors(app, [asked]))[asked]
    if not await Person.exists().where(Person.key == person_key(app.id, found)):
        rows = await store.query(
            "SELECT 1 AS x FROM events WHERE app_id = {app:UUID} AND person_id = {person:UUID} LIMIT 1",
            {"app": str(app.id), "person": person},
            app.tenant,
        )
        if not rows:
            raise NotFound
    return found


async def delete_person(app: App, person: UUID, asked_by: str, now: datetime) -> Deletion:
    """Delete the person, who is nobody any more when this returns; their events go within minutes.

    `person` is the survivor's id. Raises NotFound when the app is gone.
    """
    asked_at = time.monotonic()
    async with transaction():
        if not await App.exists().where(App.id == app.id):
            raise NotFound
        revision = await _lock_clock(app.id)
        # What came while this waited for a digest may have been found to be theirs.
        now += timedelta(seconds=time.monotonic() - asked_at)
        before = int(now.timestamp() * 1000)
        # They may have turned out to be somebody else since they were looked up.
        root = (await unscoped_roots([person_key(app.id, person)]))[person_key(app.id, person)]
        persons = [root, *(await merged_with([root]))[root]]
        identifiers = await _remove(Identifier, app.id, persons)
        await bulk.run(Person, "DELETE FROM person WHERE key = ?", [(key,) for key in sorted(persons)])
        visitors = await _remove_visitors(app.id, persons, before)
        # Of all persons of the last seconds: what they are for is another machine that digests an earlier hit only now.
        await IdentitySection.delete().where(IdentitySection.app == app.id.bytes)
        # A person may be named after a cookie that is somebody else's by now.
        others = await _owned(persons)
        await forget([*identifiers, *visitors, *(key for key in persons if key not in others)], before)
        also, was, but = await _reattributed(app.id, set(persons))
        work = _Work(
            persons=[UUID(bytes=key[16:]) for key in persons],
            visitors=[key[16:] for key in visitors],
            uuids=_values(identifiers, UUID_KIND),
            emails=_values(identifiers, EMAIL_KIND),
            fbids=_values(identifiers, FBID_KIND),
            before=before,
            revision=revision,
            also=also,
            but=but,
            was=was,
        )
        deletion = Deletion(
            app_id=app.id,
            requested_at=now,
            asked_by=asked_by[:100],
            persons=len(persons),
            identifiers=len(identifiers),
            visitors=len(visitors),
            work=msgspec.msgpack.encode(work),
        )
        await deletion.save()
    # Nobody is to be asked whose they are. Killed before this, it is done with the rest.
    await _forget_tokens(app.id, work)
    return deletion


async def list_deletions(app: App) -> list[Deletion]:
    """The receipts of the app's deletions, newest first."""
    newest = Deletion.objects().where(Deletion.app_id == app.id).order_by(Deletion.requested_at, ascending=False)
    return await newest.limit(_SHOWN)


async def going_since(app: App, person: UUID) -> datetime | None:
    """When they were deleted, as long as what is left of them from before is still to be removed; None if not."""
    if await Person.exists().where(Person.key == person_key(app.id, person)):
        return None
    pending = Deletion.select(Deletion.work, Deletion.requested_at).where(
        Deletion.app_id == app.id, Deletion.done_at.is_null()
    )
    for row in await pending.order_by(Deletion.requested_at, ascending=False).limit(_SHOWN):
        if row["work"] and person in msgspec.msgpack.decode(row["work"], type=_Work).persons:
            return row["requested_at"]
    return None


async def unscoped_last_deletions(since_ms: int) -> dict[bytes, int]:
    """When somebody was last deleted (ms), for each app (16 bytes) where that was after `since_ms`."""
    after = datetime.fromtimestamp(since_ms / 1000, UTC)
    rows = await Deletion.select(Deletion.app_id, Deletion.requested_at).where(Deletion.requested_at > after)
    last: dict[bytes, int] = {}
    for row in rows:
        app, at = row["app_id"].bytes, int(row["requested_at"].timestamp() * 1000)
        last[app] = max(at, last.get(app, 0))
    return last


async def unscoped_newest_pending() -> datetime | None:
    """When the newest deletion was asked for that is not done with; None when all are."""
    pending = Deletion.select(Deletion.requested_at).where(Deletion.done_at.is_null())
    newest = await pending.order_by(Deletion.requested_at, ascending=False).first()
    return newest["requested_at"] if newest else None


async def unscoped_work_off(store: Store, digested_until: datetime, now: datetime) -> int:
    """Begin to remove what is left of deleted persons, or see that it is gone; returns how many are done with.

    Nothing that came before `digested_until` is still to be stored.
    """
    done = 0
    failure: Exception | None = None
    # A clock that was ahead stamped those: they would take all that comes until then, and not end before.
    stamped_ahead = Deletion.done_at.is_null() & (Deletion.requested_at > now + _AHEAD)
    await Deletion.update({Deletion.requested_at: now}).where(stamped_ahead)
    for row in await Deletion.raw(_NEXT, _AT_ONCE):
        deletion = await Deletion.objects().get((Deletion.id == row["id"]) & Deletion.done_at.is_null())
        if deletion is None:
            continue  # another process was faster
        # Before: one that fails has had its turn.
        await Deletion.update({Deletion.looked_at: int(now.timestamp() * 1000)}).where(Deletion.id == deletion.id)
        try:
            done += await _work_off(store, deletion, digested_until, now)
        except Exception as error:  # whatever it is, the others are not to wait for it
            failure = failure or error
    if failure is not None:
        raise failure
    return done


async def unscoped_expire_people(store: Store, now: datetime) -> int:
    """Remove whoever has no event left in an app that keeps them for some days only; returns how many.

    To be done once a day: it asks about every known person of these apps.
    """
    removed = 0
    failure: Exception | None = None
    for app in await App.select(App.id, App.retention_days).where(App.retention_days.is_not_null()):
        try:
            removed += await _expire_app(store, app["id"], now, now - timedelta(days=app["retention_days"]))
        except Exception as error:  # whatever it is, the other apps are not to wait for it
            failure = failure or error
    if failure is not None:
        raise failure
    return removed


async def _expire_app(store: Store, app_id: UUID, now: datetime, before: datetime) -> int:
    removed, first, after = 0, app_id.bytes, (app_id.int + 1).to_bytes(16, "big")
    before_ms = int(before.timestamp() * 1000)
    under_way_ms = int((now - _UNDER_WAY).timestamp() * 1000)
    old = (Person.known_at < before_ms) & Person.merged_into.is_null() & (Person.key < after)
    late: TimeoutError | None = None
    while rows := (
        await Person.select(Person.key).where(Person.key > first, old).order_by(Person.key).limit(_PEOPLE_AT_ONCE)
    ):
        keys = [row["key"] for row in rows]
        try:
            removed += await _expire(store, app_id, keys, before_ms, under_way_ms)
        except TimeoutError as error:  # perhaps these are too many in one: those after them are not
            late = error
        first = keys[-1]
    await _expire_states(store, app_id)
    if late is not None:
        raise late
    return removed


async def _expire(store: Store, app_id: UUID, roots: list[bytes], before_ms: int, under_way_ms: int) -> int:
    identifiers: list[bytes] = []
    persons = {root: [root, *merged] for root, merged in (await merged_with(roots)).items()}
    ids = [UUID(bytes=key[16:]) for keys in persons.values() for key in keys]
    app = f"app_id = '{app_id}'"
    active = await _with_events(store, app_id, ids)
    if not any(active.isdisjoint(keys) for keys in persons.values()):
        return 0
    async with transaction():
        await _lock_clock(app_id)
        # An event of theirs that is identified is stored before its machine identifies the next batch.
        under_way = IdentifiedBatch.identified_at > under_way_ms
        for batch in await IdentifiedBatch.select(IdentifiedBatch.persons).where(under_way):
            pairs: bytes = batch["persons"]
            active.update(app_id.bytes + pairs[at + 16 : at + 32] for at in range(0, len(pairs), 32))
        # Whoever was merged meanwhile is looked at tomorrow.
        unchanged, now_roots = await merged_with(roots), await unscoped_roots(roots)
        gone = [
            key
            for root, keys in persons.items()
            if now_roots[root] == root and len(unchanged[root]) == len(keys) - 1 and active.isdisjoint(keys)
            for key in keys
        ]
        if gone:
            # Whoever came back since they were asked about.
            async with asyncio.timeout(_LOCKED_SECONDS):
                active = await _with_events(store, app_id, [UUID(bytes=key[16:]) for key in gone])
            going = set(gone)
            gone = [key for keys in persons.values() if active.isdisjoint(keys) for key in keys if key in going]
        if gone:
            identifiers = await _remove(Identifier, app_id, gone)
            await IdentitySection.delete().where(IdentitySection.app == app_id.bytes)
            await bulk.run(Person, "DELETE FROM person WHERE key = ?", [(key,) for key in sorted(gone)])
            await _remove_visitors(app_id, gone, before_ms)
            # Begun before they are forgotten: nobody would ask about them again.
            theirs = _listed([UUID(bytes=key[16:]) for key in gone])
            mark = str(UUID(bytes=gone[0][16:]))
            async with asyncio.timeout(_LOCKED_SECONDS):
                await mutate(store, "person_properties", "DELETE", f"{app} AND person_id IN ({theirs})", mark)
                await mutate(store, "person_aliases", "DELETE", f"{app} AND person IN ({theirs})", mark)
    if gone:
        ids = [key[16:] for key in gone]
        await access_tokens.forget(app_id, before_ms, persons=ids, fbids=_values(identifiers, FBID_KIND))
    return len(set(roots).intersection(gone))


async def _expire_states(store: Store, app_id: UUID) -> None:
    """What became of their access tokens goes with anonymous visitors, too, who have nothing else to go."""
    mine = f"app_id = '{app_id}'"
    state = f"{mine} AND field = 'facebook_state'"
    after = NOBODY
    while rows := await store.query(
        f"SELECT DISTINCT person_id AS person FROM person_properties WHERE {state} AND person_id > '{after}' "
        f"AND person_id NOT IN (SELECT person_id FROM events WHERE {mine}) ORDER BY person LIMIT {_PEOPLE_AT_ONCE}",
        {},
    ):
        ids: list[UUID] = [row["person"] for row in rows]
        after = ids[-1]
        # Who is known stays, or went before; their events may still be under another id.
        known = await Person.select(Person.key).where(Person.key.is_in([person_key(app_id, id) for id in ids]))
        strangers = sorted(set(ids) - {UUID(bytes=row["key"][16:]) for row in known})
        if strangers:
            these = f"{state} AND person_id IN ({_listed(strangers)})"
            await mutate(store, "person_properties", "DELETE", these, str(strangers[0]))


async def _with_events(store: Store, app_id: UUID, ids: Sequence[UUID]) -> set[bytes]:
    """The keys of those of the persons who have events."""
    rows = await store.query(
        f"SELECT person_id AS person FROM events WHERE app_id = '{app_id}' AND person_id IN ({_listed(ids)}) "
        "GROUP BY person_id",
        {},
    )
    return {app_id.bytes + row["person"].bytes for row in rows}


async def unscoped_off_the_disk() -> None:
    """Have SQLite write over what was deleted: until then it can be found in its log."""
    if Deletion._meta.db.engine_type == "sqlite":
        await Deletion.raw("PRAGMA wal_checkpoint(TRUNCATE)")


async def _work_off(store: Store, deletion: Deletion, digested_until: datetime, now: datetime) -> bool:
    work = msgspec.msgpack.decode(deletion.work or b"", type=_Work)
    work.before = min(work.before, int(deletion.requested_at.timestamp() * 1000))
    gone_at = await _remove_rows(store, deletion, work, digested_until, now)
    if gone_at is None or await _old_parts(store, gone_at):
        return False
    ended = (
        await Deletion.update({Deletion.done_at: now, Deletion.work: None})
        .where(Deletion.id == deletion.id, Deletion.done_at.is_null())
        .returning(Deletion.id)
    )
    return bool(ended)


async def _forget_tokens(app_id: UUID, work: _Work) -> None:
    await access_tokens.forget(
        app_id,
        work.before,
        persons=[each.bytes for each in work.persons],
        visitors=work.visitors,
        uuids=work.uuids,
        emails=work.emails,
        fbids=work.fbids,
    )


async def _remove_rows(
    store: Store, deletion: Deletion, work: _Work, digested_until: datetime, now: datetime
) -> int | None:
    """Begin to remove what there is in the stores; since when nothing is left or to come (seconds), else None."""
    await _forget_tokens(deletion.app_id, work)

    async def removing(name: str, rows: int) -> None:
        """Written down before it begins: killed then, the receipt knows; done again, it counts once."""
        sure, begun = work.removed.get(name, (0, 0))
        work.removed[name] = (sure, max(begun, rows))
        await _write_down(deletion, work)

    app = f"app_id = '{deletion.app_id}'"
    persons = _listed(work.persons)
    mark = str(work.persons[0])
    old = f"{app} AND received_at < fromUnixTimestamp64Milli({work.before}, 'UTC')"
    # What events of theirs brought whoever they were stored as.
    brought = ", ".join(str(property_version(id.bytes)) for id in work.also)
    theirs = f"{old} AND (person_id IN ({persons}){brought and f' OR version IN ({brought})'})"
    but, also = _listed(work.but), _listed(work.also)
    events = await mutate(
        store,
        "events",
        "DELETE",
        f"{old} AND (person_id IN ({persons}){but and f' AND id NOT IN ({but})'}{also and f' OR id IN ({also})'})",
        mark,
        before=functools.partial(removing, "events"),
    )
    properties = await mutate(
        store,
        "person_properties",
        "DELETE",
        theirs,
        mark,
        "uniqExact(field)",
        before=functools.partial(removing, "properties"),
    )
    if work.was and work.gone_at is None:
        # Who keeps what their own events brought. Rows inserted after a mutation began are not its.
        own = f"{app} AND person_id IN ({_listed(work.was)}) AND id NOT IN ({also})"
        await store.change(f"INSERT INTO person_properties {PROPERTIES.format(rows=own)}")
    merges = f"{app} AND (alias IN ({persons}) OR person IN ({persons})) AND version <= {work.revision}"
    aliases = await mutate(store, "person_aliases", "DELETE", merges, mark)
    rejections = await _change_mentions(
        store, work.emails, old, "rejections", "DELETE", functools.partial(removing, "rejections")
    )
    others = await _change_mentions(store, work.emails, old, "events", "UPDATE query = ''")
    addressed = await _change_addressed(store, work.emails, old)
    for name, found in (("events", events), ("properties", properties), ("rejections", rejections)):
        if name in work.removed and (found.begun or not found.rows):
            work.removed[name] = (sum(work.removed[name]), 0)
    gone = not any(found.rows for found in (events, properties, aliases, rejections, others, addressed))
    if not gone or deletion.requested_at > digested_until:
        work.gone_at = None
    elif work.gone_at is None:
        work.gone_at = int(now.timestamp())
    await _write_down(deletion, work)
    return work.gone_at


async def _write_down(deletion: Deletion, work: _Work) -> None:
    """How far it is. Not of one that another process ended meanwhile."""
    counts = {name: sum(counted) for name, counted in work.removed.items()}
    await Deletion.update({Deletion.work: msgspec.msgpack.encode(work), **counts}).where(
        Deletion.id == deletion.id, Deletion.done_at.is_null()
    )


async def _old_parts(store: Store, since: int) -> bool:
    """Whether the engine still has the files of what mutations replaced until then (seconds)."""
    found = await store.query(
        "SELECT 1 AS x FROM system.parts WHERE database = currentDatabase() AND table IN {tables:Array(String)} "
        "AND NOT active AND remove_time <= toDateTime({since:UInt32}) LIMIT 1",
        {"tables": list(TABLES), "since": since},
    )
    return bool(found)


async def _change_mentions(
    store: Store, emails: Sequence[str], old: str, table: str, verb: str, before: Before | None = None
) -> Found:
    """Do this to the `old` rows whose query has one of the addresses; a mutation names them by their ids.

    With those of some addresses at a time: the next round finds others.
    """
    for start in range(0, len(emails), _ADDRESSES_AT_ONCE):
        theirs = await _mentioning(store, emails[start : start + _ADDRESSES_AT_ONCE], old, table)
        if theirs:
            return await mutate(
                store, table, verb, f"{old} AND id IN ({_listed(theirs)})", str(theirs[0]), before=before
            )
    return Found(0, begun=False)


async def _mentioning(store: Store, emails: Sequence[str], old: str, table: str) -> list[UUID]:
    """Some of the `old` rows whose query has one of the addresses, if there are any."""
    mentioned = (
        "multiSearchAnyCaseInsensitiveUTF8(query, {texts:Array(String)}) "
        "OR multiSearchAny(query, {base64:Array(String)})"
    )
    values: dict[str, Any] = {
        "texts": [form for email in emails for form in _escaped(email)],
        "base64": [form for email in emails for form in _in_base64(email)],
        "after": str(UUID(int=0)),
    }
    # The engine finds joann@example.org for ann@example.org, too, and all there are of hers.
    while True:
        rows = await store.query(
            f"SELECT id, query FROM {table} WHERE {old} AND id > {{after:UUID}} AND ({mentioned}) "
            f"ORDER BY id LIMIT {_NAMED_AT_ONCE}",
            values,
        )
        # Not on the loop that takes hits: who sends queries as long as they may be can have it take seconds.
        theirs = await asyncio.to_thread(_those_mentioning, rows, emails)
        if theirs or len(rows) < _NAMED_AT_ONCE:
            return theirs
        values["after"] = str(rows[-1]["id"])


def _those_mentioning(rows: Sequence[Mapping[str, Any]], emails: Sequence[str]) -> list[UUID]:
    return [row["id"] for row in rows if mentions(row["query"], emails)]


async def _change_addressed(store: Store, emails: Sequence[str], old: str) -> Found:
    """Take the addresses from events that are somebody else's, with what was sent."""
    if not emails:
        return Found(0, begun=False)
    rows = await store.query(
        f"SELECT id FROM events WHERE {old} AND has({{emails:Array(String)}}, email) LIMIT {_NAMED_AT_ONCE}",
        {"emails": list(emails)},
    )
    if not rows:
        return Found(0, begun=False)
    ids = [row["id"] for row in rows]
    return await mutate(
        store, "events", "UPDATE email = '', query = ''", f"{old} AND id IN ({_listed(ids)})", str(ids[0])
    )


def mentions(query: str, emails: Sequence[str]) -> bool:
    """Whether one of the addresses stands in the query, by itself: percent-encoded up to three times, or in Base64."""
    texts = [query]
    for _ in range(3):
        texts.append(unquote(texts[-1]))
    texts += [text for each in set(texts) for found in _BASE64.findall(each) for text in _decoded(found)]
    for text in dict.fromkeys(texts):
        lowered = text.lower()
        # To look for all of them at once takes a hundred times as long, and most texts have none.
        for email in emails:
            if email.lower() in lowered and re.search(
                rf"(?<![\w.%+-]){re.escape(email)}(?![\w-]|\.\w)", text, re.IGNORECASE
            ):
                return True
    return False


# Long enough for an address.
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{4,}")


def _decoded(text: str) -> list[str]:
    """What the text may be in Base64 of either alphabet, wherever in it the encoding begins."""
    text = text.replace("-", "+").replace("_", "/")
    found: list[str] = []
    for start in range(4):
        groups = text[start:]
        data = base64.b64decode(groups + "=" * (-len(groups) % 4)) if len(groups) % 4 != 1 else b""
        found.append((data or base64.b64decode(groups[:-1])).decode("utf-8", "replace"))
    return found


def _escaped(email: str) -> list[str]:
    """The address as it may stand in a query string: percent-encoded up to three times."""
    forms = [email]
    for _ in range(3):
        forms.append(quote(forms[-1], safe=""))
    return forms


def _in_base64(email: str) -> list[str]:
    """The address as it may stand in Base64, of either alphabet: at each of three offsets, without the edges."""
    forms: set[str] = set()
    for offset in range(3):
        data = b"\0" * offset + email.encode()
        start = -(-offset * 4 // 3)
        end = len(data) * 4 // 3
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            form = encode(data).decode()[start:end]
            forms |= {form, quote(form, safe="")}
    return sorted(forms)


async def _lock_clock(app_id: UUID) -> int:
    """Keep everybody else from changing the app's persons until the transaction ends; returns the revision."""
    rows: list[dict[str, Any]] = await IdentityClock.raw(
        "INSERT INTO identity_clock (app, newest, revision) VALUES ({}, 0, 1) "
        "ON CONFLICT (app) DO UPDATE SET revision = identity_clock.revision + 1 RETURNING revision",
        app_id.bytes,
    )
    return rows[0]["revision"]


async def _owned(cookies: Sequence[bytes]) -> set[bytes]:
    """Those of the keys that are cookies somebody owns."""
    return {key for (key,) in await bulk.find(Visitor, ("key",), "key", cookies)}


async def _reattributed(app_id: UUID, persons: set[bytes]) -> tuple[list[UUID], list[UUID], list[UUID]]:
    """Events that are these persons' but were stored as somebody else's, as whose, and events the other way round.

    Of the first nothing has to be put right any more. There are rarely any: what two machines digested within seconds.
    """
    after = (app_id.int + 1).to_bytes(16, "big")
    rows = await Reattribution.select().where(Reattribution.person >= app_id.bytes, Reattribution.person < after)
    also = [row["hit_id"] for row in rows if row["person"] in persons]
    but = [row["hit_id"] for row in rows if row["was"] in persons and row["person"] not in persons]
    if also:
        await Reattribution.delete().where(Reattribution.hit_id.is_in(also))
    was = {row["was"] for row in rows if row["person"] in persons and row["was"] not in persons}
    stored_as = [UUID(bytes=each[16:]) for each in was]
    return [UUID(bytes=each) for each in also], stored_as, [UUID(bytes=each) for each in but]


def _values(identifiers: Sequence[bytes], kind: int) -> list[str]:
    return [key[17:].decode(errors="surrogatepass") for key in identifiers if key[16] == kind]


def _listed(ids: Sequence[UUID]) -> str:
    return ", ".join(f"'{each}'" for each in ids)


async def _remove_visitors(app_id: UUID, persons: Sequence[bytes], at: int) -> list[bytes]:
    """Remove the cookies of persons who are removed already; returns the keys.

    On a shared browser somebody else may be named after the cookie. What it does next would be theirs, so such a cookie
    is of somebody new, of whom nothing is known since `at` (ms).
    """
    removed = await _remove(Visitor, app_id, persons)
    named = await bulk.find(Person, ("key",), "key", removed)
    new = [(cookie, app_id.bytes + uuid4().bytes) for (cookie,) in named]
    columns = ("key", "kinds", "size", "known_at", "found_at", "todo", "revision")
    await bulk.put(Person, columns, [(person, 0, 0, at, 0, 0, 0) for _, person in new])
    await bulk.put(Visitor, ("key", "person"), new)
    return removed


async def _remove(table: type[Identifier | Visitor], app_id: UUID, persons: Sequence[bytes]) -> list[bytes]:
    """Remove what these persons own; returns the keys."""
    # No index finds cookies by person: all the app's are looked at, a million in a fifth of a second.
    app = app_id.bytes if table is Visitor else None
    removed = [key for (key,) in await bulk.find(table, ("key",), "person", persons, app=app)]
    await bulk.run(table, f"DELETE FROM {table._meta.tablename} WHERE key = ?", [(key,) for key in sorted(removed)])
    return removed
