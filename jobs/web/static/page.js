"use strict";
// Keeps an open page current: the server tells of each change, and the parts marked data-live are replaced.
const connection = document.getElementById("connection");
let loading = false, again = false;

function followLog() {
  for (const log of document.querySelectorAll("[data-follow]")) log.scrollTop = log.scrollHeight;
}

function replacePart(part, fresh) {
  if (part.isEqualNode(fresh)) return;
  const wasAtEnd = part.scrollHeight - part.scrollTop - part.clientHeight < 30, place = part.scrollTop;
  const focused = part.contains(document.activeElement) ? document.activeElement : null;
  const key = focused && (focused.getAttribute("href") || focused.closest("form")?.getAttribute("action"));
  part.replaceWith(fresh);
  if (fresh.dataset.follow !== undefined) fresh.scrollTop = wasAtEnd ? fresh.scrollHeight : place;
  if (!focused) return;
  const same = [...fresh.querySelectorAll("a[href], form[action] button")]
    .find(one => (one.getAttribute("href") || one.closest("form").getAttribute("action")) === key);
  (same || (fresh.tabIndex >= 0 ? fresh : null))?.focus({preventScroll: true});
}

async function refresh() {
  if (loading) { again = true; return; }
  loading = true;
  try {
    do {
      again = false;
      const answer = await fetch(location.href, {headers: {accept: "text/html"}});
      if (!answer.ok) { connection.textContent = `Error ${answer.status}: load the page again`; return; }
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      for (const part of document.querySelectorAll("[data-live]")) {
        const other = fresh.getElementById(part.id);
        if (other) replacePart(part, other);
      }
    } while (again);
  } catch {
    connection.textContent = "No connection: the page shows an earlier state";
  } finally { loading = false; }
}

if (document.body.dataset.changes) {
  const source = new EventSource(document.body.dataset.changes);
  let wasLost = false;
  source.onopen = () => { connection.textContent = "Live"; if (wasLost) refresh(); wasLost = false; };
  source.onmessage = refresh;
  source.onerror = () => { wasLost = true; connection.textContent = "No connection: the page shows an earlier state"; };
}
document.addEventListener("submit", event => {
  const question = event.target.dataset.question;
  if (question && !window.confirm(question)) event.preventDefault();
});
followLog();
