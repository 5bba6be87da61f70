# pyright: reportUnknownMemberType=false

from piccolo.apps.migrations.auto.migration_manager import MigrationManager
from piccolo.table import create_table_class

ID = "2026-11-26T23:31:00:000000"
VERSION = "1.38.0"
DESCRIPTION = "whose event an access token came with, of those that wait: their visitor's"


async def forwards() -> MigrationManager:
    manager = MigrationManager(migration_id=ID, app_name="control", description=DESCRIPTION)

    async def whose() -> None:
        # A table class is the way to the engine, and remembers it: hence one for each run.
        sender = create_table_class("TokenSender")
        await sender.raw("UPDATE token_sender SET person = visitor")

    manager.add_raw(whose)
    return manager
