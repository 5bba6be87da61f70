"""Whether an app was ever hit."""

from tenants.events import Queries
from tenants.tables import App


async def has_hits(app: App, store: Queries) -> bool:
    """Whether any hit came, whatever became of it."""
    rows = await store.query(
        "SELECT 1 FROM traffic WHERE app_id = {app:UUID} LIMIT 1", {"app": str(app.id)}, app.tenant
    )
    return bool(rows)
