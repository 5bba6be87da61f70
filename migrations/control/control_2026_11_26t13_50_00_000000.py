# pyright: reportUnknownMemberType=false

from piccolo.apps.migrations.auto.migration_manager import MigrationManager
from piccolo.table import create_table_class

ID = "2026-11-26T13:50:00:000000"
VERSION = "1.38.0"
DESCRIPTION = "what the event store has yet to hear of persons"


async def forwards() -> MigrationManager:
    manager = MigrationManager(migration_id=ID, app_name="control", description=DESCRIPTION)

    async def create_index() -> None:
        # A table class is the way to the engine, and remembers it: hence one for each run.
        person = create_table_class("Person")
        await person.raw("CREATE INDEX person_todo ON person (key) WHERE todo > 0")
        await person.raw("CREATE INDEX person_merged_into ON person (merged_into) WHERE merged_into IS NOT NULL")

    manager.add_raw(create_index)
    return manager
