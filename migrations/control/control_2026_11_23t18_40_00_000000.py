# pyright: reportUnknownMemberType=false

from piccolo.apps.migrations.auto.migration_manager import MigrationManager
from piccolo.table import create_table_class

ID = "2026-11-23T18:40:00:000000"
VERSION = "1.38.0"
DESCRIPTION = "A user has one role in a tenant"


async def forwards() -> MigrationManager:
    manager = MigrationManager(migration_id=ID, app_name="control", description=DESCRIPTION)

    async def create_index() -> None:
        # A table class is the way to the engine, and remembers it: hence one for each run.
        membership = create_table_class("Membership")
        await membership.raw('CREATE UNIQUE INDEX membership_tenant_user ON membership (tenant, "user")')

    manager.add_raw(create_index)
    return manager
