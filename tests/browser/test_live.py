"""The served report: it takes in what a run writes, and leaves the reader where they are."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.browser.chromium import artifacts, opened
from tests.integration.running import SMOKE, only_run, run_directories, submit
from tests.unit.reporting.example_full_run import write_full_example
from tests.unit.reporting.example_run import step_record
from training.reporting.metrics import MetricsLog
from training.reporting.records import IncidentRecord
from training.reporting.report.live import LiveRun
from training.reporting.report.server import ReportServer

_WAIT_MS = 120_000


@pytest.fixture
def served(tmp_path: Path) -> Iterator[ReportServer]:
    run_directory = write_full_example(tmp_path / "demo")
    (run_directory / "stages.json").write_text('{"state": "running"}')
    with ReportServer(LiveRun(run_directory), port=0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_new_records_appear_and_the_reader_stays_where_they_are(browser: Browser, served: ReportServer) -> None:
    with opened(browser, served.address) as shown:
        page = shown.page
        shown.wait_until_drawn()
        page.get_by_role("button", name="long_context").click()
        shown.wait_for_drawing(2)
        # Zoom by hand, open a fold, write into the filter, scroll there.
        box = page.locator("#chart-tokens_per_second .nsewdrag").bounding_box()
        assert box is not None
        page.locator("#chart-tokens_per_second").scroll_into_view_if_needed()
        box = page.locator("#chart-tokens_per_second .nsewdrag").bounding_box()
        assert box is not None
        y = box["y"] + box["height"] / 2
        page.mouse.move(box["x"] + box["width"] * 0.25, y)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.75, y, steps=5)
        page.mouse.up()
        page.locator('details[data-key="attempts"] summary').click()
        page.locator("#filter-words").fill("restart")
        page.locator("#filter-words").press("ArrowLeft")
        range_of = "document.getElementById('chart-tokens_per_second')._fullLayout.xaxis.range"
        zoomed = page.evaluate(range_of)
        assert 91 < zoomed[0] < zoomed[1] < 110
        place = page.evaluate("document.getElementById('filter-words').getBoundingClientRect().top")

        log = MetricsLog(served.run.directory / "metrics.jsonl")
        for step in range(111, 121):
            log.append(step_record(step, stage="long_context", attempt=2))
        message = "restart of rank 4 seen"
        log.append(IncidentRecord(step=120, stage="long_context", what="hang", message=message, attempt=2))
        log.close()

        page.get_by_text(message).last.wait_for(timeout=_WAIT_MS)
        page.locator(".progress", has_text="Step 120,").wait_for(timeout=_WAIT_MS)
        shown.wait_for_drawing(3)
        assert page.get_by_role("button", name="long_context").get_attribute("aria-pressed") == "true"
        assert page.evaluate("document.getElementById('chart-loss')._fullLayout.xaxis.range") == [90.5, 120.5]
        assert page.evaluate(range_of) == zoomed
        assert page.locator('details[data-key="attempts"]').get_attribute("open") is not None
        assert page.locator("#filter-words").input_value() == "restart"
        assert page.evaluate("[document.activeElement.id, document.activeElement.selectionStart]") == [
            "filter-words",
            6,
        ]
        moved = page.evaluate("document.getElementById('filter-words').getBoundingClientRect().top") - place
        assert abs(moved) < 40
        rows = page.locator("#incidents tbody tr:visible td:nth-child(4)").all_inner_texts()
        assert rows == ["hang", "restart"]  # of this stage and with this word; the new one is filtered as the old
        assert page.locator(".finding.bad strong").last.inner_text() == "hang"
        assert page.locator("#live").inner_text() == "live"
        assert shown.said == []
        assert {address.split("/")[3].split("#")[0] for address in shown.asked} == {"", "state", "content"}
        assert all(address.startswith(served.address) for address in shown.asked)
        page.screenshot(path=artifacts() / "report-live-1280-light.png")


def test_a_server_that_has_gone_is_told(browser: Browser, served: ReportServer) -> None:
    with opened(browser, served.address) as shown:
        shown.wait_until_drawn()
        shown.page.locator("#live", has_text="live").wait_for(timeout=_WAIT_MS)
        shown.page.route("**/state", lambda route: route.abort())
        shown.page.locator("#live.failed", has_text="not live").wait_for(timeout=_WAIT_MS)
        shown.page.unroute("**/state")
        shown.page.locator("#live:not(.failed)").wait_for(timeout=_WAIT_MS)


def test_silence_of_a_run_that_should_write_is_said(browser: Browser, served: ReportServer) -> None:
    with opened(browser, served.address) as shown:  # its last record is of September 2026
        shown.wait_until_drawn()
        assert shown.page.locator("#silent").is_visible()
        assert shown.page.locator("#silent").bounding_box()["y"] < 300  # pyright: ignore[reportOptionalSubscript]


def test_the_served_page_follows_a_run_that_goes_on_to_its_end(browser: Browser, tmp_path: Path) -> None:
    words = [*SMOKE, f"run.root={tmp_path / 'runs'}", f"data.prepared_root={tmp_path / 'prepared'}"]
    with submit([*words, "stages.pretrain.tokens=20480"], folder=tmp_path / "output") as job:
        job.wait_until(
            lambda: any(
                '"kind": "step"' in log.read_text()
                for d in run_directories(tmp_path / "runs")
                for log in d.glob("metrics.jsonl")
            )
        )
        directory = only_run(tmp_path / "runs")
        command = [sys.executable, "-m", "training.reporting", str(directory), "--serve"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            address = server.stdout.readline().split()[0]
            with opened(browser, address) as shown:
                shown.wait_until_drawn()
                steps = "document.querySelector('#headline .progress').textContent.match(/Step (\\d+)/)?.[1] ?? '0'"
                first = int(shown.page.evaluate(steps))
                assert first < 46
                shown.page.locator("h1 .state.done").wait_for(timeout=_WAIT_MS)
                assert int(shown.page.evaluate(steps)) == 46
                assert shown.page.evaluate(
                    "document.getElementById('chart-loss').data.flatMap(t => t.name === 'anneal' ? t.x : [])"
                ) == list(range(41, 47))
                assert shown.said == []
            finished = job.wait()
            assert finished.exit_code == 0, finished.explain()
            server.terminate()
            assert server.wait(timeout=60) == 0
            assert server.stderr is not None
            assert server.stderr.read() == ""
        finally:
            server.kill()
            server.wait()
