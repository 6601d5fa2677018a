"""Every page as it is rendered, on a desk and on a phone, in the light and in the dark.

What a screen reader, somebody with low vision or a phone needs is computed from the page in a real headless Chromium.
"""

from __future__ import annotations

import pytest

from service.revision import RevisionError

# Faults of a page as rendered, a line each: names, headings, landmarks, tables, ids, contrast, width.
AUDIT = r"""
() => {
  const faults = [];
  const all = (selector) => [...document.querySelectorAll(selector)];
  const visible = (element) => element.getClientRects().length > 0;
  const text = (element) => element.textContent.replace(/\s+/g, " ").trim();
  const name = (element) => element.getAttribute("aria-label") || text(element);

  if (!document.documentElement.lang) faults.push("no language");
  if (!document.title.trim()) faults.push("no title");
  for (const landmark of ["header", "main"]) {
    if (all(landmark).length !== 1) faults.push(`${all(landmark).length} of landmark ${landmark}`);
  }
  const levels = all("h1, h2, h3, h4").filter(visible).map((heading) => Number(heading.tagName[1]));
  if (levels[0] !== 1 || levels.filter((level) => level === 1).length !== 1) faults.push(`headings ${levels}`);
  levels.forEach((level, i) => { if (i && level > levels[i - 1] + 1) faults.push(`headings skip: ${levels}`); });
  for (const element of all("a[href], button, summary")) {
    if (!name(element)) faults.push(`no name: ${element.outerHTML}`);
  }
  for (const input of all("input:not([type=hidden]), select")) {
    if (!input.labels.length || !text(input.labels[0])) faults.push(`no label: ${input.outerHTML}`);
    for (const id of (input.getAttribute("aria-describedby") || "").split(" ").filter(Boolean)) {
      if (!document.getElementById(id)) faults.push(`${input.name} is described by nothing: ${id}`);
    }
  }
  for (const table of all("table")) {
    const heads = [...table.querySelectorAll("thead th")];
    if (!heads.length || heads.some((head) => !head.scope || !text(head))) faults.push("a table without headers");
  }
  for (const nav of all("nav")) if (!nav.getAttribute("aria-label")) faults.push("a nav without a name");
  for (const drawing of all("svg")) {
    const said = drawing.getAttribute("aria-hidden") || drawing.getAttribute("aria-label");
    if (!drawing.parentElement.closest("svg") && !said) faults.push("a drawing without a name");
  }
  const ids = all("[id]").map((element) => element.id);
  ids.filter((id, i) => ids.indexOf(id) !== i).forEach((id) => faults.push(`id twice: ${id}`));
  const overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  if (overflow > 0) faults.push(`${overflow} pixels too wide`);

  // Contrast, as WCAG 2 has it, against whatever colours lie below.
  const channels = (color) => color.match(/[\d.]+/g).map(Number);
  const over = ([r, g, b, a = 1], below) => [r, g, b].map((channel, i) => a * channel + (1 - a) * below[i]);
  const luminance = (color) => {
    const [r, g, b] = color.map((c) => (c /= 255, c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (one, other) => {
    const [light, dark] = [luminance(one), luminance(other)].sort((a, b) => b - a);
    return (light + 0.05) / (dark + 0.05);
  };
  const below = (element) => {
    const layers = [];
    for (let each = element; each; each = each.parentElement) layers.unshift(getComputedStyle(each).backgroundColor);
    return layers.reduce((color, layer) => over(channels(layer), color), [255, 255, 255]);
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = walker.nextNode());) {
    const element = node.parentElement;
    if (!node.nodeValue.trim() || !visible(element) || element.closest(".unseen, .skip")) continue;
    const style = getComputedStyle(element);
    const inDrawing = element.namespaceURI.endsWith("svg");
    const head = element.matches(".mark-number") && element.parentElement.querySelector(".mark-head");
    const ground = head ? channels(getComputedStyle(head).fill).slice(0, 3) : below(element);
    const found = ratio(over(channels(inDrawing ? style.fill : style.color), ground), ground);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    if (found < (large ? 3 : 4.5)) faults.push(`contrast ${found.toFixed(2)}: ${node.nodeValue.trim()}`);
  }
  for (const input of all("input:not([type=hidden]):not([type=checkbox]), select").filter(visible)) {
    const found = ratio(channels(getComputedStyle(input).borderTopColor).slice(0, 3), below(input.parentElement));
    if (found < 3) faults.push(`contrast of the edge of ${input.name}: ${found.toFixed(2)}`);
  }
  return faults;
}
"""


@pytest.fixture
def lively(house, serving):
    """A fleet of which every part of every page has something to say."""
    old, new = serving
    shadow, broken = house.registered("shadow", variant="scaled-prior"), house.registered("broken", variant="state")
    house.carried_out(house.rollout.split("tabletop", {new: 0.3}, actor="operator"))
    house.carried_out(house.rollout.shadow("tabletop", shadow, 1.0, actor="operator"))
    house.models.refusals[broken] = RevisionError(
        "probe.npz: a chunk is off by 3, at a/very/long/path/without/any/blank"
    )
    house.carried_out(house.rollout.load("tabletop", broken, actor="operator"))
    house.answered(20)
    request = house.kit.request()
    request.embodiment = "nobody"
    house.run(house.gateway.answerer.answer(request, timeout_s=5.0))
    return {"old": old, "new": new, "shadow": shadow, "broken": broken}


def pages_of(revisions: dict[str, str], operation: str) -> list[str]:
    policy = "/policies/tabletop"
    revision = {name: f"{policy}/revisions/{digest}" for name, digest in revisions.items()}
    changes = [f"{policy}/{change}" for change in ("split", "roll-back", "guard", "register", "retire")]
    changes += [f"{revision['broken']}/{change}" for change in ("promote", "load", "shadow", "delete")]
    changes += [f"{revision['new']}/probe", f"{revision['new']}/drain", f"{revision['shadow']}/unload", "/register"]
    pages = ["/", policy, f"{policy}?minutes=60", *revision.values(), *changes, "/operations", operation, "/audit"]
    return [*pages, "/gateways", "/sign-in", "/policies/nothing"]


@pytest.mark.parametrize(("width", "dark"), [(1100, False), (320, False), (1100, True), (320, True)])
def test_every_page_is_whole_named_and_legible(house, open_page, lively, width, dark, subtests):
    page = open_page("/", width=width, dark=dark)
    operation = f"/operations/{house.registry.operations('tabletop')[0].operation_id}"
    for path in pages_of(lively, operation):
        with subtests.test(path=path):
            page.goto(path)
            page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
            assert page.evaluate(AUDIT) == []


def test_light_and_dark_are_different_pages(open_page, serving):
    grounds = [open_page("/", dark=dark).evaluate("getComputedStyle(document.body).backgroundColor") for dark in (0, 1)]
    assert grounds == ["rgb(246, 247, 249)", "rgb(17, 20, 24)"]


FAULTY = """
<html><head><title></title></head><body>
<div style="width: 4000px; background: #fff"><h2 style="color: #999; background: #fff">pale</h2><h4>deep</h4></div>
<a href="/"></a><input name="x"><table><tr><td>1</td></tr></table><nav></nav><svg></svg><p id="a"></p><p id="a"></p>
</body></html>
"""


def test_a_page_with_every_fault_is_found_out(open_page, serving):
    page = open_page("/")
    page.route("**/faulty", lambda route: route.fulfill(status=200, content_type="text/html", body=FAULTY))
    page.goto("/faulty")
    faults = "\n".join(page.evaluate(AUDIT))
    for fault in (
        "no language", "no title", "landmark header", "landmark main", "headings 2,4", "headings skip", "no name",
        "no label", "table without headers", "nav without", "drawing without", "id twice", "too wide", "contrast 2.85",
    ):  # fmt: skip
        assert fault in faults, faults
