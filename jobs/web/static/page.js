"use strict";
// Keeps an open page current: the server tells of each change, and the parts marked data-live are replaced.
const LIVE = "Live", LOST = "No connection: the page shows an earlier state";
const RETRY_MS = 10000; // after the server has refused to tell of changes
const connection = document.getElementById("connection");
let source = null, loading = false, again = false, allowedAt = 0;

// A focused element is found again by what it is called.
const nameOf = element => element.getAttribute("href") || element.getAttribute("aria-label") || element.textContent;

function replacePart(part, fresh) {
  if (part.isEqualNode(fresh)) return;
  const wasAtEnd = part.scrollHeight - part.scrollTop - part.clientHeight < 30, place = part.scrollTop;
  const across = [...part.querySelectorAll(".scroll")].map(one => one.scrollLeft);
  const chosen = new Set([...part.querySelectorAll("input:checked")].map(one => one.value));
  const focused = part.contains(document.activeElement) ? document.activeElement : null;
  part.replaceWith(fresh);
  if (fresh.dataset.follow !== undefined) fresh.scrollTop = wasAtEnd ? fresh.scrollHeight : place;
  fresh.querySelectorAll(".scroll").forEach((one, index) => { one.scrollLeft = across[index] || 0; });
  fresh.querySelectorAll("input[type=checkbox]").forEach(one => { one.checked = chosen.has(one.value); });
  if (!focused) return;
  const candidates = [fresh, ...fresh.querySelectorAll("a[href], button, input, [tabindex]")];
  candidates.find(one => one.tabIndex >= 0 && nameOf(one) === nameOf(focused))?.focus({preventScroll: true});
}

function say(text, isFault) {
  connection.classList.toggle("fault", isFault);
  if (connection.textContent !== text) connection.textContent = text; // a screen reader says it once
}

async function load() {
  const started = performance.now();
  const answer = await fetch(location.href, {headers: {accept: "text/html"}});
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  if (!answer.ok) { // an error of the page is one line; any other answer is a short text
    const line = fresh.querySelector(".warning") ?? fresh.body;
    say(line.textContent.trim() || `Error ${answer.status}`, true);
    return;
  }
  for (const part of document.querySelectorAll("[data-live]")) {
    const other = fresh.getElementById(part.id);
    if (other) replacePart(part, other);
  }
  say(LIVE, false);
  allowedAt = performance.now() + 4 * (performance.now() - started); // a slow page is loaded less often
}

async function refresh() {
  again = true;
  if (loading) return;
  loading = true;
  try {
    while (again && source) {
      const wait = allowedAt - performance.now();
      if (wait > 0) await new Promise(done => setTimeout(done, wait));
      again = false;
      await load();
    }
  } catch { say(LOST, true); } finally { loading = false; }
}

// A browser has few connections to a server: a page that nobody sees gives its own back.
function listen() {
  if (document.hidden) {
    source?.close();
    source = null;
    return;
  }
  if (source || !document.body.dataset.changes) return;
  const opened = source = new EventSource(document.body.dataset.changes);
  opened.onopen = refresh;
  opened.onmessage = refresh;
  opened.onerror = () => {
    if (opened.readyState !== EventSource.CLOSED) return say(LOST, true);
    load().catch(() => say(LOST, true)); // the page itself says why
    setTimeout(() => {
      if (source !== opened) return;
      source = null;
      listen();
    }, RETRY_MS);
  };
}

document.addEventListener("visibilitychange", listen);
window.addEventListener("pageshow", listen);
window.addEventListener("pagehide", () => { source?.close(); source = null; });
document.addEventListener("submit", event => {
  const question = event.target.dataset.question;
  if (question && !window.confirm(question)) event.preventDefault();
});
for (const log of document.querySelectorAll("[data-follow]")) log.scrollTop = log.scrollHeight;
listen();
