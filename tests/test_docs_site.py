"""The documentation as a site: its navigation, the links of its pages, and the pages of the commands."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sailkit.cli import VERBS, build_app
from sailkit.help import EXAMPLES
from test_reporting_browser import CHROMIUM, DRIVER, chromium  # noqa: F401

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path.name for path in DOCS.glob("*.md"))
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


@pytest.fixture(scope="module")
def site() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_site", DOCS / "build_site.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def named(navigation: Any) -> Iterator[str]:
    """The pages of a navigation, in order."""
    if isinstance(navigation, str):
        yield navigation
    else:
        for entry in navigation.values() if isinstance(navigation, dict) else navigation:
            yield from named(entry)


def read_navigation(config: Path) -> list[str]:
    return [*named(tomllib.loads(config.read_text("utf-8"))["project"]["nav"])]


def anchors(text: str) -> set[str]:
    """The anchors of the headings of a page, as GitHub and Zensical write them."""
    without_code = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", without_code, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def broken_links(pages: dict[str, str]) -> list[str]:
    """Links of pages, by path below docs, to no page, file or heading."""
    broken = []
    for page, text in pages.items():
        for link in LINK.findall(re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)):
            if re.match(r"https?:", link):
                continue
            path, _, anchor = link.partition("#")
            target = (DOCS / page).parent.joinpath(path).resolve() if path else DOCS.resolve() / page
            name = str(target.relative_to(DOCS.resolve())) if target.is_relative_to(DOCS.resolve()) else ""
            if not (name in pages or target.is_file()) or (anchor and anchor not in anchors(pages[name])):
                broken.append(f"{page}: {link}")
    return broken


def test_the_navigation_names_every_page_once():
    assert sorted(read_navigation(DOCS / "zensical.toml")) == sorted([*PAGES, "commands/index.md"])


def test_every_relative_link_leads_to_a_page_a_file_and_a_heading(site):
    pages = {name: (DOCS / name).read_text("utf-8") for name in PAGES} | site.command_pages()
    assert broken_links(pages) == []
    text = "[a](ask.md#no-heading) [b](nowhere.md) [c](../README.md) [d](#no-heading) [e](ask.md) ![f](none.svg)"
    found = [link.removeprefix("new.md: ") for link in broken_links({**pages, "new.md": text})]
    assert found == ["ask.md#no-heading", "nowhere.md", "#no-heading", "none.svg"]


def test_the_site_has_a_page_for_every_command(site, tmp_path):
    site.write_source(tmp_path)
    pages = [f"commands/{verb}.md" for verb in VERBS]
    assert {*pages} <= {*read_navigation(tmp_path / "zensical.toml")}
    assert all((tmp_path / "source" / page).is_file() for page in read_navigation(tmp_path / "zensical.toml"))
    assert "](../src" not in (tmp_path / "source" / "architecture.md").read_text("utf-8")


@pytest.mark.parametrize("verb", VERBS)
def test_the_page_of_a_command_has_its_flags_and_its_example(verb, site):
    text = site.command_page(verb)
    arguments = build_app()[verb].assemble_argument_collection()
    shown = [each.names[0] for each in arguments if each.show and each.names[0].startswith("--")]
    assert [flag for flag in shown if flag not in text] == []
    assert "--empty-" not in text
    assert site.first_line(verb) in text
    assert EXAMPLES.get(verb, "") in text


def test_what_a_page_would_load_from_another_host_is_noticed(site, tmp_path):
    (tmp_path / "a.html").write_text(
        '<script src="https://unpkg.com/mermaid"></script><link rel="stylesheet" href="//fonts.example/css">'
        '<a href="https://arxiv.org/abs/2305.15225">paper</a><img src="report.png"><link rel="canonical" href="https://x">'
    )
    (tmp_path / "a.css").write_text("@import url('https://fonts.example/a'); b{background:url(data:image/png;base64,)}")
    assert len(site.requests_elsewhere(tmp_path)) == 3


@pytest.mark.long
@pytest.mark.skipif(not (CHROMIUM.exists() and DRIVER.exists()), reason="needs chromium and chromedriver")
def test_the_site_and_its_search_work_as_files_and_load_nothing_from_elsewhere(site, tmp_path, chromium):  # noqa: F811
    pytest.importorskip("zensical", reason="needs the extra docs; make docs installs it")
    wait = pytest.importorskip("selenium.webdriver.support.wait").WebDriverWait
    failed = pytest.importorskip("selenium.common.exceptions").WebDriverException
    select_all = pytest.importorskip("selenium.webdriver.common.keys").Keys.CONTROL, "a"
    site.main(tmp_path / "docs")
    chromium.get((tmp_path / "docs" / "site" / "commands" / "distill.html").as_uri())
    chromium.execute_script("document.querySelector('[data-md-toggle=search]').click()")
    focused = "return document.activeElement.shadowRoot?.activeElement"  # the search is in a shadow tree

    def shows_the_page(driver) -> bool:
        """Whether the search shows a sentence of another page; else it is asked, also once more."""
        if "KL is forward" in driver.find_element("tag name", "body").text:
            return True
        # A field that still fades in refuses keys, and a page that still loads forgets them.
        driver.execute_script(focused).send_keys(*select_all)
        driver.execute_script(focused).send_keys("tail bucket")
        return False

    wait(chromium, 120, poll_frequency=5, ignored_exceptions=[failed, AttributeError]).until(shows_the_page)
    requested = "return performance.getEntriesByType('resource').map((each) => each.name)"  # without files
    assert chromium.execute_script(requested) == []
    assert [entry for entry in chromium.get_log("browser") if entry["level"] == "SEVERE"] == []
    chromium.execute_script("document.body.append(Object.assign(new Image(), {src: 'http://127.0.0.1:9/a.png'}))")
    wait(chromium, 20).until(lambda driver: driver.execute_script(requested) == ["http://127.0.0.1:9/a.png"])
