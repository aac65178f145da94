"""report.html in a browser: every chart is drawn, the page works and is readable anywhere, and asks nobody anything."""

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from tests.browser.chromium import DESKTOP, PHONE, Opened, artifacts, opened
from tests.unit.reporting.example_full_run import NUM_STEPS, write_full_example
from tests.unit.reporting.example_run import write_example_run
from training.reporting.report.comparison_page import write_comparison
from training.reporting.report.page import write_report

_DRAWN_MARKS = (
    ".scatterlayer .js-line, .scatterlayer .point, .scatterlayer .js-fill, .heatmaplayer image, .barlayer path"
)
"""What plotly draws of data: lines, points, areas, heat maps, bars."""


@pytest.fixture(params=["real", "full"])
def report(request: pytest.FixtureRequest) -> Path:
    """The page of the real run, and of the run with all records."""
    run_directory: Path = request.getfixturevalue(f"{request.param}_run")
    return run_directory / "report.html"


@pytest.fixture
def page(browser: Browser, full_run: Path) -> Iterator[Page]:
    with opened(browser, (full_run / "report.html").as_uri()) as shown:
        shown.wait_until_drawn()
        yield shown.page
        assert shown.said == []


def charts(page: Page) -> dict[str, int]:
    """Chart -> number of lines, points, bars and images that it has been drawn with."""
    script = """marks => Object.fromEntries([...document.querySelectorAll('.chart')].map(chart => [chart.id.slice(6),
        [...chart.querySelectorAll(marks)].filter(m => m.tagName !== 'path' || m.getAttribute('d')?.length > 5).length
    ]))"""
    return page.evaluate(script, _DRAWN_MARKS)


def x_range(page: Page, chart: str) -> list[float]:
    return page.evaluate("id => document.getElementById(id)._fullLayout.xaxis.range", f"chart-{chart}")


def shown_texts(page: Page, selector: str) -> list[str]:
    return [element.inner_text() for element in page.locator(selector).all() if element.is_visible()]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_every_chart_is_drawn_without_a_word_in_the_console_or_a_question_to_anybody(
    browser: Browser, report: Path, size: tuple[int, int], dark: bool
) -> None:
    address = report.as_uri()
    with opened(browser, address, size=size, dark=dark) as shown:
        shown.wait_until_drawn()
        drawn = charts(shown.page)
        assert len(drawn) >= 8
        assert [name for name, number in drawn.items() if number == 0] == []
        assert shown.page.evaluate("document.documentElement.scrollWidth") <= size[0]
        _keep(shown, report, size, dark)
        shown.page.wait_for_timeout(200)
        assert shown.said == []
        assert shown.asked == [address]


def _keep(shown: Opened, report: Path, size: tuple[int, int], dark: bool) -> None:
    """Keep a screenshot of the whole page."""
    is_made = report.parent.name.startswith("mixture-of-experts")
    name = f"report-{'all-records' if is_made else 'smoke'}-{size[0]}-{'dark' if dark else 'light'}.png"
    shown.page.screenshot(path=artifacts() / name, full_page=True)


def test_a_stage_is_zoomed_to_and_its_rows_stay(page: Page) -> None:
    everything = x_range(page, "loss")
    page.get_by_role("button", name="anneal").click()
    assert x_range(page, "loss") == [60.5, 90.5]
    assert page.get_by_role("button", name="anneal").get_attribute("aria-pressed") == "true"
    page.wait_for_selector("body[data-drawn='2']", state="attached")
    for chart in ("tokens_per_second", "grad_norm", "bits_per_byte", "memory", "layers"):
        assert x_range(page, chart) == [60.5, 90.5], chart
    assert [row.split("\t")[0] for row in shown_texts(page, "#stages tr[data-of-stage]")] == ["anneal"]
    assert [text.split(" 2")[0] for text in shown_texts(page, "#incidents tbody td:nth-child(4)")] == ["loss_spike"]
    assert {text.splitlines()[0].split(" 1.")[0].split(" 2.")[0] for text in shown_texts(page, "#samples .card")} == {
        "after pretrain",
        "after anneal",
    }
    # The y axis fits what is left: pretrain's losses of up to 8 are not in it.
    low, high = page.evaluate("document.getElementById('chart-loss')._fullLayout.yaxis.range")
    assert 1.5 < low < high < 5
    page.get_by_role("button", name="all stages").click()
    page.wait_for_selector("body[data-drawn='3']", state="attached")
    assert x_range(page, "loss") == everything
    assert len(shown_texts(page, "#stages tr[data-of-stage]")) == 3


def test_the_real_run_switches_between_its_stages(browser: Browser, real_run: Path) -> None:
    with opened(browser, (real_run / "report.html").as_uri()) as shown:
        shown.wait_until_drawn()
        for number, (stage, steps) in enumerate((("pretrain", [0.5, 9.5]), ("anneal", [9.5, 15.5])), start=2):
            shown.page.get_by_role("button", name=stage).click()
            shown.wait_for_drawing(number)
            assert x_range(shown.page, "loss") == steps
            assert x_range(shown.page, "mfu") == steps
        assert shown.said == []


def test_what_is_chosen_stands_in_the_address(browser: Browser, page: Page) -> None:
    page.get_by_role("button", name="long_context").click()
    page.locator("#filter-words").fill("node-2")
    page.locator("#choice-layers").select_option("weight norm")
    with opened(browser, page.url) as again:
        again.wait_until_drawn()
        assert x_range(again.page, "loss") == [90.5, 110.5]
        assert shown_texts(again.page, "#incidents tbody td:nth-child(4)") == ["slow_rank"]
        assert again.page.locator("#choice-layers").input_value() == "weight norm"
        assert again.said == []


def test_incidents_are_filtered_by_kind_stage_attempt_and_words(page: Page) -> None:
    def found() -> list[str]:
        return shown_texts(page, "#incidents tbody td:nth-child(4)")

    assert found() == ["restart", "slow_rank", "loss_spike", "restart"]  # the newest first
    page.locator("#filter-what").select_option("restart")
    assert found() == ["restart", "restart"]
    assert page.locator("#incidents-shown").inner_text() == "2 of 4"
    page.locator("#filter-attempt").select_option("3")
    assert found() == ["restart"]
    page.locator("#filter-what").select_option("")
    page.locator("#filter-attempt").select_option("")
    page.locator("#filter-words").fill("SIGMAS loss")
    assert found() == ["loss_spike"]
    page.locator("#filter-words").fill("")
    page.locator("#filter-stage").select_option("long_context")
    assert found() == ["restart", "slow_rank"]
    assert x_range(page, "loss") == [90.5, 110.5]
    page.locator("#filter-stage").select_option("")
    assert page.locator("#incidents-shown").inner_text() == "4"


def test_charts_with_a_choice_show_what_is_chosen(page: Page) -> None:
    def visible(chart: str) -> list[int]:
        script = "id => document.getElementById(id)._fullData.map((t, i) => t.visible === true ? i : -1)"
        return [place for place in page.evaluate(script, f"chart-{chart}") if place >= 0]

    assert visible("layers") == [0]
    page.locator("#choice-layers").select_option("weight norm")
    assert visible("layers") == [2]
    assert len(visible("scores")) == 2
    page.locator("#choice-scores").select_option("cissp")
    assert visible("scores") == [1]
    page.locator("#choice-experts").select_option("step 10 (pretrain)")
    assert visible("experts") != [0]


def test_links_lead_to_sections_and_commands_can_be_copied(page: Page) -> None:
    page.get_by_role("button", name="anneal").click()
    page.locator('a[href="#incidents"]').first.click()
    page.wait_for_timeout(100)
    assert 0 <= page.evaluate("document.getElementById('incidents').getBoundingClientRect().top") < 200
    assert page.url.endswith("#stage=anneal")
    page.locator('button[data-copies="resume-command"]').click()
    page.get_by_role("button", name="copied").wait_for()
    command = page.evaluate("navigator.clipboard.readText()")
    assert command.startswith("python -m launch.submit experiment=demo optimizer.lr=1e-3 run.id=")
    assert command.endswith("resume=auto")


def luminance(colour: str) -> float:
    """Relative luminance of "rgb(…)", https://www.w3.org/TR/WCAG21/#dfn-relative-luminance."""
    parts = [float(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    bright, dim = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_is_readable_in_light_and_in_the_dark(browser: Browser, full_run: Path, dark: bool) -> None:
    style = "([selector, what]) => [...document.querySelectorAll(selector)].map(e => getComputedStyle(e)[what])"
    with opened(browser, (full_run / "report.html").as_uri(), dark=dark) as shown:
        shown.wait_until_drawn()

        def styles(selector: str, what: str) -> set[str]:
            found = set(shown.page.evaluate(style, [selector, what]))
            assert found, selector
            return found

        (background,) = styles("body", "backgroundColor")
        assert luminance(background) < 0.03 if dark else luminance(background) > 0.9
        for selector in (".xtick text", ".ytick text", ".legendtext", ".colorbar text"):
            for colour in styles(f".chart {selector}", "fill"):
                assert contrast(colour, background) >= 4.5, selector
        for selector in ("td", "th", ".soft", "figcaption", "blockquote", "button", "select", "input"):
            for colour in styles(selector, "color"):
                assert contrast(colour, background) >= 4.5, selector


@pytest.fixture
def listener() -> Iterator[tuple[str, list[str]]]:
    """A server's address, and the paths that it was asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name in the standard library
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
        server.shutdown()
        thread.join()


def test_what_somebody_planted_neither_runs_nor_asks(
    browser: Browser, full_run: Path, tmp_path: Path, listener: tuple[str, list[str]]
) -> None:
    address, asked = listener
    planted = f"""<img src="{address}/image"><script>document.title = "ran"; fetch("{address}/script")</script>
        <img src="data:," onerror="document.title = 'ran'; fetch('{address}/handler')">
        <iframe src="{address}/frame"></iframe><link rel="stylesheet" href="{address}/style">"""
    text = (full_run / "report.html").read_text()
    assert text.count("<main id=") == 1
    copy = tmp_path / "planted.html"
    copy.write_text(text.replace("<main id=", f"{planted}<main id="))
    with opened(browser, copy.as_uri()) as shown:
        shown.wait_until_drawn()
        refused = shown.page.evaluate(f"fetch('{address}/evaluated').then(() => 'answered', () => 'refused')")
        assert refused == "refused"
        shown.page.wait_for_timeout(300)
        assert "ran" not in shown.page.title()
        assert len([line for line in shown.said if "Content Security Policy" in line]) >= 5
    assert asked == []
    # The listener hears what is not forbidden.
    bare = tmp_path / "bare.html"
    bare.write_text(f'<img src="{address}/image">')
    with opened(browser, bare.as_uri()) as shown:
        shown.page.wait_for_timeout(300)
    assert asked == ["/image"]


def test_a_blocked_run_says_so_where_a_phone_shows_it_first(browser: Browser, tmp_path: Path) -> None:
    report = write_report(write_example_run(tmp_path / "demo", blocked=True))
    with opened(browser, report.as_uri(), size=PHONE, dark=True) as shown:
        shown.wait_until_drawn()
        box: Any = shown.page.get_by_text("Blocked by the gate after anneal").bounding_box()
        assert box["y"] + box["height"] < PHONE[1] / 2
        shown.page.screenshot(path=artifacts() / "report-blocked-390-dark.png")
        assert shown.said == []


def test_runs_are_compared_in_one_page(browser: Browser, full_run: Path, real_run: Path, tmp_path: Path) -> None:
    other = write_full_example(tmp_path / "another")
    report = write_comparison([full_run, other, real_run], tmp_path / "compare.html")
    for size in (DESKTOP, PHONE):
        with opened(browser, report.as_uri(), size=size) as shown:
            shown.wait_until_drawn()
            drawn = charts(shown.page)
            assert set(drawn) == {"loss", "loss_by_tokens", "bits_per_byte", "tokens_per_second", "mfu", "time"}
            assert all(drawn.values())
            assert shown.page.evaluate("document.documentElement.scrollWidth") <= size[0]
            shown.page.screenshot(path=artifacts() / f"compare-{size[0]}-light.png", full_page=True)
            assert shown.said == []
            assert shown.asked == [report.as_uri()]


def test_a_page_without_javascript_still_has_its_words(browser: Browser, full_run: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((full_run / "report.html").as_uri())
    assert f"Step {NUM_STEPS} of {NUM_STEPS}" in page.inner_text("#headline")
    assert "slow_rank" in page.inner_text("#incidents")
    context.close()
