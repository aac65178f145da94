"""Small real data: some chapters and some files, prepared once per session."""

import pytest

from training.config.data_schema import DataConfig, SourceConfig, SourceKind
from training.data.prepare import prepare
from training.data.shards import PreparedData


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    return DataConfig(
        sources={
            "bible": SourceConfig(kind=SourceKind.kjv, max_documents=60),
            "code": SourceConfig(kind=SourceKind.python_stdlib, max_documents=12),
        },
        tokenizer_vocab_size=512,
        held_out_fraction=0.2,
        prepared_root=str(tmp_path_factory.mktemp("prepared")),
    )


@pytest.fixture(scope="session")
def prepared(small_data: DataConfig) -> PreparedData:
    return prepare(small_data)
