# pyright: reportUnknownMemberType=false

from piccolo.apps.migrations.auto.migration_manager import MigrationManager
from piccolo.table import create_table_class

ID = "2026-11-27T08:20:00:000000"
VERSION = "1.38.0"
DESCRIPTION = "Apps take turns in learning what became of access tokens"


async def forwards() -> MigrationManager:
    manager = MigrationManager(migration_id=ID, app_name="control", description=DESCRIPTION)

    async def change_index() -> None:
        # A table class is the way to the engine, and remembers it: hence one for each run.
        sender = create_table_class("TokenSender")
        await sender.raw("DROP INDEX token_sender_due")
        await sender.raw("CREATE INDEX token_sender_due ON token_sender (app_id, due_at) WHERE due_at IS NOT NULL")

    manager.add_raw(change_index)
    return manager
