"""A record of a source before it is tokens, and one that is not used."""

from dataclasses import dataclass

from training.data.readers.rows import Fault


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """What is learned from, before it is tokens."""

    id: str
    """Unique within its source, stable over machines and configs."""
    content: bytes
    """UTF-8: of a document its text, else the record as JSON, without its id."""
    digest: bytes
    """sha256 of the content."""

    @property
    def text(self) -> str:
        """A document's text."""
        return self.content.decode("utf-8")


@dataclass(frozen=True, kw_only=True, slots=True)
class Quarantined:
    """A record that is not used."""

    id: str
    fault: Fault

    def as_json(self) -> dict[str, str]:
        """Return what quarantine.jsonl says of it."""
        return {"id": self.id, "reason": self.fault.reason, "detail": self.fault.detail, "sample": self.fault.sample}
