"""Migrations of the control database, run by `server.database`.

After a change to `tenants/tables.py`, write the next one with

    PICCOLO_CONF=migrations.control piccolo migrations new control --auto --desc="what changes"

and review it for both databases: SQLite cannot alter a column. The tests compare the outcome with the tables.
"""

from pathlib import Path

from piccolo.conf.apps import AppConfig, AppRegistry
from piccolo.engine.sqlite import SQLiteEngine

from tenants.tables import TABLES

APP_CONFIG = AppConfig("control", Path(__file__).parent, table_classes=list(TABLES))
APP_REGISTRY = AppRegistry(["migrations.control"])

# Piccolo's runner takes its engine from here: `server.database` puts the real one in.
DB = SQLiteEngine(":memory:")
