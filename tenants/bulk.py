"""Many rows at once, for what the digest does to the control database thousands of times a batch.

Piccolo builds a query's text value by value and a dictionary of each row: 30 µs a row where these take 3. They run
within a transaction of Piccolo's, on its connection.
"""
# Piccolo keeps a table's engine in `_meta`; its and the drivers' annotations leave types open.
# pyright: reportPrivateUsage=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Sequence
from typing import Any

from piccolo.columns import BigInt, Bytea, Integer, Varchar
from piccolo.table import Table

Row = tuple[Any, ...]

# SQLite takes 32,766 values a statement.
_VALUES_A_STATEMENT = 30_000
# PostgreSQL's type of an array of a column's values.
_ARRAYS = {Bytea: "bytea[]", BigInt: "bigint[]", Integer: "integer[]", Varchar: "text[]"}


async def find(
    table: type[Table], columns: Sequence[str], key: str, keys: Sequence[bytes], *, app: bytes | None = None
) -> list[Row]:
    """`columns` of the rows whose `key` is one of `keys`, in no order. Within a transaction only.

    Of one `app` alone, by whose id a row's key begins, where no index finds `key`.
    """
    if not keys:
        return []
    connection = _connection(table)
    select = f"SELECT {', '.join(columns)} FROM {table._meta.tablename} WHERE {key}"
    within = () if app is None else (app, (int.from_bytes(app, "big") + 1).to_bytes(16, "big"))
    if _is_postgres(table):
        of_app = " AND key >= $2 AND key < $3" if within else ""
        return await connection.fetch(f"{select} = ANY($1::bytea[]){of_app}", keys, *within)
    rows: list[Row] = []
    for start in range(0, len(keys), _VALUES_A_STATEMENT):
        some = keys[start : start + _VALUES_A_STATEMENT]
        of_app = " AND key >= ? AND key < ?" if within else ""
        cursor = await connection.execute(f"{select} IN ({', '.join('?' * len(some))}){of_app}", (*some, *within))
        cursor.row_factory = None  # tuples
        rows += await cursor.fetchall()
        await cursor.close()
    return rows


async def put(table: type[Table], columns: Sequence[str], rows: Sequence[Row], keep: str = "") -> None:
    """Insert rows, or overwrite those with the same key, which is the first column, but for the column to `keep`.

    Within a transaction only.
    """
    if not rows:
        return
    # Everybody locks rows in the order of their keys, so nobody waits in a circle.
    rows = sorted(rows, key=lambda row: row[0])
    name, first = table._meta.tablename, columns[0]
    others = ", ".join(f"{column} = excluded.{column}" for column in columns[1:] if column != keep)
    into = f"INSERT INTO {name} ({', '.join(columns)})"
    on_conflict = f"ON CONFLICT ({first}) DO UPDATE SET {others}"
    connection = _connection(table)
    if _is_postgres(table):
        kinds: dict[str, Any] = {column._meta.name: type(column) for column in table._meta.columns}
        arrays = ", ".join(f"${number}::{_ARRAYS[kinds[column]]}" for number, column in enumerate(columns, 1))
        values = map(list, zip(*rows, strict=True))
        await connection.execute(f"{into} SELECT * FROM unnest({arrays}) {on_conflict}", *values)
    else:
        await connection.executemany(f"{into} VALUES ({', '.join('?' * len(columns))}) {on_conflict}", rows)


async def run(table: type[Table], statement: str, rows: Sequence[Row]) -> None:
    """The statement, with a `?` for each value, once for each row of values. Within a transaction only."""
    if not rows:
        return
    if _is_postgres(table):
        first, *rest = statement.split("?")
        statement = first + "".join(f"${number}{part}" for number, part in enumerate(rest, 1))
    await _connection(table).executemany(statement, rows)


def _is_postgres(table: type[Table]) -> bool:
    return table._meta.db.engine_type == "postgres"


def _connection(table: type[Table]) -> Any:
    transaction = table._meta.db.current_transaction.get()
    assert transaction is not None, "within a transaction only"
    return transaction.connection
