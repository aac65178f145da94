from pathlib import Path
from typing import Any

import pytest

from tests.unit.reporting.example_items import MARKUP, write_example_report
from tests.unit.reporting.page import Page
from training.reporting.evaluation_page import write_evaluation_page

FACTS: dict[str, Any] = {
    "suite": "coding",
    "weights": f"step-00000015 of {MARKUP}",
    "metrics": {"bits_per_byte": 2.5, "human_eval/pass_at_1": 0.125},
    "seconds": 90.0,
}


def test_a_page_beside_the_report_has_its_numbers_and_items_and_loads_nothing(tmp_path: Path) -> None:
    path = write_evaluation_page(write_example_report(tmp_path / "coding.json"), **FACTS)
    assert path == tmp_path / "coding.html"
    page = Page(path)
    assert (page.num_scripts, page.loads, page.policy) == (0, [], "default-src 'none'; style-src 'unsafe-inline'")
    words = " ".join(page.text.split())
    assert f"{FACTS['weights']}, measured in 1m30s" in words
    assert "metric value bits_per_byte 2.5 human_eval pass_at_1 0.125" in words
    assert "1: passed 2: failed: raised NameError" in words
    assert "103 more are left out here and stand in coding.json" in words


def test_a_report_without_a_suffix_is_not_overwritten(tmp_path: Path) -> None:
    for name in ("found", "found.html", "found.v1"):
        report = write_example_report(tmp_path / name)
        assert write_evaluation_page(report, **FACTS) == tmp_path / f"{name}.html"
        assert report.read_text().startswith("{")


@pytest.mark.parametrize("content", ["", "{", '{"tasks": 1}'])
def test_a_report_that_cannot_be_read_leaves_the_numbers_and_a_sentence(tmp_path: Path, content: str) -> None:
    report = tmp_path / "coding.json"
    report.write_text(content)
    text = Page(write_evaluation_page(report, **FACTS)).text
    assert "0.125" in text
    assert "The items cannot be shown, because of coding.json" in text
