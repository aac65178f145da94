"""The part of the schema that says what is learned from: sources, tokenizer, prepared data; see `schema.py`."""

from dataclasses import dataclass, field
from enum import StrEnum


class SourceKind(StrEnum):
    """Where the records of a data source come from.

    kjv and python_stdlib are there on every machine; text_files has one document per file; text_lines, json (JSON
    Lines), parquet and arrow have many per file; hub is a dataset of the Hugging Face hub, by name.
    """

    kjv = "kjv"
    python_stdlib = "python_stdlib"
    text_files = "text_files"
    text_lines = "text_lines"
    json = "json"
    parquet = "parquet"
    arrow = "arrow"
    hub = "hub"

    @property
    def reads_files(self) -> bool:
        """Whether it reads files that `path` names."""
        return self in (self.text_files, self.text_lines, self.json, self.parquet, self.arrow)

    @property
    def has_fields(self) -> bool:
        """Whether its records have named fields."""
        return self in (self.json, self.parquet, self.arrow, self.hub)


class SourceForm(StrEnum):
    """What a record of a source is: a text, a conversation, or an answer that is better than another."""

    documents = "documents"
    conversations = "conversations"
    preferences = "preferences"


class PrepareData(StrEnum):
    """Whether a start may prepare missing data itself (small corpora) or must refuse."""

    auto = "auto"
    require = "require"


class ContaminationAction(StrEnum):
    """What preparation does with a record that holds items of benchmarks: name it in the report, or leave it out."""

    report = "report"
    remove = "remove"


@dataclass(frozen=True, kw_only=True, slots=True)
class HubConfig:
    """Which part of a hub's dataset is read."""

    subset: str | None = None
    """Its configuration; null takes the default one."""
    split: str = "train"
    """Its split."""
    revision: str | None = None
    """Commit of the dataset's repository, so that all preparations read the same; null takes the newest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceConfig:
    """One named source of records."""

    kind: SourceKind
    """Reader of this source."""
    form: SourceForm = SourceForm.documents
    """What its records are: documents have a text; conversations have `messages` and may have `tools`; preferences
    have `prompt`, `chosen` and `rejected`, which are lists of messages, and may have `tools`."""
    path: str | None = None
    """Folder, file or glob of kinds that read files; the dataset's name of kind hub; else null."""
    hub: HubConfig = field(default_factory=HubConfig)
    """For kind hub."""
    text_field: str = "text"
    """Field with a document's text, of kinds with fields."""
    id_field: str | None = None
    """Field with a record's id, unique within the source, of kinds with fields. Null names records by their place:
    file and row."""
    max_documents: int | None = None
    """Use only the first records that can be used (in the source's own order); null takes all."""
    max_record_bytes: int = 16 * 2**20
    """UTF-8 bytes of a record's text; a larger one is put into quarantine."""
    held_out_fraction: float | None = None
    """Share of its records kept out of training; null takes data.held_out_fraction. 1 makes it a validation set."""
    licence: str | None = None
    """Licence of its texts, kept in the prepared data; null says that of an embedded source, else nothing."""
    tags: list[str] = field(default_factory=list)
    """Words kept in the prepared data beside the licence (language, owner, sensitivity)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NearDuplicatesConfig:
    """Documents that are nearly the same as an earlier one are left out: MinHash with LSH (arXiv:2107.06499)."""

    similarity: float = 0.8
    """Estimated Jaccard similarity of two documents' word n-grams from which the later one is left out."""
    ngram_words: int = 5
    """Words of each n-gram."""
    num_hashes: int = 128
    """Hash functions of a signature: the estimate's standard error is at most 0.5/sqrt(num_hashes)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ContaminationConfig:
    """Training records that hold items of benchmarks."""

    benchmarks: list[str]
    """Names of benchmarks whose prepared items are looked for (python -m eval.prepare NAME)."""
    action: ContaminationAction = ContaminationAction.report
    """What is done with records in which they are found."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Sources, tokenizer and where prepared shards live."""

    sources: dict[str, SourceConfig]
    """Source name -> where it comes from; stages refer to the names."""
    tokenizer: str | None = None
    """Hugging Face directory with tokenizer.json, and tokenizer_config.json with the chat template if there is one;
    null trains a byte-level BPE on the sources. A relative path counts from the launch directory."""
    tokenizer_vocab_size: int = 4096
    """Vocabulary, in tokens, of the byte-level BPE trained on the sources; without effect with `tokenizer`."""
    end_of_document_token: str | None = None
    """Token that ends each document and stands before the next; null takes <|endoftext|> where the tokenizer has it,
    else its eos_token."""
    held_out_fraction: float = 0.05
    """Share of records kept out of training, by a hash of the record's id."""
    near_duplicates: NearDuplicatesConfig | None = None
    """Leaving out documents that are nearly the same as others, over all sources; null leaves out equal ones only."""
    contamination: ContaminationConfig | None = None
    """Looking for benchmarks' items while data is prepared; null leaves it to the evaluations."""
    shard_bytes: int = 64 * 2**20
    """UTF-8 bytes of text per shard, about: what one process works on at a time, and what a kill can cost."""
    num_workers: int | None = None
    """Processes that prepare data; null takes one per core that this process may use."""
    prepared_root: str = "prepared"
    """Folder of prepared data; a relative path counts from the launch directory."""
    prepare: PrepareData = PrepareData.auto
    """auto prepares missing data at the start; require refuses and prints the command."""

    def held_out_fraction_of(self, source: str) -> float:
        """Return the share of a source's records that is kept out of training."""
        own = self.sources[source].held_out_fraction
        return self.held_out_fraction if own is None else own
