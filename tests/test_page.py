"""The page in a real browser: it asks for nothing, complains of nothing, and works by keyboard, on a phone, in the dark and on paper."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from fakes import ColourEncoder, colour_dataset, custom
from paired_runs import crops, run_of
from test_compare_items import labelled

from clipbench.embed.embedder import Embedder, Resources
from clipbench.experiments import result_of
from clipbench.experiments.matching import NATURAL
from clipbench.judge.compare import compare_runs
from clipbench.judge.tolerances import read_rules
from clipbench.report.page import to_html
from clipbench.report.ranking import rankings_by_experiment
from clipbench.report.story import Compared
from clipbench.report.summary import write_report
from clipbench.storage import Timing

NAMES = ("chromium", "chromium-browser", "google-chrome")
EVIL = "<img src=https://evil.example/x onerror=alert(1)>\"'`{{7*7}} </script><script>alert(2)</script>\u202e\x1b[31m"
PAPER = {"width": 703, "height": 1000}
"""A4 less its margins, in CSS pixels."""


@pytest.fixture(scope="session")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"no browser here: {', '.join(NAMES)}")
    with playwright.sync_playwright() as running:
        found = running.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="session")
def page_file(tmp_path_factory):
    """A page with everything on it: a failed gate, two models, pictures, matrices, confusions, charts, and hostile names."""
    folder = tmp_path_factory.mktemp("page")
    dataset, encoder = colour_dataset(folder), custom(ColourEncoder())
    natural = result_of(NATURAL, encoder, dataset, NATURAL.measure(Embedder(encoder, Resources()), dataset))
    named = replace(natural, model=replace(natural.model, name="ViT-B/32"))
    values = np.array(natural.matrices["similarity"].values)
    turned = replace(natural.matrices["similarity"], values=values[::-1].copy())
    other = replace(named, matrices={"similarity": turned})
    (base,), (head,) = labelled(lost=60)
    (before,), (after,) = crops(lost=200, ids=[EVIL, *(f"i{k}" for k in range(4999))], experiment="mine")
    old, new = run_of(named, base, before, time="2026-01-01"), run_of(other, head, after, natural, time="2026-01-02")
    compared = Compared(old, compare_runs(old, new, read_rules()), f"base {EVIL}")
    timings = [Timing("test_images_per_second", "", tuple(np.linspace(0.01, 0.02, 40)))]
    ranked = rankings_by_experiment(new)
    assert write_report(new, ranked, folder / "out", [dataset], [EVIL], compared, timings, [old]) == ([], [])
    return folder / "out" / "summary.html"


@pytest.fixture
def opened(browser, page_file):
    """Open the page; return it, with what the console said and what was asked for beside the file."""
    contexts = []

    def open_page(width=1280, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page, said, asked = context.new_page(), [], []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(page_file.as_uri())
        return page, said, [url for url in asked if url != page_file.as_uri() and not url.startswith("data:")]

    yield open_page
    for context in contexts:
        context.close()


def test_it_opens_from_disk_without_a_complaint_or_a_request_and_shows_pictures(opened):
    page, said, asked = opened()
    assert (said, asked) == ([], [])
    widths = page.eval_on_selector_all("img", "all => all.map(one => one.naturalWidth)")
    assert widths
    assert min(widths) > 0


def test_hostile_names_are_text(opened, page_file):
    page, _, _ = opened()
    assert page.eval_on_selector_all("img", "all => all.every(one => one.src.startsWith('data:image/jpeg'))")
    assert page.locator("script").count() == 1
    text = page.inner_text("body")
    assert "<img src=https://evil.example/x onerror=alert(1)>" in text
    assert "{{7*7}}" in text
    assert "\x1b" not in page_file.read_text()
    assert "\u202e" not in page_file.read_text()


def test_tables_sort_by_a_button_that_says_so(opened):
    page, _, _ = opened()
    table = page.locator("table.data", has=page.locator("th", has_text="held to")).first
    head = table.locator("th", has_text="metric")
    for way in ("ascending", "descending"):
        head.locator("button").focus()
        page.keyboard.press("Enter")
        assert head.get_attribute("aria-sort") == way
        column = [name.strip() for name in table.locator("tbody tr td:nth-child(4)").all_inner_texts()]
        assert column == sorted(column, key=str.casefold, reverse=way == "descending")


def test_numbers_sort_as_numbers(browser):
    from clipbench.report.document import Table

    page = browser.new_page()
    page.set_content(to_html([Table(("n",), [("9",), ("1,000",), ("20 %",), ("-",)])], "t"))
    page.locator("th button").click()
    assert page.locator("tbody td").all_inner_texts() == ["-", "9", "20 %", "1,000"]
    page.close()


def test_a_cell_of_a_matrix_in_focus_names_its_pair_and_arrows_move_on(opened):
    page, _, _ = opened()
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    figure = page.locator("figure.grid", has_text="texts find their image").first
    figure.locator("td[tabindex='0']").focus()
    said = figure.locator(".said")
    assert said.inner_text().startswith("text of red with image red")
    page.keyboard.press("ArrowRight")
    assert said.inner_text().startswith("text of red with image ")
    assert not said.inner_text().startswith("text of red with image red")
    assert figure.locator("td[tabindex='0']").count() == 1


@pytest.mark.parametrize("width", [390, 820, 1280])
def test_no_page_scrolls_sideways(opened, width):
    page, _, _ = opened(width)
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_there_is_no_serious_violation_of_accessibility(opened, scheme, width):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    page, _, _ = opened(width, scheme)
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    # The page's own policy forbids scripts of others, axe's too: it is left out here, and tested above.
    found = axe.Axe().run(page).response["violations"]
    serious = [(v["id"], v["nodes"][0]["html"][:200]) for v in found if v["impact"] in ("serious", "critical")]
    assert serious == []


def test_it_prints_whole(opened):
    page, _, _ = opened()
    page.set_viewport_size(PAPER)
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    wide = page.eval_on_selector_all(
        "table", "all => all.filter(t => t.scrollWidth > innerWidth).map(t => t.outerHTML.slice(0, 200))"
    )
    assert wide == []
    assert page.evaluate("document.documentElement.scrollWidth") <= PAPER["width"]
    assert page.pdf(format="A4").startswith(b"%PDF")
