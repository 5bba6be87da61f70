"""How many people go from one step to the next, in order and in time.

A step is an event token with filters. An attempt begins with an event of the first step; each later step is an event
after the one before it, and the whole attempt is within the window. Of a person's attempts the one that gets furthest
counts, of several the first to get there, and of events of the first step before it the last. What the steps of
different events are in the same millisecond is taken to be in their order; two equal events then are one.

A person's events become one sorted list of numbers, each with its time, the steps it is (a bit each) and the value it
is broken down by. The attempts are then found in all lists at once: `arrayFill` carries the start of an attempt on to
the event that takes it a step further. It is faster than `windowFunnel`, which knows no times.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, Literal, get_args

import msgspec

from tenants.errors import InvalidValue
from tenants.events import Queries
from tenants.reports.filters import MAX_CONDITIONS, MAX_SLOW_FIELDS, Filters, field_of, filters_of
from tenants.reports.period import Period
from tenants.reports.retention import checked_token
from tenants.reports.sql import PERSON, SOMEBODY, Parameters, Value, in_order, rows_of, seconds, share_of, value_of
from tenants.tables import App

Unit = Literal["minutes", "hours", "days"]
UNITS: tuple[Unit, ...] = get_args(Unit)
MIN_STEPS, MAX_STEPS = 2, 8
MAX_WINDOW = timedelta(days=366)
DEFAULT_WINDOW: tuple[int, Unit] = (7, "days")
# As many as a page can show side by side with their steps; the rest is one more.
MAX_VALUES = 10
# Few fields have more values than can be shown. So many events of each piece of the period tell, in a fifth of the time
# that all take; a value that none of them has is counted with the others, and so shows that there is more.
_SAMPLES, _SAMPLED = 4, 10_000
_NAME = re.compile(r"step([1-9][0-9]*)(?:\.(.*))?", re.DOTALL)

# An event in one number: ms since the period's start, 8 bits for its steps, 10 for the value. Ten years take 57 bits.
_VALUES = 1 << 10
_TIME = _VALUES << MAX_STEPS
_NEVER = 2**64 - 1


@dataclass(frozen=True)
class Step:
    """An event with this token that the filters let through; a form's step that is not filled in has no token."""

    event_token: str = ""
    filters: Filters = field(default_factory=Filters)

    def pairs(self, number: int) -> list[tuple[str, str]]:
        """The parameters of an address that ask for it as the step of this number, from 1."""
        name = f"step{number}"
        return [(name, self.event_token), *((f"{name}.{field}", value) for field, value in self.filters.pairs())]


class Reached(msgspec.Struct, frozen=True):
    """Persons who reached a step, as shares of those of the step before and of the first, 0 to 1.

    `median_seconds` is from the step before; of two in the middle it is the longer one. None for the first step, and
    where nobody came.
    """

    event_token: str
    persons: int
    from_before: float
    from_first: float
    median_seconds: float | None


class FunnelValue(msgspec.Struct, frozen=True):
    """The people whose attempt began with this value; `value` is None where the field was not sent (or null)."""

    value: str | None
    steps: list[Reached]


class Funnel(msgspec.Struct, frozen=True):
    """`values` are the ten most frequent ones of `field` in events of the first step, those of most people first.

    `others` are all beyond ten.
    """

    steps: list[Reached]
    window_seconds: int
    field: str | None
    values: list[FunnelValue]
    others: list[Reached] | None


def steps_of(pairs: Sequence[tuple[str, str]]) -> tuple[Step, ...]:
    """The steps among the parameters of an address: `step1=signup`, `step1.params.plan=pro`; empty ones too.

    Numbers may be left out; the order counts. Raises InvalidValue.
    """
    tokens: dict[int, str] = {}
    filters: dict[int, list[tuple[str, str]]] = {}
    for name, value in pairs:
        if not (found := _NAME.fullmatch(name)):
            continue
        if len(found[1]) > 1 or int(found[1]) > MAX_STEPS:
            raise InvalidValue(name, f"A funnel has {MAX_STEPS} steps at most.")
        number = int(found[1])
        if found[2] is None:
            tokens.setdefault(number, checked_token(name, value.strip()) if value.strip() else "")
        else:
            filters.setdefault(number, []).append((found[2], value))
    steps: list[Step] = []
    for number in sorted(tokens.keys() | filters.keys()):
        try:
            steps.append(Step(tokens.get(number, ""), filters_of(filters.get(number, []))))
        except InvalidValue as error:
            raise InvalidValue(f"step{number}.{error.field}", str(error)) from None
    return tuple(steps)


def window_of(within: str, unit: str) -> timedelta:
    """The time that a whole attempt may take; 7 days where nothing is given. Raises InvalidValue."""
    number, default = DEFAULT_WINDOW
    named = unit or default
    if named not in UNITS:
        raise InvalidValue("unit", f"Choose one of {', '.join(UNITS)}.")
    if within:
        if not re.fullmatch(r"[0-9]{1,6}", within):
            raise InvalidValue("within", f"Give a whole number: {MAX_WINDOW.days} days are the most.")
        number = int(within)
    window = timedelta(**{named: number})
    if not timedelta(0) < window <= MAX_WINDOW:
        raise InvalidValue("within", f"Choose {MAX_WINDOW.days} days at most, and more than nothing.")
    return window


async def funnel(
    app: App,
    store: Queries,
    period: Period,
    filters: Filters,
    steps: Sequence[Step],
    window: timedelta,
    by: str | None = None,
) -> Funnel:
    """How many people reached each step within the period, and how fast; `by` is a field of the first step's event.

    `filters` must hold for every event. Steps without an event token are left out. Raises InvalidValue.
    """
    steps = [step for step in steps if step.event_token]
    _check(steps, filters, by)
    conditions: list[str] = []
    where, parameters = filters.sql()
    for number, step in enumerate(steps):
        condition, more = step.filters.sql(f"s{number}")
        parameters |= more | {f"step{number}": step.event_token}
        conditions.append(f"(event_token = {{step{number}:String}}{condition})")
    parameters |= {"app": str(app.id), "tokens": sorted({step.event_token for step in steps})}

    def rows(start: datetime, end: datetime) -> str:
        return f"{rows_of(start, end)} AND {SOMEBODY}{where}"

    async def levels(value: str, more: Parameters) -> dict[int, dict[str, Any]]:
        query = _levels(rows(period.start, period.end), conditions, value, seconds(period.start), window)
        return {row["part"]: row for row in await store.query(query, parameters | more, app.tenant)}

    values: list[str | None] = []
    if by is None:
        found = await levels("0", {})
    else:
        value = value_of(by, "by")
        first = [f"{rows(start, end)} AND {conditions[0]}" for start, end in pairwise(_cut(period, _SAMPLES))]
        sample = await store.query(_values(value, first, _SAMPLED), parameters | value.parameters, app.tenant)
        found = None
        if len(sample) <= MAX_VALUES:
            number, values, more = _numbered(value, sample)
            found = await levels(f"if({conditions[0]}, {number}, 0)", more)
        if found is None or len(values) + 1 in found:
            # There are more values than the sample has: now all of them are counted.
            first = [f"{rows(period.start, period.end)} AND {conditions[0]}"]
            listed = await store.query(_values(value, first), parameters | value.parameters, app.tenant)
            number, values, more = _numbered(value, listed[:MAX_VALUES])
            found = await levels(f"if({conditions[0]}, {number}, 0)", more)
    known = {part: _reached(steps, row) for part, row in found.items()}
    whole = known.get(0) or _reached(steps, None)
    parts = [FunnelValue(text, known[part]) for part, text in enumerate(values, 1) if part in known]
    parts.sort(key=lambda each: -each.steps[0].persons)
    # Whoever began with none of the values has the number after theirs.
    others = known.get(len(values) + 1) if by is not None else None
    return Funnel(whole, int(window.total_seconds()), by, parts, others)


def _check(steps: Sequence[Step], filters: Filters, by: str | None) -> None:
    if len(steps) < MIN_STEPS:
        raise InvalidValue(f"step{len(steps) + 1}", f"A funnel has {MIN_STEPS} steps at least.")
    if len(steps) > MAX_STEPS:
        raise InvalidValue(f"step{MAX_STEPS + 1}", f"A funnel has {MAX_STEPS} steps at most.")
    conditions = [*filters.conditions, *(each for step in steps for each in step.filters.conditions)]
    if len(conditions) > MAX_CONDITIONS:
        raise InvalidValue("step1", f"Use {MAX_CONDITIONS} filters at most in all steps together.")
    fields = [*(each.field for each in conditions), *([field_of(by, "by")] if by is not None else [])]
    if len({field for field in fields if "`" in field}) > MAX_SLOW_FIELDS:
        raise InvalidValue("step1", f"Use {MAX_SLOW_FIELDS} fields with a backtick in their name at most.")


def _cut(period: Period, pieces: int) -> list[datetime]:
    """Where equal pieces of the period begin, and its end."""
    length = (period.end - period.start) / pieces
    return [*(period.start + piece * length for piece in range(pieces)), period.end]


def _named(text: str, missing: str) -> str:
    # Not sent and sent as the empty text differ. By hashes, since texts take twice as long to be looked up.
    return f"cityHash64({text}, {missing})"


def _values(value: Value, rows: Sequence[str], most: int | None = None) -> str:
    """The values in these rows, `most` of each, most frequent first: one more than can be shown."""
    columns = f"{value.text} AS text, {value.missing} AS missing, {value.whole} AS whole"
    limit = f" LIMIT {most}" if most else ""
    read = " UNION ALL ".join(f"SELECT {columns} {each}{limit}" for each in rows)
    return (
        f"SELECT text, missing, any(whole) AS shown, {_named('text', 'missing')} AS named FROM ({read}) "
        f"GROUP BY text, missing ORDER BY count() DESC, missing DESC, {in_order('text')} LIMIT {MAX_VALUES + 1}"
    )


def _numbered(value: Value, listed: Sequence[dict[str, Any]]) -> tuple[str, list[str | None], Parameters]:
    """The number of a row's value among these, or after them, the values, and the parameters that it needs."""
    # An array of none has no type to compare with.
    named = _named(value.text, value.missing)
    number = f"transform({named}, {{named:Array(UInt64)}}, {{numbers:Array(UInt64)}}, {len(listed)})" if listed else "0"
    more = value.parameters | {"named": [row["named"] for row in listed], "numbers": list(range(len(listed)))}
    return number, [None if row["missing"] else row["shown"] for row in listed], more


def _levels(rows: str, conditions: Sequence[str], value: str, start: int, window: timedelta) -> str:
    """Persons and median times of each step: `persons_n`, `median_n` in ms.

    Of each `part`, which is 1 and the value's number, and with 0 of all.
    """
    steps = range(len(conditions))
    bits = " + ".join(f"{2**step} * {condition}" for step, condition in enumerate(conditions))
    at = f"toUInt64(toUnixTimestamp64Milli(received_at) - {start}000)"
    event = f"{at} * {_TIME} + toUInt64({bits}) * {_VALUES} + {value}"
    # All else is found in the lists: one more aggregate function takes as long as all that is done to them here.
    query = (
        f"SELECT groupArray({event}) AS listed {rows} AND event_token IN {{tokens:Array(String)}} "
        f"AND ({' OR '.join(conditions)}) GROUP BY {PERSON}"
    )
    begun = f"arrayMin(arrayMap(e -> if({_is(0)}, e, {_NEVER}), listed))"
    # Most people have no event of the second step after one of the first: nothing has to be looked for in theirs.
    last = f"arrayMax(arrayMap(e -> if({_is(1)}, e, 0), listed))"
    query = f"SELECT {begun} AS begun, if({last} > begun, listed, []) AS further FROM ({query})"
    query = f"SELECT begun, arrayCompact(arraySort(further)) AS in_order FROM ({query})"
    most = int(window / timedelta(milliseconds=1))
    twice = [
        # Before the first attempt it is whatever came first, which is none.
        f"arrayFill(e -> {_is(0)}, in_order) AS start0",
        f"{_further(1, 'in_order', most)} AS started",
        "started[-1] > 0 AS twice",
    ]
    query = _in_turn(twice, query)
    # Nor in those who took longer.
    query = f"SELECT begun, if(twice, in_order, []) AS events, if(twice, started, []) AS start1 FROM ({query})"
    query = _in_turn([f"{_further(step, 'events', most)} AS start{step}" for step in steps[2:]], query)
    level = " + ".join(["1", *(f"(start{step}[-1] > 0)" for step in steps[1:])])
    furthest = ", ".join(f"start{step}[-1] > 0, arrayFirst(e -> e > 0, start{step})" for step in reversed(steps[1:]))
    query = f"SELECT events, {level} AS level, multiIf({furthest}, begun) AS event0 FROM ({query})"
    # The event before is handed over as a list: what a lambda names itself is computed again for each element.
    nexts = [
        f"arrayFirst((e, after) -> e > after AND {_is(step)}, events, "
        f"arrayWithConstant(length(events), event{step - 1})) AS event{step}"
        for step in steps[1:]
    ]
    query = _in_turn(nexts, query)
    columns = [f"bitAnd(event0, {_VALUES - 1}) + 1 AS part", f"countIf(event0 < {_NEVER}) AS persons_0"]
    for step in steps[1:]:
        took = f"intDiv(event{step}, {_TIME}) - intDiv(event{step - 1}, {_TIME})"
        columns.append(f"countIf(level > {step}) AS persons_{step}")
        columns.append(f"quantileExactIf(0.5)({took}, level > {step}) AS median_{step}")
    return f"SELECT {', '.join(columns)} FROM ({query}) GROUP BY ROLLUP(part) SETTINGS group_by_use_nulls = 0"


def _is(step: int, event: str = "e") -> str:
    """Whether an event is this step."""
    return f"bitTest({event}, {_VALUES.bit_length() - 1 + step})"


def _further(step: int, events: str, most: int) -> str:
    """The start of the attempt that each event takes to this step, or the one before it did; 0 where there is none."""
    # The attempts as they were before each event: it takes none further that it began itself.
    before = f"arrayShiftRight(start{step - 1}, 1, toUInt64(0))"
    in_time = f"intDiv(e, {_TIME}) - intDiv(start, {_TIME}) <= {most}"
    return f"arrayFill((start, e) -> {_is(step)} AND {_is(0, 'start')} AND {in_time}, {before}, {events})"


def _in_turn(expressions: Sequence[str], query: str) -> str:
    """The query with further columns, each made of the one before it.

    One by one, since the engine copies what a name stands for, and with few queries in each other: it takes most of a
    small funnel's time to understand how a large one is asked for.
    """
    for expression in expressions:
        query = f"SELECT *, {expression} FROM ({query})"
    return query


def _reached(steps: Sequence[Step], row: dict[str, Any] | None) -> list[Reached]:
    counts: list[int] = [row[f"persons_{number}"] if row else 0 for number in range(len(steps))]
    found: list[Reached] = []
    for number, step in enumerate(steps):
        persons = counts[number]
        median = row[f"median_{number}"] / 1000 if row and number and persons else None
        before = counts[number - 1] if number else persons
        found.append(
            Reached(step.event_token, persons, share_of(persons, before), share_of(persons, counts[0]), median)
        )
    return found
