"""Settings: what each accepts, what stops a start, and that the README lists them all."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from server.settings import PREFIX, Settings, WrongSetting, redact

README = Path(__file__).parents[2] / "README.md"


def readme_rows() -> list[str]:
    """The settings table as the README should have it."""
    rows: list[str] = []
    for setting in fields(Settings):
        if setting.metadata:
            default = f"`{setting.metadata['default']}`" if setting.metadata["default"] else ""
            rows.append(f"| `{PREFIX}{setting.name.upper()}` | {default} | {setting.metadata['about']} |")
    return rows


def test_the_readme_lists_every_setting_with_its_default() -> None:
    listed = [line for line in README.read_text().splitlines() if line.startswith(f"| `{PREFIX}")]
    assert listed == readme_rows()


def test_defaults_follow_from_each_other(tmp_path: Path) -> None:
    settings = Settings.from_environment({"ONEPX_DATA_DIR": str(tmp_path), "ONEPX_PORT": "9000"})
    assert settings.database_url == f"sqlite:///{tmp_path}/control.sqlite3"
    assert settings.events_url == f"chdb:///{tmp_path}/events"
    assert settings.public_url == settings.pixel_url == "http://127.0.0.1:9000"
    assert settings.embedded_events
    assert settings.journal_max_bytes == 10 * 1024**3


def test_a_flag_beats_the_environment() -> None:
    assert Settings.from_environment({"ONEPX_PORT": "9000"}, port="9001").port == 9001


def test_an_address_with_colons_is_bracketed_in_urls() -> None:
    assert Settings.from_environment({"ONEPX_HOST": "::1"}).public_url == "http://[::1]:8000"


@pytest.mark.parametrize(
    ("text", "site"),
    [
        ("https://px.example.com/", "https://px.example.com"),
        ("HTTPS://PX.Example.com", "https://px.example.com"),
        ("https://px.example.com:443", "https://px.example.com"),
        ("http://px.example.com:80/", "http://px.example.com"),
        ("http://px.example.com:443", "http://px.example.com:443"),
        ("https://[2001:db8::443]:8443", "https://[2001:db8::443]:8443"),
    ],
)
def test_a_site_is_written_as_browsers_write_an_origin(text: str, site: str) -> None:
    """They say where a form comes from that way, and the cookies' security hangs on its first letters."""
    assert Settings.from_environment({"ONEPX_PUBLIC_URL": text}).public_url == site


def test_unknown_names_are_reported() -> None:
    assert Settings.from_environment({"ONEPX_PROT": "1", "PATH": "/bin"}).unknown == ("ONEPX_PROT",)


def test_the_secret_key_is_made_once_and_for_the_owner_alone(tmp_path: Path) -> None:
    settings = Settings.from_environment({"ONEPX_DATA_DIR": str(tmp_path / "new")})
    first, second = settings.prepare_data_dir(), settings.prepare_data_dir()
    assert len(first.secret_key) >= 32
    assert first.secret_key == second.secret_key
    assert (tmp_path / "new" / "secret.key").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700


def test_an_emptied_secret_key_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "secret.key").touch()
    with pytest.raises(WrongSetting, match=r"secret\.key"):
        Settings.from_environment({"ONEPX_DATA_DIR": str(tmp_path)}).prepare_data_dir()


def test_a_data_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WrongSetting, match="ONEPX_DATA_DIR"):
        Settings.from_environment({"ONEPX_DATA_DIR": str(tmp_path / "file" / "data")}).prepare_data_dir()


def test_what_is_shown_holds_no_secret() -> None:
    secret = "s" * 40
    environ = {
        "ONEPX_SECRET_KEY": secret,
        "ONEPX_METRICS_TOKEN": secret,
        "ONEPX_DATABASE_URL": "postgres://u:p4ss@db/onepx",
        "ONEPX_EVENTS_URL": "clickhouse://u:p4ss@ch/onepx",
    }
    shown = " ".join(value for _, value, _ in Settings.from_environment(environ).shown())
    assert secret not in shown
    assert "p4ss" not in shown


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("PORT", "0"),
        ("PORT", "65536"),
        ("PORT", "tcp://10.0.0.1:80"),  # what Kubernetes puts there for a service called onepx
        ("PORT", "80 80"),
        ("HOST", "not a host"),
        ("DATA_DIR", "/srv/what?"),
        ("DATABASE_URL", "mysql://u@h/d"),
        ("DATABASE_URL", "postgres://host-only"),
        ("DATABASE_URL", "postgres://h:port/d"),
        ("DATABASE_URL", "sqlite://"),
        ("EVENTS_URL", "http://h:8123"),
        ("EVENTS_URL", "clickhouse://"),
        ("EVENTS_URL", "chdb://"),
        ("PUBLIC_URL", "px.example.com"),
        ("PUBLIC_URL", "https://px.example.com/path"),
        ("PIXEL_URL", "https://px.example.com?x=1"),
        ("SECRET_KEY", "short"),
        ("TRUSTED_PROXIES", "-1"),
        ("TRUSTED_PROXIES", "17"),
        ("TRUSTED_PROXIES", "yes"),
        ("JOURNAL_MAX_BYTES", "10X"),
        ("JOURNAL_MAX_BYTES", "1000"),
        ("METRICS_TOKEN", "short"),
        ("GRAPH_URL", "graph.facebook.com"),
        ("GRAPH_URL", "https://graph.facebook.com/v24.0"),
        ("GRAPH_VERSION", "24"),
        ("GRAPH_VERSION", "v24.0/../me"),
        ("LOG_LEVEL", "loud"),
        ("LOG_FORMAT", "xml"),
    ],
)
def test_a_wrong_value_names_itself(name: str, text: str) -> None:
    with pytest.raises(WrongSetting) as wrong:
        Settings.from_environment({f"ONEPX_{name}": text})
    message = str(wrong.value)
    assert message.startswith(f"ONEPX_{name}: ")
    assert "\n" not in message
    if name in ("SECRET_KEY", "METRICS_TOKEN"):
        assert text not in message


@pytest.mark.parametrize(
    ("text", "size"),
    [("1M", 1024**2), ("1048576", 1024**2), ("500m", 500 * 1024**2), ("10 GB", 10 * 1024**3), ("2T", 2 * 1024**4)],
)
def test_sizes(text: str, size: int) -> None:
    assert Settings.from_environment({"ONEPX_JOURNAL_MAX_BYTES": text}).journal_max_bytes == size


@pytest.mark.parametrize(
    "url",
    [
        "postgres://user:p4ss@host/db",
        "postgres://user:p4ss@x@host/db",
        "postgres://user:p4ss/with#all?of@it@host/db",
        "error at postgres://user:p4ss@host/db: refused",
    ],
)
def test_a_password_is_cut_out(url: str) -> None:
    assert "p4ss" not in redact(url)
    assert redact(url).endswith(re.sub(r".*@", "", url))
