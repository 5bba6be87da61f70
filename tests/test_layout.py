"""Imports run one way: server -> web -> tenants, server -> tenants. Nobody imports tests or benchmarks."""

import ast
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parent.parent

# The domain knows no HTTP and no templates, so the libraries that bring them are closed to it too.
CLOSED = {
    "tenants": {"server", "web", "litestar", "granian", "jinja2", "tests", "benchmarks"},
    "web": {"server", "granian", "tests", "benchmarks"},
    "server": {"tests", "benchmarks"},
    "migrations": {"server", "web", "tests", "benchmarks"},
}


def imported(source: str) -> list[tuple[int, str]]:
    """Line and top-level name of each import, wherever in the file it stands.

    Relative imports are left out: they cannot leave a top-level package.
    """
    found: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name.partition(".")[0]) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.append((node.lineno, node.module.partition(".")[0]))
    return found


def wrong_imports(checkout: Path) -> list[str]:
    """Each import that goes the wrong way, as `path:line imports name`."""
    return [
        f"{path.relative_to(checkout)}:{line} imports {name}"
        for package, closed in CLOSED.items()
        for path in sorted((checkout / package).rglob("*.py"))
        for line, name in imported(path.read_text(encoding="utf-8"))
        if name in closed
    ]


def test_imports_run_one_way() -> None:
    assert wrong_imports(CHECKOUT) == []


@pytest.mark.parametrize("package", CLOSED)
def test_every_package_is_looked_at(package: str) -> None:
    assert any((CHECKOUT / package).rglob("*.py"))


@pytest.mark.parametrize(
    ("path", "source", "found"),
    [
        ("tenants/people.py", "import web.pages", "tenants/people.py:1 imports web"),
        ("tenants/reports/daily.py", "from server import app", "tenants/reports/daily.py:1 imports server"),
        ("tenants/apps.py", "import json, litestar", "tenants/apps.py:1 imports litestar"),
        ("web/api.py", "def page():\n    from server.app import engine", "web/api.py:2 imports server"),
        ("web/api.py", "if TYPE_CHECKING:\n    import server.app as a", "web/api.py:2 imports server"),
        ("server/cli.py", "from tests.live import hits", "server/cli.py:1 imports tests"),
        ("migrations/control/first.py", "import server", "migrations/control/first.py:1 imports server"),
        ("server/cli.py", "import web, tenants", None),
        ("web/api.py", "from tenants.apps import App\nfrom .server import x\nimport webserver", None),
    ],
)
def test_a_wrong_import_is_found(tmp_path: Path, path: str, source: str, found: str | None) -> None:
    module = tmp_path / path
    module.parent.mkdir(parents=True)
    module.write_text(source)
    assert wrong_imports(tmp_path) == ([found] if found else [])
