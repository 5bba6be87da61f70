"""What people may ask of a tenant about themselves: all that is known of them, and to be deleted."""

from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

import msgspec
from litestar import delete, get
from litestar.exceptions import PermissionDeniedException
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import Example
from litestar.params import Parameter
from litestar.response import Stream

from tenants.deletions import delete_person, find_person, list_deletions
from tenants.person_exports import export_person
from tenants.tables import Deletion
from web.api.access import GivenApp, GivenKey, GivenStore
from web.downloads import streamed

PersonId = Annotated[
    str,
    Parameter(
        description="The person's id, as people and events have it.",
        examples=[Example(value="0199d3a5-1c7e-7a51-9c7d-0c1c1f5a2b3e")],
    ),
]


class Removed(msgspec.Struct):
    """How much of what was removed. `persons` counts those, too, that were merged into the one."""

    persons: int
    identifiers: int
    visitors: int
    properties: int
    events: int
    rejections: int


class Receipt(msgspec.Struct):
    """What a deletion removed, without anything of the person. `done_at` is null until the last of it is off the disk.

    `asked_by` is a user's name, what an API key begins with, or the command line.
    """

    id: UUID
    requested_at: datetime
    asked_by: str
    removed: Removed
    done_at: datetime | None


class Receipts(msgspec.Struct):
    """The receipts of an app's deletions, newest first, a thousand at most."""

    deletions: list[Receipt]


class PersonExport(msgspec.Struct):
    """All that is known of a person. `properties` and `events` are lists of any length."""

    app: str
    exported_at: datetime
    person: dict[str, Any]
    properties: list[dict[str, Any]]
    events: list[dict[str, Any]]


def receipt(deletion: Deletion) -> Receipt:
    """The receipt as it is shown."""
    removed = Removed(
        deletion.persons,
        deletion.identifiers,
        deletion.visitors,
        deletion.properties,
        deletion.events,
        deletion.rejections,
    )
    return Receipt(deletion.id, deletion.requested_at, deletion.asked_by, removed, deletion.done_at)


@get(
    "/apps/{app_token:str}/people/{person_id:str}/export",
    summary="Export a person",
    operation_id="export_person",
    responses={200: ResponseSpec(PersonExport, description="All that is known", generate_examples=False)},
)
async def export(app: GivenApp, store: GivenStore, person_id: PersonId) -> Stream:
    """All that is known of one person, as one JSON object that is sent while it is read: identifiers, the newest value
    of each property with when it came, and every event with all that is stored of it.
    """
    person = await find_person(app, store, person_id)
    parts = await export_person(app, store, person, datetime.now(UTC))
    return streamed(parts, "application/json")


@delete(
    "/apps/{app_token:str}/people/{person_id:str}",
    summary="Delete a person",
    operation_id="delete_person",
    status_code=202,
)
async def remove(app: GivenApp, store: GivenStore, key: GivenKey, person_id: PersonId) -> Receipt:
    """Delete one person everywhere, with a key that may delete people. They are nobody at once; their events go within
    minutes, and the receipt has `done_at` when the last of it is off the disk. Hits that came before bring nobody back,
    whenever they are digested. Meta keeps whom it was sent of an audience: take them out there.
    """
    if not key.may_delete:
        raise PermissionDeniedException("This API key only reads. Make one that may delete people, too.")
    person = await find_person(app, store, person_id)
    return receipt(await delete_person(app, person, f"API key {key.prefix}…", datetime.now(UTC)))


@get("/apps/{app_token:str}/deletions", summary="Receipts of deletions", operation_id="deletions")
async def receipts(app: GivenApp) -> Receipts:
    """Who was deleted is not in them: a receipt says that somebody was, when, on whose behalf, and how much went."""
    return Receipts([receipt(deletion) for deletion in await list_deletions(app)])


handlers = [export, remove, receipts]
ANSWERS = (PersonExport, Receipt, Receipts)
