from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.data.streams import EOS_ID, VOCAB_SIZE, make_stream
from training.config.data_schema import SourceForm
from training.config.model_schema import ModelConfig
from training.data.pack_table import Packing, PackTable
from training.data.stream import RecordStream
from training.data.units import Packs, Row, Windows
from training.errors import DataError
from training.models.decoder import Decoder, decoder_layers
from training.models.documents import Documents
from training.models.learning import LearningPass, learning, summed_losses
from training.models.loss import IGNORED_LABEL


def packs_of(stream: RecordStream, root: Path, *, length: int, least: int = 1) -> Packs:
    packing = Packing(data_fingerprint="x", source="texts", sequence_length=length, min_document_tokens=least)
    return Packs(stream, PackTable.open(root, packing, stream), packing, EOS_ID)


def rows_of(units: Packs | Windows) -> list[Row]:
    return [units.row(unit) for unit in range(units.num_units)]


CASES = st.tuples(st.lists(st.integers(2, 40), min_size=2, max_size=25), st.integers(4, 32), st.integers(1, 3))


@given(CASES)
def test_packing_keeps_every_token_of_every_document_once(
    tmp_path_factory: pytest.TempPathFactory, case: tuple[list[int], int, int]
) -> None:
    lengths, length, num_shards = case
    stream = make_stream(lengths, num_shards=num_shards)
    packs = packs_of(stream, tmp_path_factory.mktemp("root"), length=length)
    times = np.zeros(stream.num_tokens, dtype=int)
    for unit, row in enumerate(rows_of(packs)):
        place = 0
        for number, piece in enumerate(packs.pieces(unit)):
            start, end = stream.starts_of(piece.record)
            assert start <= piece.first < piece.stop <= end
            times[piece.first : piece.stop] += 1
            mine = slice(place, place := place + piece.stop - piece.first)
            assert (row.documents_T[mine] == number).all()
            assert row.labels_T[mine].tolist() == stream.tokens(piece.first, piece.stop).tolist()
            before = stream.tokens(piece.first - 1, piece.first).tolist() if piece.first > start else [EOS_ID]
            assert row.input_ids_T[mine].tolist() == [*before, *row.labels_T[mine][:-1].tolist()]
        assert place > 0
        assert (row.labels_T[place:] == IGNORED_LABEL).all()
        assert (row.documents_T[place:] == len(packs.pieces(unit))).all()
        assert len(row.labels_T) == len(row.input_ids_T) == length
    assert (times == 1).all()


@given(CASES)
def test_a_document_that_fits_a_sample_is_never_cut(
    tmp_path_factory: pytest.TempPathFactory, case: tuple[list[int], int, int]
) -> None:
    lengths, length, num_shards = case
    packs = packs_of(make_stream(lengths, num_shards=num_shards), tmp_path_factory.mktemp("root"), length=length)
    for record, tokens in enumerate(lengths):
        assert len(packs.units_of(record)) <= -(-tokens // length)
        if tokens <= length:
            [unit] = packs.units_of(record)
            assert [p.stop - p.first for p in packs.pieces(unit) if p.record == record] == [tokens]


def test_short_documents_can_be_left_out(tmp_path: Path) -> None:
    packs = packs_of(make_stream([3, 30, 9, 31]), tmp_path, length=32, least=10)
    records = [piece.record for unit in range(packs.num_units) for piece in packs.pieces(unit)]
    assert sorted(records) == [1, 3]
    assert any("2 records are shorter" in note for note in packs.notes)


def test_conversations_learn_their_targets_alone_and_are_cut_at_a_sample_s_end(tmp_path: Path) -> None:
    stream = make_stream([11, 6, 40], SourceForm.conversations)
    packs = packs_of(stream, tmp_path, length=16)
    for unit, row in enumerate(rows_of(packs)):
        place = 0
        for piece in packs.pieces(unit):
            start, end = stream.starts_of(piece.record)
            assert piece.first == start + 1
            assert piece.stop == min(end, start + 17)
            mine = slice(place, place := place + piece.stop - piece.first)
            assert row.input_ids_T[mine].tolist() == stream.tokens(start, piece.stop - 1).tolist()
            wanted = np.where(stream.is_target(piece.first, piece.stop), stream.tokens(piece.first, piece.stop), -100)
            assert row.labels_T[mine].tolist() == wanted.tolist()
    assert any("1 conversations are longer" in note for note in packs.notes)


def test_the_answers_of_a_pair_stand_side_by_side_in_one_sample(tmp_path: Path) -> None:
    stream = make_stream([5, 7, 9, 9, 30, 4, 3, 3], SourceForm.preferences, num_shards=1)
    packs = packs_of(stream, tmp_path, length=20)
    records = [[piece.record for piece in packs.pieces(unit)] for unit in range(packs.num_units)]
    flat = [record for of_unit in records for record in of_unit]
    assert sorted(flat) == [0, 1, 2, 3, 6, 7]
    assert all(
        chosen % 2 == 0 and rejected == chosen + 1
        for of_unit in records
        for chosen, rejected in zip(of_unit[::2], of_unit[1::2], strict=True)
    )
    assert any("1 pairs are longer" in note for note in packs.notes)


@given(st.lists(st.integers(2, 40), min_size=3, max_size=20), st.integers(2, 30))
def test_windows_are_the_stream_and_know_their_records(lengths: list[int], length: int) -> None:
    stream = make_stream(lengths)
    windows = Windows(stream, length, EOS_ID)
    assert windows.num_units == (sum(lengths) - 1) // length
    for unit, row in enumerate(rows_of(windows)):
        assert row.input_ids_T.tolist() == stream.tokens(unit * length, (unit + 1) * length).tolist()
        assert row.labels_T.tolist() == stream.tokens(unit * length + 1, (unit + 1) * length + 1).tolist()
        pieces = windows.pieces(unit)
        assert [pieces[0].first, *(p.stop for p in pieces)] == [*(p.first for p in pieces), (unit + 1) * length + 1]
        assert stream.records_at(np.array([p.first for p in pieces])).tolist() == [p.record for p in pieces]
        assert all(unit in windows.units_of(piece.record) for piece in pieces)
    for record in range(len(lengths)):
        assert all(record in [p.record for p in windows.pieces(unit)] for unit in windows.units_of(record))


def test_tables_of_packs_are_made_once_and_refused_when_damaged(tmp_path: Path) -> None:
    stream = make_stream([5, 6, 7, 8])
    first = packs_of(stream, tmp_path, length=16)
    [folder] = (tmp_path / "packs").iterdir()
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert packs_of(stream, tmp_path, length=16).num_units == first.num_units
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    (folder / "first.npy").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"table of packs.*\n.*remove that folder"):
        packs_of(stream, tmp_path, length=16)


def test_packed_and_unpacked_losses_agree_document_by_document(tmp_path: Path) -> None:
    lengths = [5, 19, 8, 30, 12, 3, 27, 9, 14]
    stream = make_stream(lengths)
    packs = packs_of(stream, tmp_path, length=32)
    model_config = ModelConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        ffn_size=64,
        max_sequence_length=64,
    )
    model = Decoder(decoder_layers(model_config, seed=0))

    def losses(ids_T: np.ndarray, labels_T: np.ndarray, documents_T: np.ndarray) -> torch.Tensor:
        """The loss of each position, one at a time, so that they can be told apart."""
        found = []
        for place in np.flatnonzero(labels_T != IGNORED_LABEL):
            only = torch.full((1, len(ids_T)), IGNORED_LABEL)
            only[0, place] = int(labels_T[place])
            this = LearningPass(
                labels_BT=only, loss_chunk_tokens=10**6, documents=Documents(torch.from_numpy(documents_T)[None])
            )
            with learning(this), torch.no_grad():
                found.append(summed_losses(model(torch.from_numpy(ids_T)[None]), this)[0])
        return torch.stack(found)

    compared = 0
    for unit, row in enumerate(rows_of(packs)):
        packed, place = losses(row.input_ids_T, row.labels_T, row.documents_T), 0
        for piece in packs.pieces(unit):
            tokens = stream.tokens(*stream.starts_of(piece.record))
            alone = losses(np.append(EOS_ID, tokens[:-1]), tokens, np.zeros(len(tokens), dtype=np.int64))
            mine = packed[place : place + len(tokens)]
            assert mine.tolist() == pytest.approx(alone.tolist(), rel=1e-5)
            place += len(tokens)
            compared += 1
    assert compared == len(lengths)
