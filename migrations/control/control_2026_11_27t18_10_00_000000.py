# pyright: reportUnknownMemberType=false, reportPrivateUsage=false

from piccolo.apps.migrations.auto.migration_manager import MigrationManager
from piccolo.table import create_table_class

ID = "2026-11-27T18:10:00:000000"
VERSION = "1.38.0"
DESCRIPTION = "Sections of hits are numbered with 64 bits"


async def forwards() -> MigrationManager:
    manager = MigrationManager(migration_id=ID, app_name="control", description=DESCRIPTION)

    async def widen() -> None:
        # A table class is the way to the engine, and remembers it: hence one for each run.
        section = create_table_class("IdentitySection")
        # SQLite's numbers have 64 bits.
        if section._meta.db.engine_type == "postgres":
            await section.raw("ALTER TABLE identity_section ALTER COLUMN id TYPE bigint")
            await section.raw("ALTER SEQUENCE identity_section_id_seq AS bigint")

    manager.add_raw(widen)
    return manager
