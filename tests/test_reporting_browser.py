"""The report in a real browser: it filters, opens items, follows the system's theme, and runs nothing of others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from labeling.test_report import folder_of, found
from sailkit.evaluation import recordings
from sailkit.reporting import report
from test_reporting import HOSTILE, constant, good, hostile_sets, prediction, run_folder, shown

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM.exists() and DRIVER.exists()), reason="needs chromium and chromedriver")
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --window-size=1200,900"
)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in [*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    yield driver
    driver.quit()


class Reader:
    """Somebody with the report open."""

    def __init__(self, driver, path: Path) -> None:
        self.driver = driver
        driver.get(path.resolve().as_uri())

    def run(self, script: str, *arguments):
        return self.driver.execute_script(script, *arguments)

    def eventually(self, script: str, holds):
        """What the script returns once it holds: a new width reaches scroll timelines with a later frame."""
        waiting = pytest.importorskip("selenium.webdriver.support.wait").WebDriverWait(self.driver, 10)
        return waiting.until(lambda _: holds(shown := self.run(script)) and shown, message=script)

    def find(self, selector: str):
        return self.driver.find_element("css selector", selector)

    @property
    def shown(self) -> str:
        return self.find("#shown").text

    @property
    def counts(self) -> list[str]:
        return self.run("return [...document.querySelectorAll('#kinds span')].map((e) => e.textContent)")

    def choose(self, kind: str) -> str:
        self.run("document.querySelector(`input[value=${arguments[0]}]`).click()", kind)
        return self.shown

    def pick(self, which: str, value: int) -> str:
        self.run("const s = document.getElementById(arguments[0]); s.value = arguments[1];"
                 "s.dispatchEvent(new Event('change'))", which, value)  # fmt: skip
        return self.shown

    def search(self, words: str) -> str:
        self.driver.execute_async_script(
            "const s = document.getElementById('search'); s.value = arguments[0]; s.dispatchEvent(new Event('input'));"
            "setTimeout(arguments[1], 200)", words)  # fmt: skip
        return self.shown

    def is_quiet(self) -> bool:
        return self.driver.get_log("browser") == []


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Path:
    """120 items; the first set always says SUPPORTS, the second is right but for three silent answers."""
    folder = tmp_path_factory.mktemp("pair")
    turns = ({"prompt": "Think first.", "raw_output": "Thinking.", "completion_tokens": 1},)
    rows = [
        prediction(i, label=None, outcome="unreadable", raw_output=" Hard to say.\n") if i < 3
        else prediction(i, label=("SUPPORTS", "REFUTES")[i % 2], turns=turns, raw_output=f"answer {i}")
        for i in range(120)
    ]  # fmt: skip
    sets = run_folder(folder / "flat", constant(120)), run_folder(folder / "sharp", rows)
    return report(*sets, out=folder).html


def test_filters_pages_and_search(chromium, pair):
    reader = Reader(chromium, pair)
    assert reader.counts == ["All 120", "Wrong 60", "Unreadable or refused 3", "Answers differ 62"]
    assert reader.shown == "1–50 of 120 items"
    reader.find("#next").click()
    reader.find("#next").click()
    assert reader.shown == "101–120 of 120 items"
    assert not reader.find("#next").is_enabled()
    assert reader.choose("silent") == "1–3 of 3 items"
    assert reader.choose("differ") == "1–50 of 62 items"
    assert reader.pick("label", 0) == "1–2 of 2 items"
    assert reader.counts == ["All 60", "Wrong 0", "Unreadable or refused 2", "Answers differ 2"]
    reader.pick("label", -1)
    assert reader.choose("wrong") == "1–50 of 60 items"
    assert reader.pick("set", 1) == "no item fits"
    reader.pick("set", -1)
    reader.choose("all")
    assert reader.search("HARD to say") == "1–3 of 3 items"
    assert reader.search("item-11") == "1–11 of 11 items"
    assert reader.search("") == "1–50 of 120 items"
    assert reader.is_quiet()


def test_an_item_opens_by_keyboard_down_to_prompt_turns_and_output(chromium, pair):
    from selenium.webdriver.common.keys import Keys

    reader = Reader(chromium, pair)
    button = reader.driver.find_elements("css selector", ".item")[4]
    button.send_keys(Keys.ENTER)
    assert button.get_attribute("aria-expanded") == "true"
    blocks = reader.run("return [...document.querySelectorAll('#more-4 .block')].map("
                        "(b) => [b.querySelector('h5').textContent, b.querySelector('pre').textContent])")  # fmt: skip
    prompt = prediction(4).prompt
    assert blocks == [
        ["Prompt", prompt], ["Raw output", "Correct."],
        ["Prompt, step 1 of 2", "Think first."], ["Raw output, step 1 of 2", "Thinking."],
        ["Prompt, step 2 of 2", prompt], ["Raw output, step 2 of 2", "answer 4"],
    ]  # fmt: skip
    button.send_keys(Keys.SPACE)
    assert button.get_attribute("aria-expanded") == "false"
    assert not reader.driver.find_elements("css selector", "#more-4")
    assert reader.is_quiet()


def test_hostile_texts_are_shown_and_not_run(chromium, tmp_path):
    sets = hostile_sets(tmp_path, HOSTILE)
    reader = Reader(chromium, report(*sets, out=tmp_path, task="sample-claims").html)
    title = reader.driver.title
    reader.run("for (const button of document.querySelectorAll('.item')) button.click()")
    first, second = (recordings.load_predictions(path, "sample-claims").predictions for path in sets)
    for i, (p, q) in enumerate(zip(first, second, strict=True)):
        # Compared in the page: a lone surrogate does not survive the way here.
        title_is = (
            "return document.querySelectorAll('.item .text')[arguments[0]].textContent === JSON.parse(arguments[1])"
        )
        assert reader.run(title_is, i, json.dumps(*shown([p.text])))
        texts = "[...document.querySelectorAll(`#more-${arguments[0]} pre`)].map((e) => e.textContent)"
        same = f"return JSON.stringify({texts}) === JSON.stringify(JSON.parse(arguments[1]))"
        assert reader.run(same, i, json.dumps(shown([p.raw_output, q.raw_output, p.prompt])))
    assert reader.run("return document.querySelectorAll('img, main script').length") == 0
    assert reader.driver.title == title
    assert reader.is_quiet()


def test_it_follows_the_theme_and_fits_a_phone(chromium, pair):
    reader = Reader(chromium, pair)
    seen = {}
    for theme in ("light", "dark"):
        media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
        reader.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        seen[theme] = reader.run("return getComputedStyle(document.body).backgroundColor")
    assert seen["light"] != seen["dark"]
    phone = {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    reader.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    reader.run("document.querySelector('.item').click()")
    assert reader.run("return document.documentElement.scrollWidth") <= 400
    reader.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    reader.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_a_table_that_scrolls_says_so_and_others_do_not(chromium, tmp_path):
    rows = [prediction(i, label=None, outcome="unreadable", raw_output="Hm.") for i in range(40)]
    sets = [run_folder(tmp_path / f"a-rather-long-name-{i}", good() if i else rows) for i in range(4)]
    reader = Reader(chromium, report(*sets, out=tmp_path).html)
    shown = (
        "return [...document.querySelectorAll('.scroll')].map((e) => [e.scrollWidth > e.clientWidth,"
        " getComputedStyle(e, '::before').visibility === 'visible'])"
    )
    for width in (390, 1200):
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
        reader.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        tables = reader.eventually(shown, lambda found: all(scrolls == says for scrolls, says in found))
        assert {says for _, says in tables} == {width == 390}
    reader.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_ten_thousand_items_open_and_filter(chromium, tmp_path):
    sets = run_folder(tmp_path / "a", good(10_000)), run_folder(tmp_path / "b", constant(10_000))
    reader = Reader(chromium, report(*sets, out=tmp_path).html)
    assert reader.shown == "1–50 of 10,000 items"
    assert reader.choose("differ") == "1–50 of 5,000 items"
    assert reader.search("claim number 9999") == "1–1 of 1 item"
    assert reader.is_quiet()


def test_an_audit_is_shown_and_not_run_and_fits_a_phone(chromium, tmp_path):
    areas = {f"entailment:models/{text}{'long' * 9}{i}": 0.7 - i / 50 for i, text in enumerate(HOSTILE)}
    told = report(folder_of(tmp_path / "a", found(areas, texts=(HOSTILE[0], HOSTILE[1]))), out=tmp_path / "audit.html")
    reader = Reader(chromium, told.html)
    assert reader.find(".case .claim").text == HOSTILE[0]
    assert reader.run("return document.querySelectorAll('img, script').length") == 0
    assert reader.driver.title == "Labelers against people on climate-fever"
    for width in (1200, 400):
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
        reader.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        assert reader.run("return document.documentElement.scrollWidth") <= width
    reader.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert reader.is_quiet()
