"""The command line: one verb a function. The help text is the manual.

Errors are one line on standard error and exit status 2. `--json` prints one object on standard output.
"""

import argparse
import asyncio
import contextlib
import functools
import getpass
import http.client
import io
import json
import os
import shutil
import sqlite3
import sys
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Generator
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from importlib.metadata import version
from typing import Any, Literal, NoReturn
from uuid import UUID

import uvloop

from server import logs
from server.app import CannotStart, Role, announce, check_port, own_data_dir, run, running_server
from server.database import Database
from server.digest import State, measure_journal
from server.event_store import EventStore
from server.journal import Backlog
from server.limits import PROCESSES
from server.settings import Settings, WrongSetting
from server.workers import supervise
from tenants import accounts, apps, keys, sessions, tokens
from tenants.deletions import delete_person, find_person, list_deletions
from tenants.errors import InvalidValue, NewerSchema, NotFound, SeveralTenants, Unavailable
from tenants.identifiers import known, owner_of
from tenants.person_exports import export_person
from tenants.tables import App, Tenant, User

Arguments = argparse.Namespace

_COPIED_BYTES = 65_536


class _Stop(Exception):
    """End with this line on standard error and status 2."""


class _NotWritten(Exception):
    """Standard output does not take what is written to it."""


class _Output:
    """Standard output, whose errors are not taken for those of whatever the written comes from."""

    def write(self, data: bytes) -> None:
        try:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        except OSError as error:
            raise _NotWritten(error.strerror) from error


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, where argparse prints its usage too."""
        raise _Stop(f"{self.prog}: {message}; see {self.prog} --help")


def main() -> None:
    """The command `onepx`."""
    # Whatever it writes holds tenants' data or keys: for the owner alone.
    os.umask(0o077)
    _have_standard_streams()
    try:
        arguments = _parser().parse_args()
        settings = Settings.from_environment(
            host=getattr(arguments, "host", None), port=getattr(arguments, "port", None)
        )
        logs.set_up(settings.log_level, settings.log_format)
        if settings.unknown and not getattr(arguments, "worker_of", None):
            print(f"onepx: not a setting, ignored: {', '.join(settings.unknown)}", file=sys.stderr)
        status = arguments.verb(settings, arguments)
    except (_Stop, WrongSetting, CannotStart, Unavailable, InvalidValue) as error:
        print(f"onepx: {str(error).removeprefix('onepx: ')}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except (BrokenPipeError, _NotWritten) as error:
        # Python writes what is left once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error.__cause__ or error, BrokenPipeError):  # whoever read our output has seen enough
            sys.exit(1)
        print(f"onepx: standard output: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(status)


def _have_standard_streams() -> None:
    """Open those that were closed (`>&-`): a file of ours would get the number, and what is meant for the stream."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))


# serve, collect


def _serve(settings: Settings, arguments: Arguments) -> int:
    if settings.embedded_events:
        if arguments.workers > 1:
            raise _Stop(
                "the embedded event store is for one process, so serve has one worker; for more cores start "
                "`onepx collect` beside it, or set ONEPX_EVENTS_URL to a ClickHouse server"
            )
        settings = settings.prepare_data_dir()
        with own_data_dir(settings):
            uvloop.run(run(settings, Role(pages=True)))
        return 0
    return _run_workers(settings, arguments, pages=True)


def _collect(settings: Settings, arguments: Arguments) -> int:
    return _run_workers(settings, arguments, pages=False)


def _run_workers(settings: Settings, arguments: Arguments, pages: bool) -> int:
    settings = settings.prepare_data_dir()
    if arguments.workers == 1 or arguments.worker_of:
        uvloop.run(run(settings, Role(pages, parent=arguments.worker_of or 0)))
        return 0
    check_port(settings)
    verb = "serve" if pages else "collect"
    child = [verb, "--host", settings.host, "--port", str(settings.port)]
    return asyncio.run(supervise(arguments.workers, child, announce(settings, pages)))


# migrate, check


def _migrate(settings: Settings, arguments: Arguments) -> int:
    settings = settings.prepare_data_dir()

    async def migrate() -> list[str]:
        database = Database(settings.database_url)
        await database.start()
        try:
            return await database.migrate()
        finally:
            await database.close()

    control = asyncio.run(migrate())
    server = running_server(settings) if settings.embedded_events else None
    events: list[str] = []
    if server is None:
        with _event_store(settings) as store:
            events = store.migrate()
    text = f"control database: {', '.join(control) or 'nothing to do'}\nevent store: "
    if server is not None:
        text += f"held by the running onepx serve (process {server.get('pid')}), migrated when it started"
    else:
        text += ", ".join(events) or "nothing to do"
    return _say(arguments, {"control": control, "events": events}, text)


def _check(settings: Settings, arguments: Arguments) -> int:
    given = bool(settings.secret_key)
    settings = settings.prepare_data_dir()
    problems: list[str] = [f"{name} is not a setting; remove or correct it" for name in settings.unknown]
    server = running_server(settings)

    async def ask_database() -> list[str]:
        database = Database(settings.database_url)
        await database.start()
        try:
            await database.ping()
            return await database.pending()
        finally:
            await database.close()

    findings: dict[str, str] = {}
    if not given and not settings.database_url.startswith("sqlite:"):
        findings["secret key"] = "this machine's own; several on one database need the same ONEPX_SECRET_KEY"
    try:
        pending = asyncio.run(ask_database())
        findings["control database"] = "ok" if not pending else f"schema behind: {', '.join(pending)}"
        problems += ["the control database's schema is behind; run `onepx migrate`"] if pending else []
    except NewerSchema as error:
        findings["control database"] = str(error)
        problems.append(str(error))
    except Unavailable as error:
        findings["control database"] = str(error)
        problems.append(f"{error}; check ONEPX_DATABASE_URL and that the database runs")
    try:
        findings["event store"], wrong = _check_events(settings, server)
        problems += wrong
    except NewerSchema as error:
        findings["event store"] = str(error)
        problems.append(str(error))
    except (Unavailable, CannotStart) as error:
        findings["event store"] = str(error)
        problems.append(f"event store: {error}; check ONEPX_EVENTS_URL and that the server runs")

    free = shutil.disk_usage(settings.data_dir).free
    findings["disk"] = f"{free / 1024**3:.1f} GiB free in {settings.data_dir}"
    if free < settings.journal_max_bytes:
        problems.append(
            f"the disk has {free / 1024**3:.1f} GiB free, less than the journal may take "
            f"({settings.journal_max_bytes / 1024**3:.1f} GiB): make room, or lower ONEPX_JOURNAL_MAX_BYTES"
        )
    try:
        aside = measure_journal(settings.journal_dir, Backlog(settings.journal_dir)).set_aside
        findings["set aside"] = f"{aside} hits"
    except Unavailable as error:
        aside, findings["set aside"] = 0, str(error)
        problems.append(str(error))
    if aside:
        problems.append(f"{aside} hits could not be digested; see `onepx digest show`, then `onepx digest retry`")
    if damaged := sorted(path.name for path in settings.journal_dir.glob("*.damaged")):
        findings["damaged"] = ", ".join(damaged)
        problems.append(
            f"pieces of the journal could not be read and are kept in {settings.journal_dir}: {', '.join(damaged)}. "
            "They may hold hits of a disk that failed; look at the disk, then remove them"
        )
    if server is not None:
        findings["server"] = f"onepx serve runs as process {server.get('pid')} on port {server.get('port')}"
    else:
        findings["server"] = "no onepx serve with the embedded event store runs on this data folder"

    values = {name: value for name, value, _ in settings.shown()}
    lines = [f"{name:26} {value}" for name, value in values.items()]
    lines += ["", *(f"{name:26} {finding}" for name, finding in findings.items()), ""]
    lines += [f"wrong: {problem}" for problem in problems] or ["All is well."]
    data = {"ok": not problems, "settings": values, "findings": findings, "problems": problems}
    _say(arguments, data, "\n".join(lines))
    return 1 if problems else 0


def _own_health(url: str) -> dict[str, Any]:
    """What the running server tells of itself, well or not."""
    without_proxy = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with without_proxy.open(url, timeout=10) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        return json.load(error)


def _check_events(settings: Settings, server: dict[str, Any] | None) -> tuple[str, list[str]]:
    """(what was found, what is wrong and what to do) of the event store."""
    if settings.embedded_events and server is not None:
        url = f"http://{server.get('host')}:{server.get('port')}/healthz"
        try:
            found = _own_health(url)["checks"]["event_store"]
        except OSError as error:
            return (
                f"the running server does not answer: {error}",
                [f"{url} does not answer; look at the server's log"],
            )
        return ("ok (asked the running server)", []) if found["ok"] else ("see below", [found["error"]])
    with _event_store(settings) as store:
        wrong = store.wrong()
    return "see below" if wrong else "ok", wrong


# tenant, app, key


def _with_database(
    work: Callable[[Settings, Arguments], Awaitable[int]],
) -> Callable[[Settings, Arguments], int]:
    """Run a verb's coroutine with the control database at hand, its schema up to date."""

    @functools.wraps(work)
    def verb(settings: Settings, arguments: Arguments) -> int:
        settings = settings.prepare_data_dir()

        async def body() -> int:
            database = Database(settings.database_url)
            await database.start()
            try:
                await database.migrate()
                with database.one_line_errors():
                    return await work(settings, arguments)
            finally:
                await database.close()

        return asyncio.run(body())

    return verb


async def _tenant(arguments: Arguments) -> Tenant:
    try:
        return await accounts.tenant_by_email(arguments.tenant)
    except SeveralTenants as error:
        raise _Stop(f"they own several tenants; name one of them: {error}") from None
    except NotFound:
        raise _Stop(f"no tenant's owner has the e-mail address {arguments.tenant}; see `onepx tenant create`") from None


async def _app(arguments: Arguments) -> tuple[Tenant, App]:
    tenant = await _tenant(arguments)
    try:
        return tenant, await apps.app_by_token(tenant, arguments.token)
    except NotFound:
        raise _Stop("this token is none of that tenant's apps'") from None


_ERASED = "Pixels get 404 within 2 s; a running onepx serve erases the events within minutes."


def _same_name(name: str, typed: str) -> None:
    """What is deleted is named twice: nobody can bring it back."""
    if name != typed:
        raise _Stop(f"its name is {name}, not {typed}; nothing was deleted")


def _say(arguments: Arguments, data: dict[str, Any], text: str) -> int:
    line = json.dumps(data) if arguments.json else text
    _Output().write(f"{line}\n".encode(sys.stdout.encoding, "replace"))
    return 0


@_with_database
async def _tenant_create(settings: Settings, arguments: Arguments) -> int:
    del settings
    tenant, user = await accounts.create_tenant(arguments.name, arguments.email, arguments.password)
    data = {"tenant": tenant.name, "email": user.email, "rate": tenant.rate, "burst": tenant.burst}
    hint = f'next: onepx app create --tenant {user.email} --name "My site"'
    return _say(arguments, data, f"Tenant {tenant.name}, {user.email}. {hint}")


@_with_database
async def _tenant_limit(settings: Settings, arguments: Arguments) -> int:
    del settings
    tenant = await _tenant(arguments)
    await accounts.set_limit(tenant, arguments.rate, arguments.burst)
    data = {"tenant": tenant.name, "rate": tenant.rate, "burst": tenant.burst}
    return _say(arguments, data, f"{tenant.name}: {tenant.rate:,} events a second, bursts of {tenant.burst:,}.")


@_with_database
async def _tenant_delete(settings: Settings, arguments: Arguments) -> int:
    del settings
    tenant = await _tenant(arguments)
    _same_name(tenant.name, arguments.name)
    await accounts.delete_tenant(tenant)
    return _say(arguments, {"deleted": tenant.name}, f"Deleted {tenant.name}. {_ERASED}")


@_with_database
async def _user_password(settings: Settings, arguments: Arguments) -> int:
    del settings
    user = await User.objects().where(User.email == accounts.clean_email(arguments.email)).first()
    if user is None:
        raise _Stop(f"nobody has the e-mail address {arguments.email}")
    password = arguments.password
    if password is None:
        try:
            password = getpass.getpass("New password: ")
            again = getpass.getpass("Once more: ")
        except EOFError:
            raise _Stop("nobody is there to be asked for the password; give it with --password") from None
        if password != again:
            raise _Stop("the two passwords differ; nothing was changed")
    await accounts.set_password(user, password)
    await sessions.end_all(user)
    return _say(arguments, {"email": user.email}, f"{user.email} has a new password, and is logged out everywhere.")


@_with_database
async def _app_create(settings: Settings, arguments: Arguments) -> int:
    tenant = await _tenant(arguments)
    app, token = await apps.create_app(tenant, arguments.name, arguments.currency)
    url = f"{settings.pixel_url}/{token}/event.gif?event_token=signup"
    data = {"token": token, "app": str(app.id), "name": app.name, "currency": app.currency, "pixel": url}
    return _say(arguments, data, f"{token}\nApp {app.name}, {app.currency}. A first hit: curl -i '{url}'")


@_with_database
async def _app_delete(settings: Settings, arguments: Arguments) -> int:
    del settings
    _, app = await _app(arguments)
    _same_name(app.name, arguments.name)
    await apps.delete_app(app)
    return _say(arguments, {"deleted": app.name}, f"Deleted {app.name}. {_ERASED}")


@_with_database
async def _app_rotate(settings: Settings, arguments: Arguments) -> int:
    del settings
    _, app = await _app(arguments)
    token = await tokens.rotate(app, timedelta(hours=arguments.overlap_hours))
    text = f"{token}\nThe app's other tokens end in {arguments.overlap_hours:g} hours: change the snippets until then."
    return _say(arguments, {"token": token, "overlap_hours": arguments.overlap_hours}, text)


@_with_database
async def _app_revoke(settings: Settings, arguments: Arguments) -> int:
    del settings
    tenant, app = await _app(arguments)
    await tokens.revoke(tenant, arguments.token)
    return _say(
        arguments,
        {"revoked": arguments.token},
        f"Revoked: hits with this token of {app.name} get 404 within 2 s.",
    )


@_with_database
async def _app_retention(settings: Settings, arguments: Arguments) -> int:
    del settings
    _, app = await _app(arguments)
    days = arguments.days
    await apps.change_app(app, retention_days=days)
    text = "for ever" if days == "ever" else f"for {days:,} days; what is older goes within a day"
    data = {"app": app.name, "retention_days": app.retention_days}
    return _say(arguments, data, f"{app.name} keeps its events {text}.")


@_with_database
async def _key_create(settings: Settings, arguments: Arguments) -> int:
    del settings
    app = None
    if arguments.app is None:
        tenant = await _tenant(arguments)
    else:
        arguments.token = arguments.app
        tenant, app = await _app(arguments)
    key, text = await keys.create_key(tenant, arguments.name, app=app, may_delete=arguments.may_delete)
    data = {"key": text, "name": key.name, "prefix": key.prefix, "may_delete": key.may_delete}
    return _say(arguments, data, f"{text}\nKept as a hash only: this is the one time it is shown.")


# person


async def _person(settings: Settings, arguments: Arguments) -> tuple[Tenant, App, UUID]:
    """Whom the identifiers given are of, or the anonymous visitor with the id given."""
    arguments.token = arguments.app
    tenant, app = await _app(arguments)
    given = {name: getattr(arguments, name) for name in ("email", "uuid", "fbid")}
    if arguments.id:
        found = (await known(app, [arguments.id])).get(arguments.id)
        person = found.id if found else await _visitor(settings, tenant, app, arguments)
    elif any(given.values()):
        person = await owner_of(app, **given)
    else:
        raise _Stop("say who: --email, --uuid, --fbid or --id")
    if person is None:
        raise _Stop("nobody of this app is known by that")
    return tenant, app, person


async def _visitor(settings: Settings, tenant: Tenant, app: App, arguments: Arguments) -> UUID | None:
    """The id given, if there are events of it: all there is of an anonymous visitor."""
    server = running_server(settings) if settings.embedded_events else None
    if server is not None:
        path = f"/api/v1/apps/{arguments.app}/people/{arguments.id}"
        return arguments.id if await _ask_server(server, tenant, path, io.BytesIO()) else None
    with _event_store(settings) as store:
        try:
            return await find_person(app, store, str(arguments.id))
        except NotFound:
            return None


@contextlib.contextmanager
def _event_store(settings: Settings) -> Generator[EventStore]:
    """The event store, while no server of this data folder runs that it belongs to."""
    with own_data_dir(settings) if settings.embedded_events else contextlib.nullcontext():
        store = EventStore(settings.events_url, settings.data_dir / "tmp")
        try:
            yield store
        finally:
            store.close()


@_with_database
async def _person_export(settings: Settings, arguments: Arguments) -> int:
    tenant, app, person = await _person(settings, arguments)
    server = running_server(settings) if settings.embedded_events else None
    if server is not None:
        path = f"/api/v1/apps/{arguments.app}/people/{person}/export"
        if not await _ask_server(server, tenant, path, _Output()):
            raise _Stop("the running server does not know this person any more")
    else:
        with _event_store(settings) as store:
            async for chunk in await export_person(app, store, person, datetime.now(UTC)):
                _Output().write(chunk)
    return 0


async def _ask_server(server: dict[str, Any], tenant: Tenant, path: str, answer: _Output | io.BytesIO) -> bool:
    """Write what the running server answers, to which the event store belongs; False for 404.

    The key for it lives as long.
    """
    key, plaintext = await keys.create_key(tenant, "onepx person")
    url = f"http://{server.get('host')}:{server.get('port')}{path}"
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {plaintext}"})
    try:
        return await asyncio.to_thread(_write_answer, request, answer)
    finally:
        await key.remove()


def _write_answer(request: urllib.request.Request, answer: _Output | io.BytesIO) -> bool:
    without_proxy = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with without_proxy.open(request, timeout=60) as reply:
            while chunk := reply.read(_COPIED_BYTES):
                answer.write(chunk)
    except urllib.error.HTTPError as error:
        if error.code == HTTPStatus.NOT_FOUND:
            return False
        raise _Stop(f"the running server answers {error.code}; try again, or look at its log") from None
    except (OSError, http.client.HTTPException) as error:
        raise _Stop(f"the running server does not answer: {error}") from None
    return True


@_with_database
async def _person_delete(settings: Settings, arguments: Arguments) -> int:
    _, app, person = await _person(settings, arguments)
    deletion = await delete_person(app, person, "command line", datetime.now(UTC))
    text = f"{deletion.id}\nDeleted; a running onepx serve removes the events within minutes. This is the receipt's id."
    return _say(arguments, {"receipt": str(deletion.id), "requested_at": deletion.requested_at.isoformat()}, text)


@_with_database
async def _person_receipts(settings: Settings, arguments: Arguments) -> int:
    del settings
    arguments.token = arguments.app
    _, app = await _app(arguments)
    found = await list_deletions(app)
    rows = [
        {
            "receipt": str(each.id),
            "requested_at": each.requested_at.isoformat(),
            "asked_by": each.asked_by,
            "events": each.events,
            "properties": each.properties,
            "identifiers": each.identifiers,
            "visitors": each.visitors,
            "rejections": each.rejections,
            "done_at": each.done_at and each.done_at.isoformat(),
        }
        for each in found
    ]
    lines = [
        f"{row['receipt']}  {each.requested_at:%Y-%m-%d %H:%M} by {row['asked_by']}: {row['events']:,} events, "
        + (f"done {each.done_at:%Y-%m-%d %H:%M}" if each.done_at else "being removed")
        for each, row in zip(found, rows, strict=True)
    ]
    return _say(arguments, {"deletions": rows}, "\n".join(lines) or "Nobody was deleted.")


# digest, demo


@contextlib.contextmanager
def _digest_state(settings: Settings) -> Generator[State]:
    folder = settings.prepare_data_dir().journal_dir
    try:
        with contextlib.closing(State(folder)) as state:
            yield state
    except sqlite3.Error as error:
        raise _Stop(f"the state of the digest in {folder}: {error}") from None


def _digest_show(settings: Settings, arguments: Arguments) -> int:
    with _digest_state(settings) as state:
        found = state.set_aside()
    rows = [{"number": number, "error": error, "attempts": attempts} for number, error, attempts in found]
    lines = [f"{row['number']:>6}  tried {row['attempts']}x  {row['error']}" for row in rows]
    return _say(arguments, {"set_aside": rows}, "\n".join(lines) or "No hit is set aside.")


def _digest_retry(settings: Settings, arguments: Arguments) -> int:
    with _digest_state(settings) as state:
        count = state.retry_all()
    text = f"{count} hits will be tried again by the process that digests." if count else "No hit is set aside."
    return _say(arguments, {"retried": count}, text)


def _demo(settings: Settings, arguments: Arguments) -> int:
    from server.demo import make_demo  # the one verb that needs it

    return _say(arguments, *make_demo(settings.prepare_data_dir()))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="onepx",
        description="A multi-tenant tracking pixel service: durable hits, events and revenue per app.",
        epilog="Settings come from the environment, all named ONEPX_something; `onepx check` shows them. "
        "Every verb works while the server runs.",
    )
    parser.add_argument("--version", action="version", version=f"onepx {version('onepx')}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    def verb(to: Any, name: str, about: str, run: Callable[[Settings, Arguments], int], data: bool = True) -> _Parser:
        made: _Parser = to.add_parser(name, help=about, description=about[0].upper() + about[1:] + ".")
        made.set_defaults(verb=run)
        if data:
            made.add_argument("--json", action="store_true", help="print one JSON object")
        return made

    def group(name: str, about: str) -> Any:
        made = verbs.add_parser(name, help=about, description=about[0].upper() + about[1:] + ".")
        return made.add_subparsers(metavar="VERB", required=True)

    def of_tenant(made: _Parser) -> _Parser:
        made.add_argument(
            "--tenant",
            required=True,
            metavar="EMAIL",
            help="the tenant owner's e-mail address; EMAIL/NAME of somebody who owns several",
        )
        return made

    for name, about, run_it in (
        (
            "serve",
            "run everything: pixels, digestion, API (more than one worker needs a ClickHouse server)",
            _serve,
        ),
        (
            "collect",
            "take pixels only, into the journal that `onepx serve` on this machine digests",
            _collect,
        ),
    ):
        made = verb(verbs, name, about, run_it, data=False)
        made.add_argument("--host", help="address to listen on (ONEPX_HOST)")
        made.add_argument("--port", help="port to listen on (ONEPX_PORT)")
        made.add_argument("--workers", type=_workers, default=1, help="processes that share the port (1)")
        made.add_argument("--worker-of", type=int, help=argparse.SUPPRESS)
    verb(verbs, "migrate", "bring the schemas of both databases up to date", _migrate)
    verb(verbs, "check", "look at configuration, databases, schema and disk: what is wrong, what to do", _check)

    tenant = group("tenant", "customers")
    made = verb(tenant, "create", "make a tenant and its owner", _tenant_create)
    made.add_argument("--email", required=True, help="the owner's e-mail address")
    made.add_argument("--name", required=True, help="the tenant's name")
    made.add_argument("--password", help="the owner's password; without one there is no login until it is set")
    made = of_tenant(verb(tenant, "limit", "limit a tenant's hits, over all its apps", _tenant_limit))
    made.add_argument("--rate", type=_count, required=True, help="events a second")
    made.add_argument("--burst", type=_count, required=True, help="events at once")
    made = of_tenant(verb(tenant, "delete", "delete a tenant with all its apps, events and users", _tenant_delete))
    made.add_argument("--name", required=True, help="the tenant's name, to be sure")

    user = group("user", "people who log in")
    made = verb(user, "password", "give somebody who forgot theirs a new password", _user_password)
    made.add_argument("--email", required=True, help="their e-mail address")
    made.add_argument("--password", help="the new password; asked for if not given")

    app = group("app", "a tenant's apps and their tokens")
    made = of_tenant(verb(app, "create", "make an app and print its token", _app_create))
    made.add_argument("--name", required=True, help="the app's name")
    made.add_argument("--currency", default="USD", help="ISO 4217 code taken where a hit names none (USD)")
    made = of_tenant(verb(app, "delete", "delete an app with all its events", _app_delete))
    made.add_argument("--token", required=True, help="any token of the app")
    made.add_argument("--name", required=True, help="the app's name, to be sure")
    made = of_tenant(verb(app, "rotate", "issue a new token and let the app's others run out", _app_rotate))
    made.add_argument("--token", required=True, help="any token of the app")
    made.add_argument("--overlap-hours", type=_hours, default=24.0, help="how long the others go on (24)")
    made = of_tenant(verb(app, "revoke", "end a token at once", _app_revoke))
    made.add_argument("--token", required=True, help="the token")

    made = of_tenant(verb(app, "retention", "say how long an app keeps its events", _app_retention))
    made.add_argument("--token", required=True, help="any token of the app")
    made.add_argument("--days", type=_days, required=True, help="a number of days, or: ever")

    person = group("person", "people whom an app's events are of")
    for name, about, run_it in (
        ("export", "print all that is known of a person, as JSON", _person_export),
        ("delete", "delete a person everywhere and print the receipt's id", _person_delete),
    ):
        made = of_tenant(verb(person, name, about, run_it, data=name != "export"))
        made.add_argument("--app", required=True, metavar="TOKEN", help="any token of the app")
        made.add_argument("--email", help="an e-mail address of theirs")
        made.add_argument("--uuid", help="your own id of them")
        made.add_argument("--fbid", help="their Facebook id")
        made.add_argument(
            "--id", type=_uuid, help="the id of a person or an anonymous visitor, as pages and API have it"
        )
    made = of_tenant(verb(person, "receipts", "list the receipts of deleted people", _person_receipts))
    made.add_argument("--app", required=True, metavar="TOKEN", help="any token of the app")

    key = group("key", "API keys")
    made = of_tenant(verb(key, "create", "make an API key and print it, once", _key_create))
    made.add_argument("--name", required=True, help="what the key is for")
    made.add_argument("--app", metavar="TOKEN", help="any token of the one app that it reads, else it reads all")
    made.add_argument("--may-delete", action="store_true", help="it may delete people, too, not only read")

    digest = group("digest", "hits that could not be digested")
    verb(digest, "show", "list the hits set aside, with their errors", _digest_show)
    verb(digest, "retry", "have all hits set aside digested again", _digest_retry)
    verb(verbs, "demo", "make a demo tenant with 90 days of events, and say how to look at it", _demo)
    return parser


def _count(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above zero")
    return number


def _workers(text: str) -> int:
    if (number := _count(text)) > PROCESSES:
        raise argparse.ArgumentTypeError(f"a data folder is for {PROCESSES} processes at most")
    return number


def _days(text: str) -> int | Literal["ever"]:
    try:
        return "ever" if text == "ever" else apps.retention_of(text or "0")
    except InvalidValue as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None


def _uuid(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not an id") from None


def _hours(text: str) -> float:
    try:
        hours = float(text)
    except ValueError:
        hours = -1.0
    # A year: later than that nobody remembers which token was to end.
    if not 0 <= hours <= 8784:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of hours from 0 to 8784")
    return hours


if __name__ == "__main__":
    main()
