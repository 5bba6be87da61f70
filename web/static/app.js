// What every page can do beyond its forms. All of it is on top of pages that work without.
"use strict";

// <button data-copy="#id">: copies that element's text, or its value, and says so.
document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const source = document.querySelector(button.dataset.copy);
  const text = source.value ?? source.textContent;
  const label = (button.dataset.label ??= button.textContent);
  let said = "Copied";
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Without TLS there is no clipboard: select it, so that the keyboard's copy takes it.
    if (source.select) source.select();
    else getSelection().selectAllChildren(source);
    said = document.execCommand("copy") ? "Copied" : "Press Ctrl-C";
  }
  button.textContent = said;
  say(said);
  clearTimeout(button.timer);
  button.timer = setTimeout(() => (button.textContent = label), 2000);
});

// <details class="menu">: closes on Escape, with the focus back on it, and on a click elsewhere.
document.addEventListener("keydown", (event) => {
  const menu = event.key === "Escape" && document.querySelector("details.menu[open]");
  if (!menu) return;
  menu.open = false;
  menu.querySelector("summary").focus();
});
document.addEventListener("click", (event) => {
  for (const menu of document.querySelectorAll("details.menu[open]")) {
    if (!menu.contains(event.target)) menu.open = false;
  }
});

// Tells screen readers what changed without moving there.
function say(text) {
  let region = document.getElementById("said");
  if (!region) {
    region = document.createElement("p");
    region.id = "said";
    region.className = "hide";
    region.setAttribute("role", "status");
    document.body.append(region);
  }
  region.textContent = "";
  setTimeout(() => (region.textContent = text), 50);
}

// <form data-auto>: sent when a choice in it changes; its button is for those without script, and for the keyboard:
// there each arrow or letter is a choice.
let byKey = false;
document.addEventListener("keydown", (event) => {
  byKey = event.target.matches("select") && !event.altKey && !["Enter", " ", "Tab"].includes(event.key);
  if (event.key !== "Enter" || !event.target.matches("form.by-key select")) return;
  event.target.form.classList.remove("by-key");
  event.target.dispatchEvent(new Event("change", { bubbles: true }));
});
document.addEventListener("pointerdown", () => (byKey = false));
document.addEventListener("change", (event) => {
  // What is typed has a button: a day changes with each digit, and leaving a field is no answer.
  if (event.target.matches("form[data-auto] select")) event.target.form.requestSubmit();
});
document.addEventListener(
  "change",
  (event) => {
    if (!byKey || !event.target.matches("form[data-auto] select, form.controls[hx-get] select")) return;
    event.target.form.classList.add("by-key");
    event.stopPropagation();
  },
  true,
);

// A filter of a funnel's step is typed in several fields, and is sent by its button.
document.addEventListener(
  "change",
  (event) => {
    if (event.target.closest("#funnel-form .add")) event.stopPropagation();
  },
  true,
);

// A step more is there to be filled in.
document.addEventListener("htmx:afterSettle", (event) => {
  if (event.detail.requestConfig?.formData?.get("do") !== "add") return;
  [...document.querySelectorAll("#funnel-form .step .line input")].at(-1)?.focus();
});

// A page in the background, or one that is paused, does not go on asking what is new.
document.addEventListener("htmx:beforeRequest", (event) => {
  const asking = event.target;
  if (asking.hasAttribute("data-poll") && (document.hidden || asking.closest("[data-paused]"))) event.preventDefault();
});

// <button data-pause="#id">: what polls in that element waits.
document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-pause]");
  if (!button) return;
  const paused = document.querySelector(button.dataset.pause).toggleAttribute("data-paused");
  button.textContent = paused ? "Go on" : "Pause";
  say(paused ? "Paused" : "Live again");
});

// <div data-most="200">: what grows at the top loses its oldest at the bottom.
document.addEventListener("htmx:afterSettle", () => {
  for (const list of document.querySelectorAll("[data-most]")) {
    while (list.children.length > Number(list.dataset.most)) list.lastElementChild.remove();
  }
});

// What was chosen in a panel stands in the page's address: links within the page that were drawn before keep it, too.
document.addEventListener("htmx:replacedInHistory", () => {
  const asked = new URLSearchParams(location.search);
  for (const link of document.querySelectorAll("main a[href]")) {
    if (link.origin !== location.origin || link.pathname !== location.pathname) continue;
    const address = new URL(link.href);
    for (const name of ["field", "in"]) if (asked.has(name)) address.searchParams.set(name, asked.get(name));
    link.search = address.search;
  }
});

// A form that was sent is not sent again by a second click; where no page came in its place, it can be.
document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.getAttribute("method") !== "post" || event.defaultPrevented) return;
  if (form.sent) event.preventDefault();
  form.sent = true;
  setTimeout(() => (form.sent = false), 4000);
});

// A currency chosen in one panel is the page's: the others follow.
document.addEventListener("change", (event) => {
  if (!event.target.matches('main select[name="in"]')) return;
  const currency = event.target.value;
  for (const select of document.querySelectorAll('main select[name="in"]')) {
    if (select.value === currency || ![...select.options].some((option) => option.value === currency)) continue;
    select.value = currency;
    if (select.form.checkValidity()) select.form.requestSubmit();
  }
});

// What we answer says that it depends on who asks. Else an error is a proxy's, which tells people nothing, and put in the
// place of what asks again and again it would be the end of that.
const ours = (xhr) => xhr.status > 0 && (xhr.status < 400 || /HX-Request/i.test(xhr.getResponseHeader("Vary") ?? ""));

// The server could not be reached at all, or not in time; or it takes nothing so long.
function unreachable(event) {
  const target = event.detail.target;
  if (!target || target.querySelector(":scope > .offline")) return;
  const notice = document.createElement("p");
  notice.className = "notice bad offline";
  notice.setAttribute("role", "alert");
  notice.textContent = [413, 414, 431].includes(event.detail.xhr?.status)
    ? "This is too long to be sent. Shorten what you typed."
    : "No answer from the server. Check the connection, then reload the page.";
  target.prepend(notice);
}
for (const name of ["htmx:sendError", "htmx:timeout"]) document.addEventListener(name, unreachable);
document.addEventListener("htmx:beforeSwap", (event) => {
  if (ours(event.detail.xhr)) return;
  event.detail.shouldSwap = false;
  unreachable(event);
});

// It can be reached again.
document.addEventListener("htmx:afterRequest", (event) => {
  if (ours(event.detail.xhr)) event.detail.target?.querySelector(":scope > .offline")?.remove();
});

// <input data-timezone>: the browser's.
for (const field of document.querySelectorAll("[data-timezone]")) {
  field.value = Intl.DateTimeFormat().resolvedOptions().timeZone ?? "";
}

// On a phone the tabs scroll sideways: the current one is in sight.
document.querySelector(".tabs [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });

document.documentElement.classList.add("js");
