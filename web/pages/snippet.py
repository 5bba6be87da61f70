"""The snippet generator.

Its form is a question, so it is sent with GET: the address is all there is to know, a link that anybody of the tenant
can open, and the back button works.

While somebody types, only the result and the notes beside the fields are put in anew, so that nothing they are in the
middle of is touched; buttons that change the form itself (a row more, the other view) get the whole form.
"""

import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, get_args
from urllib.parse import urlencode

import msgspec
from litestar import Response, get, post
from litestar.params import FromPath

from tenants import tokens
from tenants.currencies import MINOR_UNITS
from tenants.drafts import Draft, Snippet, build
from tenants.hits import WARNING_ADVICE, Category
from tenants.live import outcome_of_test
from tenants.snippets import Encoding
from tenants.tables import App, AppToken
from tenants.targets import MERGING, TARGETS, MergeTag, Target
from tenants.typed_params import KINDS, Kind, Row, rows_of, write_json
from web.guards import AnyRequest, Member, OurApp
from web.rendering import is_htmx, render, replace_address

Pairs = Sequence[tuple[str, str]]

TARGET_NAMES: dict[Target, str] = {
    "html": "HTML",
    "noscript": "<noscript>",
    "mailchimp": "Mailchimp",
    "sendgrid": "SendGrid",
    "klaviyo": "Klaviyo",
    "email": "Other e-mail",
    "gtm": "Google Tag Manager",
    "amp": "AMP",
    "url": "Plain URL",
    "javascript": "JavaScript",
    "curl": "curl",
    "python": "Python",
    "php": "PHP",
    "node": "Node",
}
WHERE_TO: dict[Target, str] = {
    "html": "Anywhere in the page's body.",
    "noscript": "In the body, beside the script that counts those who have JavaScript.",
    "mailchimp": "In a code block of the campaign, near its end.",
    "sendgrid": "In a code module of the dynamic template, near its end.",
    "klaviyo": "In an HTML block of the template, near its end.",
    "email": "In the mail's HTML, near its end.",
    "gtm": "In a new tag, with the trigger that says when. Leave cache busting on.",
    "amp": "Anywhere in the page's body.",
    "url": "Wherever an image's address is asked for.",
    "javascript": "In your script, where the thing happens.",
    "curl": "In a shell or a cron job.",
    "python": "In your program, away from what a user waits for. Send uuid or email: a server has no visitor's cookie.",
    "php": "In your program, away from what a user waits for. Send uuid or email: a server has no visitor's cookie.",
    "node": "In your program, from Node 18 on. Send uuid or email: a server has no visitor's cookie.",
}
KIND_NAMES: dict[Kind, str] = {
    "text": "Text",
    "number": "Number",
    "boolean": "True or false",
    "null": "Nothing",
    "json": "List or object",
}

# As many as a hit can carry, and a few that will be said to be too many.
_MAX_ROWS = 300
_raw_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_PATIENCE = timedelta(seconds=10)


class Form(msgspec.Struct, frozen=True):
    """The form as sent: what was typed, with which of the app's tokens, and where to go on typing."""

    draft: Draft
    token: str = ""
    focus: str = ""


def read_form(pairs: Pairs) -> Form:
    """The form in a query string or body; what is not one of a choice's values counts as its first."""
    if not pairs:
        return Form(Draft(event_token="page_view", rows=(Row(),)))  # noqa: S106 (no password)
    sent = dict(reversed(pairs))

    def one_of(name: str, choices: Sequence[str]) -> Any:
        return sent[name] if sent.get(name) in choices else choices[0]

    columns = [[value for name, value in pairs if name == column] for column in ("name", "type", "value")]
    draft = Draft(
        category=one_of("category", get_args(Category)),
        event_token=sent.get("event_token", ""),
        amount=sent.get("amount", ""),
        currency=sent.get("currency", ""),
        event_id=sent.get("event_id", ""),
        view=one_of("as", ("rows", "json")),
        rows=tuple(
            Row(name, kind if kind in KINDS else "text", value) for name, kind, value in zip(*columns, strict=False)
        )[:_MAX_ROWS],
        # Forms send line breaks in two characters.
        json=sent.get("json", "").replace("\r\n", "\n"),
        encoding=one_of("encoding", get_args(Encoding)),
        target=one_of("target", TARGETS),
    )
    return Form(draft, sent.get("token", ""))


def address_of(app: App, form: Form) -> str:
    """The address that opens the generator with this form."""
    draft = form.draft
    pairs: list[tuple[str, str]] = [("category", draft.category), ("event_token", draft.event_token)]
    if draft.category == "revenue":
        pairs += [("amount", draft.amount), ("currency", draft.currency)]
    pairs.append(("event_id", draft.event_id))
    if draft.view == "json":
        pairs.append(("json", draft.json))
    pairs = [(name, value) for name, value in pairs if value or name == "event_token"]
    pairs.append(("as", draft.view))
    for row in draft.rows if draft.view == "rows" else ():
        if not row.is_blank:
            pairs += [("name", row.name), ("type", row.kind), ("value", row.value)]
    pairs += [("encoding", draft.encoding), ("target", draft.target)]
    if form.token:
        pairs.append(("token", form.token))
    return f"/apps/{app.id}/snippet?{urlencode(pairs)}"


def changed(form: Form, pairs: Pairs, snippet: Snippet) -> Form | None:
    """The form after one of its buttons was pressed; None where none was.

    The other view is shown only of values that can be read: `snippet` says whether they can.
    """
    pressed = dict(pairs)
    draft = form.draft
    if "add" in pressed:
        rows = (*draft.rows, Row())
        return Form(msgspec.structs.replace(draft, rows=rows), form.token, f"name-{len(rows) - 1}")
    if (index := pressed.get("drop")) is not None:
        rows = tuple(row for at, row in enumerate(draft.rows) if str(at) != index)
        return Form(msgspec.structs.replace(draft, rows=rows), form.token, "add")
    if (label := pressed.get("tag")) is not None:
        tag = next((tag for tag in _tags(draft.target) if tag.label == label), None)
        return _with_tag(form, tag, snippet) if tag else form
    if (view := pressed.get("to")) in ("rows", "json"):
        values = snippet.values
        if values is None or view == draft.view or len(values) > _MAX_ROWS:
            return Form(draft, form.token, "json" if draft.view == "json" else "to-json")
        if view == "json":
            draft = msgspec.structs.replace(draft, view="json", json=write_json(values), rows=())
        else:
            draft = msgspec.structs.replace(draft, view="rows", rows=tuple(rows_of(values)) or (Row(),), json="")
        return Form(draft, form.token, f"to-{'rows' if view == 'json' else 'json'}")
    return None


def _tags(target: Target) -> tuple[MergeTag, ...]:
    return MERGING[target].offered if target in MERGING else ()


def _with_tag(form: Form, tag: MergeTag, snippet: Snippet) -> Form:
    """The form with a merge tag in the field that it is meant for."""
    draft = form.draft
    if tag.field == "amount":
        draft = msgspec.structs.replace(draft, category="revenue", amount=tag.tag)
        return Form(draft, form.token, "amount")
    if tag.field == "event_id":
        return Form(msgspec.structs.replace(draft, event_id=tag.tag), form.token, "event_id")
    if draft.view == "json":
        if snippet.values is None:
            return Form(draft, form.token, "json")
        text = write_json({**snippet.values, tag.field: tag.tag})
        return Form(msgspec.structs.replace(draft, json=text), form.token, "json")
    kept = [row for row in draft.rows if row.name != tag.field and not row.is_blank]
    rows = (*kept, Row(tag.field, "text", tag.tag))
    return Form(msgspec.structs.replace(draft, rows=rows), form.token, f"value-{len(rows) - 1}")


async def _live_tokens(app: App) -> list[AppToken]:
    now = datetime.now(UTC)
    return [token for token in await tokens.list_tokens(app) if tokens.state(token, now) in ("live", "ends")]


def _build(request: AnyRequest, app: App, form: Form, live: list[AppToken]) -> tuple[Snippet, AppToken]:
    token = next((token for token in live if token.token == form.token), live[0])
    return build(form.draft, request.app.state.pixel_url, token.token, app.currency), token


def _context(
    request: AnyRequest, app: App, form: Form, live: list[AppToken], built: tuple[Snippet, AppToken]
) -> dict[str, Any]:
    """What the page and its fragments show."""
    snippet, token = built
    if len(live) == 1:
        form = msgspec.structs.replace(form, token="")
    address = address_of(app, form)
    return {
        "app": app,
        "tab": "snippet",
        "form": form,
        "draft": form.draft,
        "snippet": snippet,
        "token": token,
        "live": live,
        "address": address,
        "link": f"{request.app.state.public_url}{address}",
        "tags": _tags(form.draft.target),
        "targets": TARGET_NAMES,
        "where_to": WHERE_TO[form.draft.target],
        "kinds": KIND_NAMES,
        "currencies": sorted(MINOR_UNITS),
        "advice": WARNING_ADVICE,
        "values": _shown(snippet.event.params) if snippet.event else {},
    }


def _shown(params: str) -> dict[str, str]:
    """The JSON text of each value, by name."""
    return {name: str(value, "utf-8") for name, value in _raw_fields(params).items()}


async def _no_token(request: AnyRequest, app: App) -> Response[bytes]:
    if is_htmx(request):
        # The last one ended while the form was open: all of the page is another one now.
        return Response(b"", status_code=200, headers={"HX-Refresh": "true"})
    return await render(request, "snippet/no_token.html", app=app, tab="snippet")


@get("/apps/{app_id:str}/snippet")
async def snippet_page(request: AnyRequest, app: OurApp) -> Response[bytes]:
    """The generator: a whole page, the whole form after a button of it, else what typing changes."""
    live = await _live_tokens(app)
    if not live:
        return await _no_token(request, app)
    pairs: Pairs = list(request.query_params.multi_items())
    form = read_form(pairs)
    built = _build(request, app, form, live)
    after = changed(form, pairs, built[0])
    context = _context(request, app, after or form, live, _build(request, app, after, live) if after else built)
    if not is_htmx(request):
        return await render(request, "snippet/snippet.html", **context)
    response = await render(request, f"snippet/{'_form' if after else '_changes'}.html", **context)
    replace_address(response, context["address"])
    if after:
        response.headers["HX-Retarget"] = "#generator"
        response.headers["HX-Reswap"] = "outerHTML"
    return response


@post("/apps/{app_id:str}/snippet/test", status_code=200)
async def send_test(request: AnyRequest, app: OurApp, member: Member) -> Response[bytes]:  # noqa: ARG001 (a guard)
    """Load the pixel for real, in the browser of whoever asks, marked so that it can be found again."""
    live = await _live_tokens(app)
    if not live:
        return await _no_token(request, app)
    sent = await request.form()
    form = read_form([(name, value) for name, value in sent.multi_items() if isinstance(value, str)])
    context = _context(request, app, form, live, _build(request, app, form, live))
    snippet: Snippet = context["snippet"]
    if snippet.event is None:
        page = "_test_impossible" if is_htmx(request) else "snippet"
        return await render(request, f"snippet/{page}.html", 422, **context)
    nonce = secrets.token_urlsafe(12)
    asked = {
        "sent": int(datetime.now(UTC).timestamp() * 1000),
        "category": form.draft.category,
        "event_id": snippet.event.event_id or "",
    }
    context |= {
        "image": f"{snippet.test_url}&cb={nonce}",
        "outcome_address": f"/apps/{app.id}/snippet/test/{nonce}?{urlencode(asked)}",
    }
    return await render(request, f"snippet/{'_test' if is_htmx(request) else 'test'}.html", **context)


@get("/apps/{app_id:str}/snippet/test/{nonce:str}")
async def test_outcome(request: AnyRequest, app: OurApp, nonce: FromPath[str]) -> Response[bytes]:
    """What a test hit became; asked again and again until it is known."""
    asked = request.query_params
    now = datetime.now(UTC)
    try:
        sent_at = datetime.fromtimestamp(int(asked.get("sent", "")) / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        sent_at = now
    category: Category = "revenue" if asked.get("category") == "revenue" else "event"
    outcome = await outcome_of_test(
        app, request.app.state.event_store, nonce, asked.get("event_id") or None, category, sent_at
    )
    return await render(
        request,
        f"snippet/{'_outcome' if is_htmx(request) else 'outcome'}.html",
        app=app,
        tab="snippet",
        outcome=outcome,
        late=now - sent_at > _PATIENCE,
        outcome_address=f"{request.url.path}?{request.url.query}",
    )


handlers = [snippet_page, send_test, test_outcome]
