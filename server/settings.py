"""Settings, read once from the environment: every name, what it accepts and its default stand in this file alone."""

import os
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, quote, urlsplit

from server.journal import sync_folder

PREFIX = "ONEPX_"


class WrongSetting(Exception):
    """A setting's value cannot be used; the message names the variable and what it accepts."""


def _port(text: str) -> int:
    return _whole_number(text, 1, 65535)


def _hops(text: str) -> int:
    return _whole_number(text, 0, 16)


def _whole_number(text: str, low: int, high: int) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text) or not low <= int(text) <= high:
        raise ValueError(f"a whole number from {low} to {high}")
    return int(text)


def _host(text: str) -> str:
    try:
        return str(ip_address("127.0.0.1" if text == "localhost" else text.strip("[]")))
    except ValueError:
        raise ValueError("an IP address to listen on, such as 0.0.0.0") from None


def _folder(text: str) -> Path:
    folder = Path(text).expanduser().absolute()
    if "?" in str(folder):  # it would be where options of the embedded event store begin
        raise ValueError("a folder without ? in its name")
    return folder


def _size(text: str) -> int:
    """Bytes of `500M`, `10G`, `2T` or a plain number."""
    match = re.fullmatch(r"([0-9]{1,15})\s*([kKmMgGtT]?)[bB]?", text)
    size = int(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " ") if match else 0
    # Below a megabyte a single burst would not fit.
    if size < 1024**2:
        raise ValueError("a size of at least 1M, such as 500M or 10G")
    return size


def _has_host(parts: SplitResult) -> bool:
    try:
        return bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:  # a port that is no number
        return False


def _database_url(text: str) -> str:
    parts = urlsplit(text)
    server = parts.scheme in ("postgres", "postgresql") and _has_host(parts)
    if parts.path.strip("/") and (server or (parts.scheme == "sqlite" and not parts.netloc)):
        return text
    raise ValueError("postgres://user:password@host/database or sqlite:///path")


def _events_url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme in ("clickhouse", "clickhouses") and _has_host(parts):
        return text
    if parts.scheme == "chdb" and not parts.netloc and parts.path.strip("/"):
        return text
    raise ValueError("clickhouse://user:password@host:8123/database, clickhouses://… or chdb:///path")


_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


def _site(text: str) -> str:
    parts = urlsplit(text)
    plain = not (parts.query or parts.fragment or parts.username or parts.path.strip("/"))
    if parts.scheme not in ("http", "https") or not _has_host(parts) or not plain:
        raise ValueError("a site such as https://px.example.com, without a path")
    # As browsers write an origin, with which it is compared; and the cookies are `Secure` by it.
    return f"{parts.scheme}://{parts.netloc.lower().removesuffix(_DEFAULT_PORTS[parts.scheme])}"


def _secret(text: str) -> str:
    if len(text) < 32:
        raise ValueError("at least 32 characters, best random")
    return text


def _graph_version(text: str) -> str:
    if not re.fullmatch(r"v[0-9]{1,3}\.[0-9]{1,2}", text):
        raise ValueError("a version such as v24.0")
    return text


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError("one of " + ", ".join(choices))
        return text

    return parse


# A field of Settings: how its text is parsed, its text when not given, what it is, whether it may be shown.
def _setting(parse: Callable[[str], Any], default: str, about: str, secret: bool = False) -> Any:
    return field(metadata={"parse": parse, "default": default, "about": about, "secret": secret})


@dataclass(frozen=True)
class Settings:
    """What the environment says, parsed. An empty default is worked out from the others in `from_environment`."""

    data_dir: Path = _setting(_folder, "data", "Folder of everything kept on this machine.")
    host: str = _setting(_host, "127.0.0.1", "Address to listen on.")
    port: int = _setting(_port, "8000", "Port to listen on.")
    database_url: str = _setting(
        _database_url,
        "",
        "Control database; SQLite in the data folder unless `postgres://user:password@host/name`.",
    )
    events_url: str = _setting(
        _events_url,
        "",
        "Event store; chDB in the data folder unless `clickhouse://user:password@host:8123/name` "
        "(`clickhouses://` with TLS).",
    )
    public_url: str = _setting(_site, "", "Where people reach the pages and the API; `http://HOST:PORT` if not given.")
    pixel_url: str = _setting(_site, "", "Where pixels are loaded from; `ONEPX_PUBLIC_URL` if not given.")
    secret_key: str = _setting(
        _secret,
        "",
        "Key for what is encrypted at rest; made and kept in the data folder if not given. The same on all machines.",
        secret=True,
    )
    signup: str = _setting(
        _one_of("open", "closed"), "open", "`closed`: accounts come from `onepx tenant create` and invitations only."
    )
    trusted_proxies: int = _setting(
        _hops, "0", "Proxies in front, each adding to `X-Forwarded-For`; with 0 that header is ignored."
    )
    journal_max_bytes: int = _setting(
        _size, "10G", "Most that hits not yet digested may take on disk; beyond it pixels answer 503."
    )
    metrics_token: str = _setting(
        _secret,
        "",
        "What `/metrics` wants as `Authorization: Bearer …`; without it only this machine may ask.",
        secret=True,
    )
    graph_url: str = _setting(_site, "https://graph.facebook.com", "Where Facebook's Graph API is asked.")
    graph_version: str = _setting(_graph_version, "v24.0", "Version of the Graph API that is asked for.")
    log_level: str = _setting(_one_of("debug", "info", "warning", "error"), "info", "Least severe log lines shown.")
    log_format: str = _setting(
        _one_of("auto", "json", "text"), "auto", "`auto` is text on a terminal, else one JSON object a line."
    )
    unknown: tuple[str, ...] = ()

    @property
    def embedded_events(self) -> bool:
        """Whether the event store is chDB in this process rather than a server."""
        return self.events_url.startswith("chdb:")

    @property
    def journal_dir(self) -> Path:
        return self.data_dir / "journal"

    @property
    def run_dir(self) -> Path:
        """Locks and shared memory of the processes that run now; nothing in it outlives them usefully."""
        return self.data_dir / "run"

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None, **overrides: object) -> "Settings":
        """Settings of `environ` (the process's own unless given); `overrides` are command line flags, as text or None.

        Raises WrongSetting, naming the variable. Touches no disk.
        """
        environ = os.environ if environ is None else environ
        values: dict[str, Any] = {}
        for setting in fields(cls):
            if not setting.metadata:
                continue
            name = PREFIX + setting.name.upper()
            override = overrides.get(setting.name)
            text = str(override) if override is not None else environ.get(name, "").strip()
            text = text or setting.metadata["default"]
            try:
                values[setting.name] = setting.metadata["parse"](text) if text else ""
            except ValueError as error:
                shown = "what was given" if setting.metadata["secret"] else f"{redact(text)!r}"
                raise WrongSetting(f"{name}: {shown} cannot be used; it takes {error}.") from None
        data_dir = values["data_dir"]
        host = values["host"] if ":" not in values["host"] else f"[{values['host']}]"
        values["database_url"] = values["database_url"] or f"sqlite:///{data_dir / 'control.sqlite3'}"
        values["events_url"] = values["events_url"] or f"chdb:///{quote(str(data_dir / 'events'))}"
        values["public_url"] = values["public_url"] or f"http://{host}:{values['port']}"
        values["pixel_url"] = values["pixel_url"] or values["public_url"]
        known = {PREFIX + setting.name.upper() for setting in fields(cls) if setting.metadata}
        unknown = tuple(sorted(name for name in environ if name.startswith(PREFIX) and name not in known))
        return cls(**values, unknown=unknown)

    def prepare_data_dir(self) -> "Settings":
        """Make the data folder, for its owner alone, with the secret key in it; returns the settings with the key."""
        try:
            for folder in (self.data_dir, self.journal_dir, self.run_dir, self.data_dir / "tmp"):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if os.geteuid() == 0 and (owner := self.data_dir.stat().st_uid) != 0:
                # Files that root makes in it, a service running as its owner could not open. The other way round it may
                # be a volume that a group shares.
                raise WrongSetting(
                    f"{PREFIX}DATA_DIR: {self.data_dir} belongs to user number {owner}; run this as that user."
                )
            key = self.secret_key or _kept_secret(self.data_dir / "secret.key")
        except OSError as error:
            raise WrongSetting(
                f"{PREFIX}DATA_DIR: {self.data_dir} cannot be used ({error.strerror}); it takes a writable folder."
            ) from None
        return replace(self, secret_key=key)

    def shown(self) -> list[tuple[str, str, str]]:
        """(variable, value fit to be shown, what it is) of every setting."""
        rows: list[tuple[str, str, str]] = []
        for setting in fields(self):
            if setting.metadata:
                value = str(getattr(self, setting.name))
                value = ("(set)" if value else "(not set)") if setting.metadata["secret"] else redact(value)
                rows.append((PREFIX + setting.name.upper(), value, setting.metadata["about"]))
        return rows


def _kept_secret(path: Path) -> str:
    """The key kept at `path`, made when there is none. Two processes that start at once end up with the same one."""
    if not path.exists():
        draft = path.with_suffix(f".{os.getpid()}")
        draft.touch(mode=0o600)
        with draft.open("w") as file:
            file.write(secrets.token_urlsafe(48) + "\n")
            file.flush()
            # What is encrypted with it is synced, too: a power cut must not leave the one without the other.
            os.fsync(file.fileno())
        try:
            path.hardlink_to(draft)
        except FileExistsError:
            pass  # the other process was first: its key is the key
        finally:
            draft.unlink()
        sync_folder(path.parent)
    key = path.read_text().strip()
    if len(key) < 32:
        raise WrongSetting(
            f"{path} holds no secret key; restore it from a backup, or remove the file to make a new one."
        )
    return key


def redact(text: str) -> str:
    """The text with the password cut out of a URL in it. Errs towards cutting too much: passwords hold anything."""
    text = re.sub(r"(://[^/\s:@]*):.*@", r"\1:…@", text, flags=re.DOTALL)
    # Parameters may hold one, too.
    return re.sub(r"(://[^?]*\?).*", r"\1…", text, flags=re.DOTALL)
