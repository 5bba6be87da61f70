"""The control database: what must be unique and transactional. What grows with traffic is in the event store.

Times are timezone-aware UTC. Secrets (passwords, API keys, session tokens) are stored as hashes only.
"""
# Piccolo keeps a table's engine in `_meta`, and its annotations leave type arguments open.
# pyright: reportPrivateUsage=false, reportUnknownMemberType=false, reportUnknownVariableType=false

import unicodedata
from contextlib import AbstractAsyncContextManager
from enum import StrEnum
from typing import Any

from piccolo.columns import (
    UUID,
    BigInt,
    BigSerial,
    Boolean,
    Bytea,
    ForeignKey,
    Integer,
    OnDelete,
    Serial,
    Text,
    Timestamptz,
    Varchar,
)
from piccolo.columns.defaults.uuid import UUID4
from piccolo.table import Table

from tenants.errors import InvalidValue, NotFound


class Role(StrEnum):
    """What a user may do in a tenant."""

    OWNER = "owner"
    MEMBER = "member"
    VIEWER = "viewer"


class Tenant(Table):
    """A customer. `rate` is in events a second, `burst` in events, both over all its apps."""

    id: Serial
    name = Varchar(length=100)
    rate = Integer(default=1_000)
    burst = Integer(default=5_000)
    created_at = Timestamptz()


# `user` is a reserved word in PostgreSQL.
class User(Table, tablename="users"):
    """Somebody who logs in. `email` is lower-cased; without `password_hash` there is no login."""

    id: Serial
    email = Varchar(length=254, unique=True)
    name = Varchar(length=100)
    password_hash = Text(null=True, default=None, secret=True)
    created_at = Timestamptz()


class Membership(Table):
    """A user's one role in a tenant."""

    id: Serial
    tenant = ForeignKey(Tenant, null=False, on_delete=OnDelete.cascade)
    user = ForeignKey(User, null=False, on_delete=OnDelete.cascade, index=True)
    role = Varchar(length=10, choices=Role, default=Role.VIEWER)


class App(Table):
    """A site or newsletter of a tenant. Its id names its rows in the event store: it is never used again."""

    id = UUID(primary_key=True, default=UUID4())
    tenant = ForeignKey(Tenant, null=False, on_delete=OnDelete.cascade, index=True)
    name = Varchar(length=100)
    currency = Varchar(length=3, default="USD")
    timezone = Varchar(length=64, default="UTC")
    honour_privacy_signals = Boolean(default=True)
    # How long events and rejections are kept, in days; None is for ever.
    retention_days = Integer(null=True, default=None)
    # What came before was deleted as too old, however long they are kept by now; None where nothing ever was.
    expired_before = Timestamptz(null=True, default=None)
    created_at = Timestamptz()


class AppToken(Table):
    """A token in pixel URLs. The row outlives its app, so that every process hears of the end: see tokens.py.

    Hence `restrict`: an app is deleted after its tokens were revoked and let go, or not at all.
    """

    id: Serial
    app = ForeignKey(App, null=True, on_delete=OnDelete.restrict, index=True)
    token = Varchar(length=24, unique=True)
    created_at = Timestamptz()
    expires_at = Timestamptz(null=True, default=None)
    revoked_at = Timestamptz(null=True, default=None)
    revision = BigInt(index=True)
    last_used_at = Timestamptz(null=True, default=None)


class ApiKey(Table):
    """A key that reads the tenant's data, of one app or of all, and deletes people where it `may_delete`.

    `prefix` is what people recognise it by.
    """

    id: Serial
    tenant = ForeignKey(Tenant, null=False, on_delete=OnDelete.cascade, index=True)
    name = Varchar(length=100)
    key_hash = Varchar(length=64, unique=True, secret=True)
    prefix = Varchar(length=12)
    app = ForeignKey(App, null=True, on_delete=OnDelete.cascade, index=True)
    may_delete = Boolean(default=False)
    created_at = Timestamptz()
    last_used_at = Timestamptz(null=True, default=None)
    revoked_at = Timestamptz(null=True, default=None)


# Its index on `user` would be called session_user, which is a reserved word too.
class Session(Table, tablename="sessions"):
    """A login in one browser, and which of the user's tenants it shows."""

    id: Serial
    user = ForeignKey(User, null=False, on_delete=OnDelete.cascade, index=True)
    tenant = ForeignKey(Tenant, null=True, default=None, on_delete=OnDelete.cascade)
    token_hash = Varchar(length=64, unique=True, secret=True)
    created_at = Timestamptz()
    expires_at = Timestamptz()
    last_seen_at = Timestamptz()
    user_agent = Varchar(length=255)


class Invitation(Table):
    """Somebody asked to join a tenant; whoever has the link and this e-mail address may. Gone once used."""

    id: Serial
    tenant = ForeignKey(Tenant, null=False, on_delete=OnDelete.cascade, index=True)
    email = Varchar(length=254)
    role = Varchar(length=10, choices=Role, default=Role.VIEWER)
    token_hash = Varchar(length=64, unique=True, secret=True)
    created_at = Timestamptz()
    expires_at = Timestamptz()


class Tries(Table):
    """How often something was tried since `since`: logins of a mailbox, of an address. `key` is a hash of which."""

    key = Varchar(length=64, primary_key=True, default=None)
    # Nobody counts this table's rows.
    count = Integer(default=0)  # pyright: ignore[reportAssignmentType]
    since = Timestamptz(index=True)


class Erasure(Table):
    """A deleted app whose rows are to go from the event store, which may be away when the app is deleted."""

    app_id = UUID(primary_key=True, default=None)
    requested_at = Timestamptz()


class Deletion(Table):
    """A person who was deleted: the receipt, with how much of what went, and nothing of theirs.

    `asked_by` is a user's name, an API key's prefix or the command line. `work` tells what is still to be looked for
    (see deletions.py), the last time at `looked_at` (ms); null when all is gone, which was at `done_at`.
    """

    id = UUID(primary_key=True, default=UUID4())
    app_id = UUID(index=True)
    requested_at = Timestamptz()
    asked_by = Varchar(length=100)
    persons = Integer(default=0)
    identifiers = Integer(default=0)
    visitors = Integer(default=0)
    properties = BigInt(default=0)
    events = BigInt(default=0)
    rejections = BigInt(default=0)
    done_at = Timestamptz(null=True, default=None)
    work = Bytea(null=True, default=None, secret=True)
    looked_at = BigInt(default=0)


class Revision(Table):
    """One row: the number of the last change that ingest has to hear of."""

    id: Serial
    n = BigInt()


class EventId(Table):
    """Which hit owns a customer's `event_id`: see event_ids.py. No foreign keys, it is written in bulk."""

    key = Bytea(primary_key=True, default=None)
    hit_id = Bytea(default=None)
    received_at = BigInt(index=True)


# Who events belong to: see people.py. Written in bulk, hence no foreign keys. A `key` begins with 16 bytes, the app id.


class IdentityClock(Table):
    """How far an app's persons are told apart; whoever changes them holds its row.

    `newest`: when the newest hit came, in ms. `revision`: counts the changes.
    """

    app = Bytea(primary_key=True, default=None)
    newest = BigInt()
    revision = BigInt(default=0)


class Person(Table):
    """Somebody of whom an identifier is known, or who turned out to be somebody else; not an anonymous visitor, but for
    one who goes on with a cookie that another person is named after.

    `key` is app id and person id. `kinds` are those of its identifiers, a bit each, `size` is how many there are,
    `known_at` when the first one came, in ms. `merged_into` is the key of the person that this one was all along.
    `todo`: what the event store has yet to do about it, bits of people.py; it was found out at `found_at` (ms), in that
    `revision`.
    """

    key = Bytea(primary_key=True, default=None)
    kinds = Integer(default=0)
    size = Integer(default=0)
    known_at = BigInt(default=0)
    merged_into = Bytea(null=True, default=None)
    found_at = BigInt(default=0)
    todo = Integer(default=0)
    revision = BigInt(default=0)


class Identifier(Table):
    """Whose it is. `key` is app id, kind (a byte) and value; `person` the key of its owner, who may be merged."""

    key = Bytea(primary_key=True, default=None)
    person = Bytea(default=None, index=True)


class Visitor(Table):
    """Whose the visitor cookie is. `key` is app id and cookie. The event store knows a person's cookies."""

    key = Bytea(primary_key=True, default=None)
    person = Bytea(default=None)


class IdentitySection(Table):
    """The hits of the last seconds, to be placed again in their order should an earlier one turn up."""

    # Several a second and app: 32 bits are used up within weeks.
    id = BigSerial(primary_key=True)
    app = Bytea(index=True)
    first = BigInt()
    last = BigInt()
    entries = Bytea()


class IdentifiedBatch(Table):
    """Whose the hits of the last batch of a machine's journal are, should it have to be done again."""

    journal = Varchar(length=32, primary_key=True, default=None)
    batch = Varchar(length=32)
    persons = Bytea()
    identified_at = BigInt()


class Reattribution(Table):
    """An event that is somebody else's than was stored, since an earlier hit turned up: keys of both persons."""

    hit_id = Bytea(primary_key=True, default=None)
    received_at = BigInt()
    was = Bytea()
    person = Bytea()
    since = BigInt()


class Forgotten(Table):
    """An identifier of somebody who was deleted, as a hash: hits with it that came `before` (ms) are not stored."""

    key = Bytea(primary_key=True, default=None)
    before = BigInt(index=True)


# Facebook: see facebook.py, access_tokens.py and audiences.py. What is `sealed` is encrypted: see secrets.py.


class FacebookApp(Table):
    """The Facebook app that an app's access tokens are of, and its secret."""

    id: Serial
    app = ForeignKey(App, null=False, unique=True, on_delete=OnDelete.cascade)
    facebook_app_id = Varchar(length=20)
    sealed_secret = Bytea(default=None, secret=True)


class GraphPause(Table):
    """When Graph may be asked again for an app's tokens (ms), and the error it gave last, 0 for none."""

    app_id = UUID(primary_key=True, default=None)
    until = BigInt(default=0)
    code = Integer(default=0)


class TokenState(StrEnum):
    """What became of an access token."""

    WAITING = "waiting"
    RESOLVED = "resolved"
    EXPIRED = "expired"
    REFUSED = "refused"
    UNRESOLVED = "unresolved"


class AccessToken(Table):
    """A Facebook access token and, once it is resolved, whose it is; the token itself is gone then.

    `key` is app id and a keyed hash of the token. `received_at` is of its first hit, in ms. `due_at`: when to ask Graph
    next; whoever asks moves it on first, so that no other process does. `sealed_profile` has the name, the e-mail
    address and the Custom Audience id.
    """

    key = Bytea(primary_key=True, default=None)
    app_id = UUID(default=None)
    state = Varchar(length=10, choices=TokenState, default=TokenState.WAITING)
    sealed = Bytea(null=True, default=None, secret=True)
    fbid = Varchar(length=20, null=True, default=None)
    sealed_profile = Bytea(null=True, default=None, secret=True)
    received_at = BigInt(index=True)
    due_at = BigInt(null=True, default=None)
    attempts = Integer(default=0)


class TokenSender(Table):
    """Who sent an access token: of a visitor with the same identifiers the first hit, and the person it is of.

    `key` is app id and a keyed hash of all that. `due_at` (ms): what became of the token is to be told to the person
    then; the row stays, without what says who it was, so that nobody is told again.
    """

    key = Bytea(primary_key=True, default=None)
    app_id = UUID(default=None, index=True)
    token = Bytea(default=None, index=True)
    hit_id = Bytea(default=None)
    received_at = BigInt(index=True)
    visitor = Bytea(null=True, default=None)
    uuid = Text(null=True, default=None)
    email = Text(null=True, default=None)
    fbid = Text(null=True, default=None)
    person = Bytea(null=True, default=None, index=True)
    told = Boolean(default=False)
    due_at = BigInt(null=True, default=None)


class Audience(Table):
    """A Custom Audience of Meta's that an app's people go into: those of `segment` (a query string), else all."""

    id: Serial
    app = ForeignKey(App, null=False, on_delete=OnDelete.cascade, index=True)
    name = Varchar(length=100)
    audience_id = Varchar(length=30)
    sealed_token = Bytea(default=None, secret=True)
    segment = Text(default="")
    created_at = Timestamptz()
    # When it is next pushed by itself; None: only when somebody asks.
    daily_at = Timestamptz(null=True, default=None, index=True)


class AudienceRun(Table):
    """A push of an audience, one at a time. `due_at`: as AccessToken's, null once it has ended.

    `people` are in the audience, `sent` rows were sent, of which Meta took `received` and could not read `invalid`.
    `after` is the person up to whom (by id) all are sent, with `batches` of the session.
    """

    id: Serial
    audience = ForeignKey(Audience, null=False, on_delete=OnDelete.cascade, index=True)
    requested_at = Timestamptz()
    started_at = Timestamptz(null=True, default=None)
    finished_at = Timestamptz(null=True, default=None)
    due_at = BigInt(null=True, default=None, index=True)
    attempts = Integer(default=0)
    session = BigInt(default=0)
    batches = Integer(default=0)
    after = Bytea(null=True, default=None)
    people = Integer(default=0)
    sent = Integer(default=0)
    received = Integer(default=0)
    invalid = Integer(default=0)
    # A sentence; of a run that goes on, why it waits.
    error = Varchar(length=200, default="")


TABLES: tuple[type[Table], ...] = (
    Tenant,
    User,
    Membership,
    App,
    AppToken,
    ApiKey,
    Session,
    Invitation,
    Tries,
    Erasure,
    Deletion,
    Revision,
    EventId,
    IdentityClock,
    Person,
    Identifier,
    Visitor,
    IdentitySection,
    IdentifiedBatch,
    Reattribution,
    Forgotten,
    FacebookApp,
    GraphPause,
    AccessToken,
    TokenSender,
    Audience,
    AudienceRun,
)

# What a table's columns cannot say. Piccolo's `Unique` over several columns needs ALTER TABLE … ADD
# CONSTRAINT, which SQLite does not have.
INDEXES = (
    'CREATE UNIQUE INDEX membership_tenant_user ON membership (tenant, "user")',
    # What is done with costs them nothing.
    "CREATE INDEX access_token_due ON access_token (app_id, due_at) WHERE due_at IS NOT NULL",
    "CREATE INDEX token_sender_due ON token_sender (app_id, due_at) WHERE due_at IS NOT NULL",
    # No two at once.
    "CREATE UNIQUE INDEX audience_run_unfinished ON audience_run (audience) WHERE finished_at IS NULL",
    "CREATE INDEX person_todo ON person (key) WHERE todo > 0",
    # Before every batch it is asked who is to be told of; there may be far more with something else to be done.
    "CREATE INDEX person_to_tell ON person (key) WHERE todo % 2 = 1",
    "CREATE INDEX person_merged_into ON person (merged_into) WHERE merged_into IS NOT NULL",
)


def transaction() -> AbstractAsyncContextManager[Any]:
    """A transaction that writes: on SQLite it waits for the one writer when it begins, not half-way.

    Raises TransactionError inside another one: an inner one would neither commit nor roll back on its own.
    """
    return Tenant._meta.db.transaction(allow_nested=False)


# Whose rows are named by their numbers in addresses and forms, and are deleted one day.
_NUMBERED = (Tenant, User, Audience, ApiKey, Invitation)


async def fresh_id() -> dict[str, Any]:
    """The id of a new row of theirs, which none had before; inside a transaction. PostgreSQL gives it itself.

    SQLite gives the id of the newest row, once that is deleted, to the next: whatever still names the one, a page that
    is open say, would be the other's. What was given last is in the file's header.
    """
    if Tenant._meta.db.engine_type != "sqlite":
        return {}
    given = ", ".join(f"(SELECT coalesce(max(id), 0) FROM {table._meta.tablename})" for table in _NUMBERED)
    rows: list[dict[str, int]] = await Tenant.raw(
        f"SELECT 1 + max(user_version, {given}) AS fresh FROM pragma_user_version"
    )
    fresh = rows[0]["fresh"]
    await Tenant.raw(f"PRAGMA user_version = {fresh}")
    return {"id": fresh}


async def lock(tenant: Tenant) -> None:
    """Have others that lock the tenant wait until this transaction ends, to see what it did; raises NotFound."""
    if not await Tenant.raw("UPDATE tenant SET name = name WHERE id = {} RETURNING id", tenant.id):
        raise NotFound


async def check_role(tenant: Tenant, by: User | None, *roles: Role) -> None:
    """See that who asks has one of the roles still, in a transaction that locked the tenant; raises NotFound.

    Rights were looked up when the request came; whoever took them may have been before it in the queue for this lock.
    None is whoever runs the server.
    """
    if by is not None and not await Membership.exists().where(
        Membership.tenant == tenant.id, Membership.user == by.id, Membership.role.is_in(list(roles))
    ):
        raise NotFound


async def lock_user(user_id: int) -> bool:
    """As `lock`, so that what they belong to stays as it is; False when there is no such user. After their tenant."""
    found: Any = await User.raw("UPDATE users SET name = name WHERE id = {} RETURNING id", user_id)
    return found != []


# Words in Persian, Sinhala and others are written with them, and many emoji.
_JOINERS: dict[int, None] = {0x200C: None, 0x200D: None}
# Controls, formats, halves of characters, ends of lines. Python calls other spaces than ours (Japanese names have one)
# and emoji younger than itself not printable, too.
_UNSEEN = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))


def clean_name(name: str) -> str:
    """The name stripped; raises InvalidValue unless 1-100 characters are left that can be seen."""
    name = name.strip()
    if not 1 <= len(name) <= 100:
        raise InvalidValue("name", "A name has 1 to 100 characters.")
    seen = name.translate(_JOINERS)
    if not seen or any(unicodedata.category(character) in _UNSEEN for character in seen):
        raise InvalidValue("name", "This name has a character that cannot be shown, such as a line break.")
    return name


def as_key(number: int) -> int:
    """The number, as the id of a row to look for.

    Raises NotFound where it cannot be one: PostgreSQL refuses a number that its column cannot hold.
    """
    if not 0 < number < 2**31:
        raise NotFound
    return number
