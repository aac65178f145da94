"""Documents at hand on every machine that training keeps out: the King James Version, Python's standard library.

Training holds documents out by a hash of their id, and a document that is held out at a fraction is held out at any
larger one. So what is taken here was never trained on in a run whose `data.held_out_fraction` is at least as large.
"""

from training.config.data_schema import SourceConfig, SourceKind
from training.data.corpus import is_held_out, read_documents
from training.data.records import Record

HELD_OUT_FRACTION = 0.05
"""The default of `data.held_out_fraction`."""


def held_out_documents(kind: SourceKind) -> list[Record]:
    """Return the documents of an embedded source that a run with the default held-out fraction never trains on."""
    documents = read_documents(kind.value, SourceConfig(kind=kind))
    return [document for document in documents if is_held_out(document.id, HELD_OUT_FRACTION)]
