"""The page of a report in headless Chromium: read, filtered, walked through by keyboard."""

from __future__ import annotations

import itertools
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from castctl.inspection.target import find_target
from castctl.report.html.payload import collect_completions
from castctl.report.html.run_page import write_run_page
from test_report import HOSTILE, write_step

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER), reason="no chromium and chromedriver on the PATH"
    ),
]

LONG = 100_000
"""Tokens of the longest completion, and characters of the longest token."""

Script = Callable[..., Any]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps of completions made of hostile tokens; number 3 of each is 100,000 tokens long."""
    from transformers import AutoTokenizer

    from castctl import embedded

    tokenizer = AutoTokenizer.from_pretrained(embedded.ensure().model)
    hostile = [*HOSTILE.values(), "x" * LONG]
    tokenizer.add_tokens(hostile)
    tokens = tokenizer.convert_tokens_to_ids(hostile)
    broken = [id for id in range(250) if "\ufffd" in tokenizer.decode([id])]
    assert broken
    words = tokenizer("12+34: 2+4=6\n1+3=4", add_special_tokens=False)["input_ids"]
    folder = tmp_path_factory.mktemp("page") / "<b>run&amp;"
    four = [[*tokens, *broken[:9], *words], words * 3, []]
    ids = [*four, (words * LONG)[:LONG], *[*four, words] * 24]
    write_step(folder / "step-00000", [*HOSTILE.values(), *map(str, range(45))], ids)
    write_step(folder / "step-00003", ["y" * LONG, "plain words"], ids)
    target = find_target(str(folder))
    write_run_page(folder / "report.html", target, collect_completions(target.steps, tokenizer))
    return folder / "report.html"


@pytest.fixture(scope="module")
def started() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--window-size=1300,900",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield browser
    browser.quit()


@pytest.fixture
def browser(started: Any, page: Path) -> Iterator[Any]:
    """The page opened anew; whatever happens to it, nothing is logged, run or fetched."""
    started.get("about:blank")
    started.get(page.as_uri())
    wait(started, "return document.querySelector('#detail h3')")
    yield started
    assert started.get_log("browser") == []
    assert started.execute_script("return window.broken") is None
    assert started.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert (
        started.execute_script("return document.querySelectorAll('img, main script').length") == 0
    )


def wait(browser: Any, script: str, *arguments: Any) -> Any:
    """What a script returns, once that is true."""
    for _ in range(200):
        if found := browser.execute_script(script, *arguments):
            return found
        time.sleep(0.05)
    raise AssertionError(f"never true: {script}")


def choose(browser: Any, id: str, value: str) -> None:
    browser.execute_script(
        "const field = document.getElementById(arguments[0]); field.value = arguments[1];"
        "field.dispatchEvent(new Event('input', { bubbles: true }));", id, value,
    )  # fmt: skip


def press(browser: Any, *keys: str) -> None:
    from selenium.webdriver.common.keys import Keys

    for key in keys:
        browser.switch_to.active_element.send_keys(getattr(Keys, key))


def heading(browser: Any, words: str) -> None:
    """Wait until the completion shown is the one that these words name."""
    wait(
        browser, "return document.querySelector('#detail h3')?.textContent === arguments[0]", words
    )


def text(browser: Any, selector: str) -> str:
    return browser.execute_script(
        "return document.querySelector(arguments[0]).textContent", selector
    )


def test_opens_with_the_first_completion_and_few_rows(browser: Any) -> None:
    assert text(browser, "h1") == "<b>run&amp;"
    heading(browser, "step-00000, 000000/0")
    assert text(browser, "#count") == "104 of 104 completions"
    assert 5 < browser.execute_script("return document.querySelectorAll('.row').length") < 40
    outer = browser.execute_script(
        "return document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    )
    assert outer, "the page is wider than the window"


def test_what_is_read_at_a_glance_has_three_digits(browser: Any) -> None:
    """The exact value of a token is told on hover; a fact of a completion is not seven digits."""
    facts = browser.execute_script(
        "return [...document.querySelectorAll('#detail .facts > div')].map((each) =>"
        " [each.firstChild.textContent, each.lastChild.textContent])"
    )
    told = {name: said for name, said in facts if name in ("Reward", "Base advantage")}
    assert told == {"Reward": "1", "Base advantage": "0.577"}


def test_hostile_tokens_are_shown_as_text(browser: Any) -> None:
    shown = text(browser, "#tokens")
    for words in (HOSTILE["script"], HOSTILE["image"], HOSTILE["template"], "\\u202e", "\\x1b[31m"):
        assert words in shown
    assert "\\xa1" in shown, "bytes that are no whole character stand as escapes"
    assert "(99,800 more characters)" in shown
    assert text(browser, "pre.problem") == HOSTILE["script"]
    isolated = browser.execute_script(
        "return [...document.querySelectorAll('.token')].every("
        "(each) => getComputedStyle(each).unicodeBidi === 'isolate')"
    )
    assert isolated


def test_filters_narrow_the_list(browser: Any) -> None:
    choose(browser, "filter-step", "3")
    assert text(browser, "#count") == "4 of 104 completions"
    choose(browser, "filter-verdict", "wrong")
    assert text(browser, "#count") == "2 of 104 completions"
    heading(browser, "step-00003, 000000/1")
    choose(browser, "filter-text", "PLAIN")
    assert text(browser, "#count") == "1 of 104 completions"
    heading(browser, "step-00003, 000001/1")
    choose(browser, "filter-text", "no such words")
    assert "No completion fits" in text(browser, "#detail")
    browser.execute_script("document.querySelector('#filters button[type=reset]').click()")
    wait(
        browser, "return document.querySelector('#count').textContent === '104 of 104 completions'"
    )
    choose(browser, "filter-kind", "mixed")
    browser.execute_script("document.querySelector('#filter-flips').click()")
    shown = int(text(browser, "#count").split()[0])
    assert 0 < shown < 104, "completions without a token have no flip"


def test_the_list_is_walked_by_keyboard(browser: Any) -> None:
    browser.execute_script("document.querySelector('#list').focus()")
    press(browser, "ARROW_DOWN", "ARROW_DOWN", "ARROW_UP")
    heading(browser, "step-00000, 000000/1")
    press(browser, "PAGE_DOWN")
    press(browser, "END")
    heading(browser, "step-00003, 000001/1")
    active = browser.execute_script(
        "const row = document.getElementById(document.activeElement.getAttribute("
        "'aria-activedescendant')); const box = row.getBoundingClientRect();"
        "const list = document.activeElement.getBoundingClientRect();"
        "return [row.ariaSelected, row.ariaPosInSet, row.ariaSetSize,"
        " box.top >= list.top && box.bottom <= list.bottom + 1]"
    )
    assert active == ["true", "104", "104", True]
    press(browser, "HOME")
    heading(browser, "step-00000, 000000/0")


def test_values_are_told_on_hover_and_on_focus(browser: Any) -> None:
    from selenium.webdriver import ActionChains

    browser.execute_script("location.hash = 'completion=1'")
    heading(browser, "step-00000, 000000/1")
    token = browser.find_element("css selector", ".token[data-at='1']")
    browser.execute_script(
        "arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", token
    )
    ActionChains(browser).move_to_element(token).perform()
    told = wait(browser, "return !tip.hidden && tip.textContent")
    index = browser.execute_script(
        "return JSON.parse(document.querySelector('#index').textContent)"
    )
    for quantity in index["quantities"]:
        assert quantity["label"] in told
    assert "flipped" in told
    ActionChains(browser).move_to_element(browser.find_element("css selector", "h3")).perform()
    wait(browser, "return tip.hidden")
    browser.execute_script("document.querySelector('.token').focus({preventScroll: true})")
    press(browser, "ARROW_RIGHT")
    assert wait(browser, "return !tip.hidden && tip.textContent") == told
    described = (
        "return document.getElementById(document.activeElement.getAttribute('aria-describedby')).id"
    )
    assert browser.execute_script(described) == "tip"
    other = browser.find_element("css selector", "pre.problem")
    ActionChains(browser).move_to_element(other).perform()
    assert not browser.execute_script("return tip.hidden"), "the pointer leaves it, not the focus"
    press(browser, "ESCAPE")
    assert browser.execute_script("return tip.hidden")


def test_values_on_the_page_are_those_of_the_file(browser: Any, page: Path) -> None:
    """Each value, read by the script, is the float32 that the shards have."""
    import numpy as np

    from castctl.shards.stage import StepFolder

    browser.execute_script("location.hash = 'completion=1'")
    heading(browser, "step-00000, 000000/1")
    row = StepFolder(page.parent / "step-00000").read("advantages", 0).table.to_pylist()[1]
    for at, expected in enumerate(row["advantages"][:20]):
        shown = browser.execute_script(
            "document.querySelectorAll('.token')[arguments[0]].focus({preventScroll: true});"
            "return [...tip.querySelectorAll('div')].find((row) => row.firstChild.textContent"
            " === 'advantage').lastChild.textContent",
            at,
        )
        assert np.float32(shown.replace("\N{MINUS SIGN}", "-")) == np.float32(expected)
        flipped = browser.execute_script(
            "return document.activeElement.classList.contains('flipped')"
        )
        assert flipped == row["flipped"][at]


def test_tokens_are_coloured_by_what_is_chosen(browser: Any) -> None:
    signs = "return [...document.querySelectorAll('.token')].map((each) => each.className)"
    first = browser.execute_script(signs)
    assert any("above" in each for each in first) and any("below" in each for each in first)
    browser.execute_script(
        "quantity.value = 'entropy'; quantity.dispatchEvent(new Event('change'))"
    )
    assert browser.execute_script(signs) != first
    painted = browser.execute_script(
        "return new Set([...document.querySelectorAll('.token')].map("
        "(each) => getComputedStyle(each).backgroundColor)).size"
    )
    assert painted > 5
    assert text(browser, "#legend").startswith("0")


def test_a_long_completion_is_drawn_in_slices(browser: Any) -> None:
    browser.execute_script("location.hash = 'completion=3'")
    heading(browser, "step-00000, 000001/1")
    wait(browser, "return document.querySelector('#more button')")
    count = "return document.querySelectorAll('.token').length"
    assert browser.execute_script(count) == 2000
    assert "98,000 tokens" in text(browser, "#more")
    browser.execute_script("document.querySelector('#more button').click()")
    assert browser.execute_script(count) == 4000
    assert browser.execute_script("return document.activeElement.textContent").endswith(
        "96,000 tokens"
    )


def test_links_lead_to_a_completion_and_to_its_group(browser: Any, page: Path) -> None:
    choose(browser, "filter-verdict", "correct")
    browser.execute_script("location.hash = 'completion=5'")
    heading(browser, "step-00000, 000002/1")
    assert text(browser, "#count") == "104 of 104 completions", "the filter that hid it is cleared"
    browser.execute_script("document.querySelector('.sibling:not([aria-current])').click()")
    heading(browser, "step-00000, 000002/0")
    assert browser.current_url.endswith("#completion=4")
    browser.get("about:blank")
    browser.get(page.as_uri() + "#completion=102")
    heading(browser, "step-00003, 000001/0")


SHOWN = (
    "return [document.querySelector('#detail h3').textContent, count.textContent,"
    " ...['step', 'verdict', 'kind', 'text'].map((name) => document.getElementById("
    "`filter-${name}`).value), document.getElementById('filter-flips').checked, quantity.value,"
    " legend.textContent, document.querySelector('#legend input').value,"
    " [...document.querySelectorAll('.token')].map((each) => each.style.cssText).join()]"
)
"""What a reader has chosen, and what they see by it."""


def test_the_address_keeps_filters_and_colour(browser: Any, page: Path) -> None:
    """Who opens the address sees the same: completion, filters, colour and its scale."""
    choose(browser, "filter-step", "3")
    choose(browser, "filter-verdict", "wrong")
    choose(browser, "filter-text", "plain")
    browser.execute_script("document.querySelector('#filter-flips').click()")
    heading(browser, "step-00003, 000001/1")
    browser.execute_script("document.querySelector('.row').click()")
    browser.execute_script(
        "quantity.value = 'gap'; quantity.dispatchEvent(new Event('change'));"
        "const scale = document.querySelector('#legend input'); scale.value = 8;"
        "scale.dispatchEvent(new Event('change'))"
    )
    address, shown = browser.current_url, browser.execute_script(SHOWN)
    assert shown[1:9] == ["1 of 104 completions", "3", "wrong", "*", "plain", True, "gap",
                          shown[8]]  # fmt: skip
    browser.get("about:blank")
    browser.get(address)
    wait(browser, "return document.querySelector('#detail h3')")
    assert browser.execute_script(SHOWN) == shown
    assert browser.current_url == address


def test_an_address_of_filters_alone_restores_them(browser: Any, page: Path) -> None:
    choose(browser, "filter-verdict", "wrong")
    address = browser.current_url
    assert address.endswith("#verdict=wrong")
    browser.get("about:blank")
    browser.get(address)
    wait(browser, "return document.querySelector('#detail h3')")
    assert text(browser, "#count") == "52 of 104 completions"
    browser.execute_script("document.querySelector('#filters button[type=reset]').click()")
    wait(browser, "return location.hash === ''")
    assert text(browser, "#count") == "104 of 104 completions"


def test_an_odd_address_shows_everything(browser: Any) -> None:
    for odd in (
        "step=77&verdict=no",
        "completion=9999",
        "completion=-1",
        "full=-3&color=no",
        "main",
    ):
        browser.execute_script("location.hash = arguments[0]", odd)
        wait(browser, "return location.hash === `#${arguments[0]}`", odd)
        heading(browser, "step-00000, 000000/0")
        assert text(browser, "#count") == "104 of 104 completions"
        assert browser.execute_script("return quantity.value") == "advantage"


@pytest.mark.parametrize("width", [360, 1300, 2400])
def test_completions_keep_the_margins_of_the_page(browser: Any, width: int) -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        edges = browser.execute_script(
            "const box = (it) => it.getBoundingClientRect(); const page = box(main);"
            "const style = getComputedStyle(main);"
            "return [...document.querySelectorAll('#completions, .browser, .list, .detail,"
            " #filters')].every((it) => box(it).left >= page.left + parseFloat(style.paddingLeft)"
            " - 0.5 && box(it).right <= page.right - parseFloat(style.paddingRight) + 0.5)"
        )
        assert edges, "completions reach beyond the column of the page"
        assert browser.execute_script(
            "return document.documentElement.scrollWidth <= document.documentElement.clientWidth"
        )
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_positive_is_blue_and_negative_is_not(browser: Any) -> None:
    """The colours of the terminal, on the page."""
    from castctl.report.colors import FULL, NEGATIVE, POSITIVE, rgb

    for look, color in (("above", POSITIVE), ("below", NEGATIVE)):
        found = browser.execute_script(
            "return getComputedStyle([...document.querySelectorAll('.bar i')].at("
            f"{-1 if look == 'above' else 0})).backgroundColor"
        )
        parts = [float(each) for each in re.findall(r"[\d.]+", found)]
        assert [round(255 * each) for each in parts[:3]] == list(rgb(color))
        assert parts[3] == pytest.approx(FULL, abs=0.01)


def test_the_focus_stays_where_it_was(browser: Any) -> None:
    browser.execute_script(
        "const other = document.querySelector('.sibling:not([aria-current])');"
        "other.focus(); other.click()"
    )
    heading(browser, "step-00000, 000000/1")
    assert browser.execute_script("return document.activeElement.ariaCurrent") == "true"
    browser.execute_script(
        "const scale = document.querySelector('#legend input'); scale.focus(); scale.value = 8;"
        "scale.dispatchEvent(new Event('change'))"
    )
    assert browser.execute_script("return document.activeElement.value") == "8"
    assert "8" in text(browser, "#legend")


def test_the_next_flipped_token_follows_the_focused_one(browser: Any) -> None:
    browser.execute_script("location.hash = 'completion=3'")
    heading(browser, "step-00000, 000001/1")
    flipped = browser.execute_script(
        "return [...document.querySelectorAll('.token.flipped')].map((t) => Number(t.dataset.at))"
    )
    step = (
        "[...document.querySelectorAll('.toolbar button')].at(-1).click();"
        "return Number(document.activeElement.dataset.at)"
    )
    assert [browser.execute_script(step) for _ in range(2)] == flipped[:2]
    browser.execute_script(
        "document.querySelector(`.token[data-at='${arguments[0]}']`).focus()", flipped[5]
    )
    assert browser.execute_script(step) == flipped[6]


def test_a_block_that_cannot_be_unpacked_is_said_and_tried_again(browser: Any) -> None:
    kept = browser.execute_script(
        "const block = [...document.querySelectorAll('script[id^=block-]')].at(-1);"
        "const kept = block.textContent; block.textContent = kept.slice(0, 400);"
        "location.hash = 'completion=103'; return kept"
    )
    wait(browser, "return detail.textContent.startsWith('This completion cannot be shown')")
    browser.execute_script(
        "[...document.querySelectorAll('script[id^=block-]')].at(-1).textContent = arguments[0];"
        "location.hash = 'completion=102'",
        kept,
    )
    heading(browser, "step-00003, 000001/0")


def test_light_dark_and_print(browser: Any) -> None:
    paper = "return getComputedStyle(document.body).backgroundColor"
    schemes = {}
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        schemes[scheme] = browser.execute_script(paper)
    assert schemes["light"] != schemes["dark"]
    browser.execute_script("document.querySelector('#theme').click()")
    assert browser.execute_script(paper) == schemes["light"]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert browser.execute_script(paper) == schemes["light"]
    assert not browser.find_element("css selector", "#list").is_displayed()
    assert browser.find_element("css selector", "#tokens").is_displayed()
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
    browser.execute_script("localStorage.clear()")


def test_names_and_roles_are_there(browser: Any) -> None:
    """What a screen reader needs: one h1, no level left out, a name for every control."""
    levels = browser.execute_script(
        "return [...document.querySelectorAll('h1, h2, h3')].map((each) => Number(each.tagName[1]))"
    )
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    nodes = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    named = {
        "button",
        "combobox",
        "searchbox",
        "listbox",
        "option",
        "checkbox",
        "link",
        "spinbutton",
        "image",
    }
    for node in nodes:
        role = node.get("role", {}).get("value")
        if role in named and not node["ignored"]:
            assert node.get("name", {}).get("value"), node
    roles = {node.get("role", {}).get("value") for node in nodes}
    assert {"banner", "main", "navigation", "search", "contentinfo", "listbox", "article"} <= roles
