# pyright: reportUnknownMemberType=false

from piccolo.apps.migrations.auto.migration_manager import MigrationManager
from piccolo.table import create_table_class

ID = "2026-11-26T14:04:00:000000"
VERSION = "1.38.0"
DESCRIPTION = "What is due is found; an audience has one run at a time"


async def forwards() -> MigrationManager:
    manager = MigrationManager(migration_id=ID, app_name="control", description=DESCRIPTION)

    async def create_indexes() -> None:
        # A table class is the way to the engine, and remembers it: hence one for each run.
        token = create_table_class("AccessToken")
        await token.raw("CREATE INDEX access_token_due ON access_token (app_id, due_at) WHERE due_at IS NOT NULL")
        await token.raw("CREATE INDEX token_sender_due ON token_sender (due_at) WHERE due_at IS NOT NULL")
        await token.raw(
            "CREATE UNIQUE INDEX audience_run_unfinished ON audience_run (audience) WHERE finished_at IS NULL"
        )

    manager.add_raw(create_indexes)
    return manager
