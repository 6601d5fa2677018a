// Keeps what is live up to date. Every page is whole without it.
"use strict";

(() => {
  const region = document.querySelector("[data-live]");
  const announcement = document.getElementById("announcement");
  const RETRY_MS = 3000;
  const TIMEOUT_MS = 10000;

  // A form that was sent is not sent again by a second click.
  document.addEventListener("submit", (event) => {
    const button = event.submitter;
    if (button && event.target.method === "post") {
      setTimeout(() => { button.disabled = true; }, 0);
    }
  });
  // The browser shows a page again as it was left, buttons included.
  window.addEventListener("pageshow", () => {
    document.querySelectorAll("button:disabled").forEach((button) => { button.disabled = false; });
  });

  if (!region) return;

  // Makes `old` what `new_` is, keeping the elements that stay: focus and what is selected stay with them.
  function patch(old, new_) {
    for (const { name } of [...old.attributes]) {
      if (!new_.hasAttribute(name) && name !== "open") old.removeAttribute(name);
    }
    for (const { name, value } of new_.attributes) {
      if (old.getAttribute(name) !== value) old.setAttribute(name, value);
    }
    patchChildren(old, new_);
  }

  function patchChildren(old, new_) {
    const before = [...old.childNodes];
    const after = [...new_.childNodes];
    after.forEach((node, index) => {
      const place = before[index];
      if (!place) {
        old.appendChild(node);
      } else if (place.nodeName !== node.nodeName || place.id !== node.id) {
        old.replaceChild(node, place);
      } else if (node.nodeType === Node.ELEMENT_NODE) {
        patch(place, node);
      } else if (place.nodeValue !== node.nodeValue) {
        place.nodeValue = node.nodeValue;
      }
    });
    before.slice(after.length).forEach((node) => node.remove());
  }

  // Where focus was on an element that had to go, it returns to the one that has its place.
  function show(html) {
    const parsed = new DOMParser().parseFromString(html, "text/html");
    const focused = region.contains(document.activeElement) ? document.activeElement.id : "";
    patchChildren(region, parsed.body);
    if (focused && document.activeElement === document.body) {
      const heir = document.getElementById(focused) || document.getElementById("content");
      heir.focus({ preventScroll: true });
    }
  }

  // Said once, when it changes: a reader is not told the whole page anew.
  let said = region.querySelector("[data-announce]")?.dataset.announce;
  function announce() {
    const now = region.querySelector("[data-announce]")?.dataset.announce;
    if (now && now !== said) {
      said = now;
      announcement.textContent = now;
    }
  }

  const bar = document.createElement("div");
  bar.className = "live-state";
  const state = document.createElement("span");
  const button = document.createElement("button");
  button.type = "button";
  button.className = "quiet";
  bar.append(state, button);
  let paused = false;
  let timer = 0;

  function tell(text) {
    if (state.textContent !== text) state.textContent = text;
  }

  function isOver() {
    return region.querySelector("[data-over]") !== null;
  }

  function schedule(delay_ms) {
    clearTimeout(timer);
    if (!paused && !document.hidden && !isOver()) timer = setTimeout(refresh, delay_ms);
  }

  async function refresh() {
    try {
      const answer = await fetch(region.dataset.live, {
        credentials: "same-origin",
        signal: AbortSignal.timeout(TIMEOUT_MS),
      });
      if (answer.status === 401 || answer.status === 403) {
        // Signed out meanwhile: the page itself says so.
        location.reload();
        return;
      }
      if (!answer.ok) throw new Error(String(answer.status));
      const html = await answer.text();
      if (paused) return;
      show(html);
      announce();
      tell("Live");
      if (isOver()) {
        bar.remove();
        return;
      }
      schedule(Number(region.dataset.everyMs));
    } catch (error) {
      tell("The service does not answer; what you see is old. Trying again.");
      schedule(RETRY_MS);
    }
  }

  button.addEventListener("click", () => {
    paused = !paused;
    button.textContent = paused ? "Go on" : "Pause";
    tell(paused ? "Paused" : "Live");
    schedule(0);
  });
  document.addEventListener("visibilitychange", () => schedule(0));

  if (!isOver()) {
    button.textContent = "Pause";
    tell("Live");
    document.getElementById("content").after(bar);
    schedule(Number(region.dataset.everyMs));
  }
})();
