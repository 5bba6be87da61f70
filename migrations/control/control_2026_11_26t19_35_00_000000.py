# pyright: reportUnknownMemberType=false

from piccolo.apps.migrations.auto.migration_manager import MigrationManager
from piccolo.table import create_table_class

ID = "2026-11-26T19:35:00:000000"
VERSION = "1.38.0"
DESCRIPTION = "persons the event store has to be told of, without those whose past it has yet to collect"


async def forwards() -> MigrationManager:
    manager = MigrationManager(migration_id=ID, app_name="control", description=DESCRIPTION)

    async def create_index() -> None:
        # A table class is the way to the engine, and remembers it: hence one for each run.
        person = create_table_class("Person")
        await person.raw("CREATE INDEX person_to_tell ON person (key) WHERE todo % 2 = 1")

    manager.add_raw(create_index)
    return manager
