"""Static files, addressed by the hash of what they hold: browsers keep them for ever, and a release is seen at once.

All are read and compressed at the start (some 150 kB); a file that changes while the server runs is not seen.
"""

import gzip
import hashlib
import mimetypes
from pathlib import Path
from typing import NamedTuple

from litestar import Request, Response, get
from litestar.datastructures import State
from litestar.exceptions import NotFoundException
from litestar.params import FromPath

_FOLDER = Path(__file__).parent / "static"
_FOR_EVER = "public, max-age=31536000, immutable"


class _Asset(NamedTuple):
    body: bytes
    compressed: bytes
    media_type: str


class Assets:
    """Every file below `folder`. Raises RuntimeError when the libraries from npm are not there."""

    def __init__(self, folder: Path = _FOLDER) -> None:
        self._by_address: dict[str, _Asset] = {}
        self._addresses: dict[str, str] = {}
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.name.startswith("."):
                name = path.relative_to(folder).as_posix()
                body = path.read_bytes()
                address = f"{hashlib.sha256(body).hexdigest()[:12]}/{name}"
                media_type = mimetypes.guess_type(name)[0] or "application/octet-stream"
                self._by_address[address] = _Asset(body, gzip.compress(body, 9, mtime=0), media_type)
                self._addresses[name] = f"/static/{address}"
        if "vendor/htmx.js" not in self._addresses:
            raise RuntimeError("web/static/vendor is empty: build the package (`make serve`, or `pip install -e .`)")

    def address(self, name: str) -> str:
        """Where the page loads the file from. Raises KeyError for one that is not there."""
        return self._addresses[name]

    def find(self, address: str) -> _Asset | None:
        """The file at an address without its `/static/`."""
        return self._by_address.get(address)


@get("/static/{address:path}", include_in_schema=False, opt={"public": True})
async def static(request: Request[None, None, State], address: FromPath[str]) -> Response[bytes]:
    """A static file."""
    asset: _Asset | None = request.app.state.assets.find(address.removeprefix("/"))
    if asset is None:
        raise NotFoundException
    headers = {"Cache-Control": _FOR_EVER, "Vary": "Accept-Encoding"}
    if "gzip" in request.headers.get("accept-encoding", "") and len(asset.compressed) < len(asset.body):
        headers["Content-Encoding"] = "gzip"
        return Response(asset.compressed, media_type=asset.media_type, headers=headers)
    return Response(asset.body, media_type=asset.media_type, headers=headers)
