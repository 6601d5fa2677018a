"""The dashboard used in a real headless Chromium: by mouse, by keyboard alone, live, and without a script."""

from __future__ import annotations

import asyncio
import re

import pytest


def wait_for_end(page) -> None:
    page.get_by_text(re.compile("^(Done\\.|It failed)")).wait_for()


def test_a_swap_by_clicking_shows_its_progress_until_it_is_done(house, open_page, serving):
    old, new = serving
    house.answered(8)
    hold = house.models.holds[new] = house.ask(asyncio.Event)
    page = open_page("/")
    page.get_by_role("link", name="tabletop", exact=True).click()
    page.get_by_role("link", name=f"Promote {new}").click()
    effects = page.locator(".effects").inner_text()
    assert (
        f"all new episodes of tabletop go to {new}" in effects and f"in progress on {old} (8 now) ends there" in effects
    )
    assert house.route().stable == old
    page.get_by_label("The one before stays loaded").check()
    page.get_by_role("button", name="Promote").click()
    page.wait_for_url("**/operations/*")
    page.locator(".step-done").filter(has_text="warming").wait_for()
    assert page.locator(".state-running").count() == 1 and house.route().stable == old
    house.ask(hold.set)
    wait_for_end(page)
    assert page.locator(".steps li").all_text_contents() == [
        "done: loading", "done: warming", "done: probed, ready", "done: every gateway routes by it",
    ]  # fmt: skip
    # A screen reader is told once, by the region that is there for it.
    assert page.locator("#announcement").inner_text() == "promote succeeded"
    page.get_by_role("link", name="Go to tabletop").click()
    page.locator(".routes li").filter(has_text=re.compile(f"100 % {new}")).wait_for()
    assert (house.route().stable, house.route().keep_previous) == (new, True)


def test_split_shadow_and_roll_back_by_clicking(house, open_page, serving):
    old, new = serving
    page = open_page("/policies/tabletop")
    page.get_by_role("link", name="Split traffic").click()
    page.get_by_label(re.compile(new)).fill("20")
    page.get_by_role("button", name="Split traffic").click()
    wait_for_end(page)
    assert dict(house.route().shares) == {old: 0.8, new: 0.2}
    page.get_by_role("link", name="Go to tabletop").click()
    page.get_by_role("link", name="Roll back").click()
    page.get_by_label("Reason").fill("it shakes")
    page.get_by_role("button", name="Roll back").click()
    wait_for_end(page)
    assert dict(house.route().shares) == {old: 1.0}
    assert house.registry.audit("tabletop")[0].detail.get("reason", "it shakes") == "it shakes"
    page.goto(f"/policies/tabletop/revisions/{new}/shadow")
    page.get_by_label("Share of the requests to copy").fill("50")
    page.get_by_role("button", name="Shadow").click()
    wait_for_end(page)
    assert (house.route().shadow.revision, house.route().shadow.share) == (new, 0.5)


def tab_to(page, name: str) -> None:
    """By the Tab key alone, to the control of that name; every stop on the way shows where it is."""
    for _ in range(60):
        page.keyboard.press("Tab")
        found, outline = page.evaluate(
            """() => {
              const each = document.activeElement;
              const label = each.labels && each.labels.length ? each.labels[0].textContent : each.textContent;
              return [label.replace(/\\s+/g, " ").trim(), getComputedStyle(each).outlineStyle];
            }"""
        )
        assert outline != "none", f"nothing shows that {found!r} has focus"
        if found == name:
            return
    pytest.fail(f"Tab never came to {name!r}")


def test_swap_split_shadow_and_roll_back_by_keyboard_alone(house, open_page, serving):
    old, new = serving
    page = open_page("/")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"
    page.keyboard.press("Enter")
    tab_to(page, "tabletop")
    page.keyboard.press("Enter")
    page.wait_for_url("**/policies/tabletop")

    tab_to(page, "Split traffic")
    page.keyboard.press("Enter")
    page.wait_for_url("**/split")
    tab_to(page, f"{new} (history)")
    page.keyboard.type("25")
    page.keyboard.press("Enter")
    page.wait_for_url("**/operations/*")
    wait_for_end(page)
    assert dict(house.route().shares) == {old: 0.75, new: 0.25}

    tab_to(page, "Go to tabletop")
    page.keyboard.press("Enter")
    page.wait_for_url("**/policies/tabletop")
    tab_to(page, f"Promote {new}")
    page.keyboard.press("Enter")
    page.wait_for_url("**/promote")
    tab_to(page, "Episodes in progress move to it at once")
    page.keyboard.press("Space")
    tab_to(page, "Promote")
    page.keyboard.press("Enter")
    page.wait_for_url("**/operations/*")
    wait_for_end(page)
    assert (house.route().stable, house.route().move_episodes) == (new, True)

    page.goto("/policies/tabletop")
    tab_to(page, "Roll back")
    page.keyboard.press("Enter")
    page.wait_for_url("**/roll-back")
    tab_to(page, "Roll back")
    page.keyboard.press("Enter")
    page.wait_for_url("**/operations/*")
    wait_for_end(page)
    assert house.route().stable == old

    page.goto(f"/policies/tabletop/revisions/{new}/shadow")
    tab_to(page, "Share of the requests to copy")
    page.keyboard.press("Control+A")
    page.keyboard.type("5")
    page.keyboard.press("Enter")
    page.wait_for_url("**/operations/*")
    wait_for_end(page)
    assert house.route().shadow.share == 0.05


def test_a_page_that_is_live_keeps_focus_and_stops_when_it_is_told_to(house, open_page, serving):
    _, new = serving
    house.answered(8)
    page = open_page("/policies/tabletop")
    page.clock.install()
    link = page.get_by_role("link", name=f"Load {new}")
    link.focus()
    house.answered(3, robot="leg")
    page.clock.run_for(2500)
    page.get_by_text("11 in progress").wait_for()
    assert link.evaluate("each => each === document.activeElement")
    page.get_by_role("button", name="Pause").click()
    house.answered(3, robot="hand")
    page.clock.run_for(10_000)
    assert page.get_by_text("11 in progress").count() == 1
    page.get_by_role("button", name="Go on").click()
    page.get_by_text("14 in progress").wait_for()


def test_a_service_that_does_not_answer_is_said_to_be_old_news(open_page, serving):
    page = open_page("/")
    page.clock.install()
    page.route("**/live", lambda route: route.fulfill(status=200, body="<p class='lead'>fresh</p>"))
    page.clock.run_for(2500)
    page.get_by_text("fresh").wait_for()
    page.unroute("**/live")
    page.route("**/live", lambda route: route.fulfill(status=404))
    page.clock.run_for(2500)
    page.get_by_text("what you see is old").wait_for()
    assert page.get_by_text("fresh").count() == 1


def test_a_session_that_ends_asks_to_sign_in_again(house, open_page, serving):
    token_id, token = house.token("admin", name="Ada")
    page = open_page("/policies/tabletop")
    page.get_by_label("Token").fill(token)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/policies/tabletop")
    page.get_by_text("Ada").wait_for()
    house.revoke(token_id)
    page.get_by_role("heading", name="Sign in").wait_for()


def test_everything_works_without_a_script(house, open_page, serving):
    _, new = serving
    page = open_page(f"/policies/tabletop/revisions/{new}/promote", script=False)
    page.get_by_role("button", name="Promote").click()
    page.wait_for_url("**/operations/*")
    house.followed(page.url)
    page.reload()
    assert page.get_by_text("Done.").count() == 1
    assert page.get_by_role("button", name="Pause").count() == 0
    assert house.route().stable == new
