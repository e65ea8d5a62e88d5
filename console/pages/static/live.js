// Reads the page again, and replaces the parts with data-live. It keeps the focus, and which details are open. If the
// page cannot be read, the parts turn grey and the page says since when.
"use strict";
const every = Number(document.body.dataset.seconds) * 1000;
const parts = () => document.querySelectorAll("[data-live]");
const focusable = "a[href], button, input, select, summary, [tabindex]";
let pause = every;
let read = new Date();

function replace(fresh) {
  for (const old of parts()) {
    const now = fresh.getElementById(old.id);
    if (!now || now.innerHTML === old.innerHTML) continue;
    for (const open of old.querySelectorAll("details[open]")) {
      const same = now.querySelector("#" + CSS.escape(open.id));
      if (same) same.open = true;
    }
    const focused = [...old.querySelectorAll(focusable)].indexOf(document.activeElement);
    old.replaceWith(document.adoptNode(now));
    if (focused >= 0) now.querySelectorAll(focusable)[focused]?.focus({ preventScroll: true });
  }
}

function say(why) {
  document.body.classList.toggle("stale", why !== "");
  const text = why && why + " The figures are stale since " + read.toISOString().slice(11, 19) + " UTC.";
  const line = document.getElementById("stale");
  if (line.textContent !== text) line.textContent = text;
}

async function refresh() {
  if (document.hidden) return;
  try {
    const limit = AbortSignal.timeout(20000);
    const answer = await fetch(location.href, { credentials: "same-origin", cache: "no-store", signal: limit });
    if (answer.status === 401 || answer.status === 403) throw new Error("You are signed out: load the page again.");
    if (!answer.ok) throw new Error("The server answered " + answer.status + ".");
    replace(new DOMParser().parseFromString(await answer.text(), "text/html"));
    read = new Date();
    pause = every;
    say("");
  } catch (e) {
    pause = Math.min(pause * 2, 60000);
    say(e instanceof TypeError || e.name === "TimeoutError" ? "The server does not answer." : e.message);
  }
}

(async () => {
  for (;;) {
    await new Promise((wake) => setTimeout(wake, pause));
    await refresh();
  }
})();
document.addEventListener("visibilitychange", refresh);
