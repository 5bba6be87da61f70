# pyright: reportUnknownMemberType=false, reportPrivateUsage=false

from piccolo.apps.migrations.auto.migration_manager import MigrationManager
from piccolo.table import create_table_class

ID = "2026-11-27T21:11:00:000000"
VERSION = "1.38.0"
DESCRIPTION = "API keys that there were go on deleting people"


async def forwards() -> MigrationManager:
    manager = MigrationManager(migration_id=ID, app_name="control", description=DESCRIPTION)

    async def keep() -> None:
        # A table class is the way to the engine, and remembers it: hence one for each run.
        await create_table_class("ApiKey").raw("UPDATE api_key SET may_delete = true")

    manager.add_raw(keep)
    return manager
