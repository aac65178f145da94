"""A page as a browser would see it."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

_VOID = {"meta", "link", "img", "br", "input"}


class Page(HTMLParser):
    """What a browser would see: ids, attributes that load something, text outside scripts, and tag balance."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.text = ""
        self.num_scripts = 0
        self.policy = ""
        self.figures: dict[str, Any] = {}
        """Name -> plotly's data and layout."""
        self._in_figures = False
        self._open: list[str] = []
        self.feed(path.read_text())
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids += [values["id"] or ""] if "id" in values else []
        self.loads += [
            f"{tag} {name}={values[name]}"
            for name in ("src", "href", "srcset", "data", "action")
            if name in values and not (values[name] or "").startswith(("#", "data:,"))
        ]
        self._in_figures = values.get("id") == "figures"
        self.num_scripts += tag == "script"
        if values.get("http-equiv") == "Content-Security-Policy":
            self.policy = values["content"] or ""
        if tag not in _VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        self.text += " " if tag in ("td", "th") else ""  # cells stand apart

    def handle_data(self, data: str) -> None:
        if self._in_figures:
            self.figures = {name: chart["figure"] for name, chart in json.loads(data).items()}
            self._in_figures = False
        if "script" not in self._open and "style" not in self._open:
            self.text += data
