"""Retention and funnel of an app: what their forms ask, and what their panels show.

A funnel's form is a question, so its address is all there is to know. Its buttons (a step more, one less, one up) send
the whole form and lead to the address of what it then is, with script and without.
"""

import math
import re
from collections.abc import Mapping, Sequence
from itertools import dropwhile
from typing import Any, Literal

import msgspec

from tenants.errors import InvalidValue
from tenants.events import Queries
from tenants.reports.funnel import DEFAULT_WINDOW, MAX_STEPS, MIN_STEPS, Step, funnel, steps_of, window_of
from tenants.reports.retention import Cohort, retention
from tenants.reports.tokens import tokens
from web.view import View, bucket_label, filterable, in_words, named, with_typed

Pairs = Sequence[tuple[str, str]]
Context = dict[str, Any]

PAGES = ("retention", "funnel")
_HEATS = 10
_PRESSED = re.compile(r"(remove|up|down)-([1-8])")
# Whoever has more made them up: each has all be read once more.
_MOST_PROBLEMS = 20
_HOW = re.compile(r"step[1-8]\.how")
_SUGGESTED = 12


def own_of(page: str, pairs: Pairs) -> list[tuple[str, str]]:
    """What the address of one of these pages, or of its panel, says beside period and filters."""
    if page == "funnel":
        return read_form(pairs).pairs()
    given = {name: value.strip() for name, value in pairs}
    only_new = [("new", "1")] if given.get("new") == "1" else []
    return [*((name, given[name]) for name in ("first", "return") if given.get(name)), *only_new]


async def retention_panel(view: View, store: Queries, _asked: Mapping[str, str]) -> Context:
    """A row a cohort: its label, its size, and of each interval (share, persons, shade 0 to 10)."""
    given = dict(view.own)
    found = await retention(
        view.app, store, view.period, view.filters, given.get("first"), given.get("return"), "new" in given
    )
    # Of the time before anybody was there, there is nothing to see.
    cohorts = list(dropwhile(lambda cohort: not cohort.size, found.cohorts))
    rows = [(bucket_label(each.start, found.interval), each, _cells(each)) for each in cohorts]
    people = sum(cohort.size for cohort in cohorts)
    every = [(share, heat(share or 0)) for share in found.shares[: len(cohorts)]]
    return {"found": found, "rows": rows, "people": people, "every": every}


def _cells(cohort: Cohort) -> list[tuple[float, int, int]]:
    return [(share, back, heat(share)) for share, back in zip(cohort.shares, cohort.returned, strict=True)]


def heat(share: float) -> int:
    """How dark a share is shown, 0 to 10: 0 is nobody alone. By its root, since most shares that matter are small."""
    return 1 + int((_HEATS - 1) * math.sqrt(min(share, 1))) if share else 0


class Form(msgspec.Struct, frozen=True):
    """A funnel's form: two steps at least, which need not be filled in. `problem` says what was left out."""

    steps: tuple[Step, ...]
    within: str
    unit: str
    by: str
    problem: str = ""
    focus: int = 0

    def pairs(self) -> list[tuple[str, str]]:
        """The parameters of its address; none of a form that nobody filled in."""
        found = [pair for number, step in enumerate(self.steps, 1) for pair in step.pairs(number)]
        if not any(value for _, value in found) and len(self.steps) == MIN_STEPS:
            found = []
        more = [("within", self.within), ("unit", self.unit)] if (self.within, self.unit) != _DEFAULT else []
        return [*found, *more, *([("by", self.by)] if self.by else [])]

    def filters(self, number: int) -> list[tuple[str, list[tuple[str, str]]]]:
        """Each filter of a step in words, and the parameters of the form without it."""
        step = self.steps[number]
        found: list[tuple[str, list[tuple[str, str]]]] = []
        for each in step.filters.conditions:
            less = step.filters.without(each.field, each.value, negated=each.negated)
            steps = (*self.steps[:number], Step(step.event_token, less), *self.steps[number + 1 :])
            found.append((in_words(each), msgspec.structs.replace(self, steps=steps).pairs()))
        return found


_DEFAULT = (str(DEFAULT_WINDOW[0]), DEFAULT_WINDOW[1])


def was_sent(pairs: Pairs) -> bool:
    """Whether the address is what a form sent, and not one that a page has."""
    return any(name == "do" or _HOW.fullmatch(name) for name, _ in pairs)


def read_form(pairs: Pairs) -> Form:
    """The form that an address holds, or that was sent, after what its button does."""
    sent = dict(reversed(pairs))
    steps, problem = _usable(pairs)
    within, unit = sent.get("within", "").strip() or _DEFAULT[0], sent.get("unit", "") or _DEFAULT[1]
    by = sent.get("by", "").strip()
    try:
        window_of(within, unit)
        by = filterable(by) if by else ""
        steps = [_with_new_filter(step, number, sent) for number, step in enumerate(steps, 1)]
    except InvalidValue as error:
        problem = problem or f"Something was left out: {error}"
        if error.field in ("within", "unit"):
            within, unit = _DEFAULT
        elif error.field == "add_field" and by:
            by = ""
    steps += [Step() for _ in range(MIN_STEPS - len(steps))]
    focus = 0
    pressed = sent.get("do", "")
    if pressed == "add" and len(steps) < MAX_STEPS:
        steps.append(Step())
        focus = len(steps)
    elif found := _PRESSED.fullmatch(pressed):
        _move(steps, found[1], int(found[2]) - 1)
    return Form(tuple(steps), within, unit, by, problem, focus)


def _usable(pairs: Pairs) -> tuple[list[Step], str]:
    """The steps without what cannot be used of them, and a sentence about the first of that."""
    problem = ""
    for _ in range(_MOST_PROBLEMS):
        try:
            return list(steps_of(pairs)), problem
        except InvalidValue as error:
            problem = problem or f"A part of the funnel was left out ({error.field}): {error}"
            kept = [pair for pair in pairs if pair[0].removesuffix("!") != error.field.removesuffix("!")]
            if len(kept) == len(pairs):
                break
            pairs = kept
    return [], problem


def _with_new_filter(step: Step, number: int, sent: Mapping[str, str]) -> Step:
    """The step and the filter that was typed below it. Raises InvalidValue."""
    field = sent.get(f"step{number}.field", "").strip()
    if not field:
        return step
    how, value = sent.get(f"step{number}.how", "is"), sent.get(f"step{number}.value", "")
    return Step(step.event_token, with_typed(step.filters, field, how, value))


def _move(steps: list[Step], what: Literal["remove", "up", "down"] | str, place: int) -> None:
    if place >= len(steps):
        return
    if what == "remove":
        if len(steps) > MIN_STEPS:
            del steps[place]
        else:
            steps[place] = Step()
        return
    other = place - 1 if what == "up" else place + 1
    if 0 <= other < len(steps):
        steps[place], steps[other] = steps[other], steps[place]


async def funnel_panel(view: View, store: Queries, _asked: Mapping[str, str]) -> Context:
    """The funnel, or while it has no two steps, event tokens to choose the next one from."""
    form = read_form(view.own)
    if sum(bool(step.event_token) for step in form.steps) < MIN_STEPS:
        known = await tokens(view.app, store, view.period, view.filters, _SUGGESTED)
        return {
            "found": None,
            "started": bool(form.steps[0].event_token),
            "suggested": [(each.event_token, _chosen(view, form, each.event_token)) for each in known.tokens],
        }
    window = window_of(form.within, form.unit)
    found = await funnel(view.app, store, view.period, view.filters, form.steps, window, form.by or None)
    return {"found": found, "form": form, "by": named(form.by)}


def _chosen(view: View, form: Form, event_token: str) -> str:
    """The address of the page with this event token in the first step that has none."""
    place = next(number for number, step in enumerate(form.steps) if not step.event_token)
    steps = list(form.steps)
    steps[place] = Step(event_token, steps[place].filters)
    return view.with_own(msgspec.structs.replace(form, steps=tuple(steps)).pairs()).link()
