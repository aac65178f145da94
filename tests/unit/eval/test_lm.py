import json
import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given
from hypothesis import strategies as st

from eval.lm import EngineLM, ScoredSequence, turns
from tests.unit.eval.tiny import TinyModel, TinyScorer, make_data, make_model
from training.parallel.layout import Layout

EOS = 0
VOCAB_SIZE = 300


def sequences() -> list[ScoredSequence]:
    """Sequences of many lengths, with and without a context; 11 do not fill whole batches of 4."""
    ids = [document.token_ids.tolist() for document in make_data(11).documents]
    return [
        ScoredSequence(context_ids=row[: 3 * (i % 3)], continuation_ids=row[3 * (i % 3) : 9 + 7 * i])
        for i, row in enumerate(ids)
    ]


def direct_logprob(model: TinyModel, sequence: ScoredSequence) -> float:
    """Sum of log p over the continuation, one sequence at a time, without padding, batches or labels."""
    ids = [EOS, *sequence.context_ids, *sequence.continuation_ids]
    with torch.no_grad():
        log_probs_TV = model(torch.tensor([ids[:-1]])).log_softmax(-1)[0]
    first = len(sequence.context_ids)
    return math.fsum(log_probs_TV[t, ids[t + 1]].item() for t in range(first, len(ids) - 1))


def make_lm(scorer: TinyScorer) -> EngineLM:
    return EngineLM(engine=scorer, eos_id=EOS, batch_sequences=4)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-6)])
def test_scores_equal_a_direct_loop_sequence_by_sequence(dtype: torch.dtype, tolerance: float) -> None:
    model = make_model(VOCAB_SIZE, dtype)
    with torch.no_grad():
        scores = make_lm(TinyScorer(model)).score(sequences())
    for score, sequence in zip(scores, sequences(), strict=True):
        assert score.logprob == pytest.approx(direct_logprob(model, sequence), rel=tolerance)
        assert score.num_tokens == len(sequence.continuation_ids)


def test_the_first_token_of_an_empty_context_is_scored_after_eos() -> None:
    model = make_model(VOCAB_SIZE)
    with torch.no_grad():
        [score] = make_lm(TinyScorer(model)).score([ScoredSequence(context_ids=[], continuation_ids=[7])])
        expected = model(torch.tensor([[EOS]])).log_softmax(-1)[0, 0, 7].item()
    assert score.logprob == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("world_size", "num_pipeline_stages"), [(2, 1), (3, 1), (4, 2), (4, 4), (8, 1)])
def test_shares_of_all_ranks_add_up_to_bitwise_the_same_scores(world_size: int, num_pipeline_stages: int) -> None:
    model = make_model(VOCAB_SIZE, torch.float32)
    layout = Layout(world_size=world_size, num_pipeline_stages=num_pipeline_stages)
    with torch.no_grad():
        alone_N = make_lm(TinyScorer(model)).own_logprobs(sequences(), rank=0)
        shares = [make_lm(TinyScorer(model, layout)).own_logprobs(sequences(), rank=rank) for rank in range(world_size)]
    assert torch.equal(torch.stack(shares).sum(0), alone_N)


def test_every_rank_calls_the_engine_equally_often() -> None:
    layout = Layout(world_size=4, num_pipeline_stages=2)
    calls = set()
    for rank in range(4):
        scorer = TinyScorer(make_model(VOCAB_SIZE), layout)
        make_lm(scorer).own_logprobs(sequences(), rank=rank)
        calls.add(scorer.num_calls)
    assert calls == {2}  # 3 batches over 2 replicas


@given(num_batches=st.integers(0, 200), num_replicas=st.integers(1, 40))
def test_turns_cover_every_batch_once_with_equally_many_calls(num_batches: int, num_replicas: int) -> None:
    plans = [turns(num_batches=num_batches, num_replicas=num_replicas, replica=r) for r in range(num_replicas)]
    assert len({len(plan) for plan in plans}) == 1
    counted = [turn.batch_index for plan in plans for turn in plan if turn.counts]
    assert sorted(counted) == list(range(num_batches))
    assert all(0 <= turn.batch_index < num_batches for plan in plans for turn in plan)
    assert all(t.batch_index % num_replicas == r for r, plan in enumerate(plans) for t in plan if t.counts)


def test_greedy_equals_a_direct_argmax_loop_for_prompts_of_different_lengths() -> None:
    model = make_model(VOCAB_SIZE)
    prompts = [[], [5], [9, 8, 7, 6, 5, 4], [11, 12], [13, 14, 15]]
    expected = []
    with torch.no_grad():
        for prompt in prompts:
            ids = [EOS, *prompt]
            for _ in range(6):
                ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
            expected.append(ids[1 + len(prompt) :])
        scorer = TinyScorer(model)
        assert make_lm(scorer).greedy(prompts, 6) == expected
    assert scorer.num_calls == 12  # two batches of prompts, six tokens each
    assert len({tuple(row) for row in expected}) > 1


def test_greedy_ends_before_eos_but_runs_all_its_forwards() -> None:
    model = make_model(VOCAB_SIZE)
    with torch.no_grad():
        model.output.bias[EOS] = 1e6
        scorer = TinyScorer(model)
        assert make_lm(scorer).greedy([[5, 6]], 4) == [[]]
    assert scorer.num_calls == 4


def test_an_empty_continuation_is_refused() -> None:
    with pytest.raises(AssertionError, match="at least one token"):
        make_lm(TinyScorer(make_model(VOCAB_SIZE))).score([ScoredSequence(context_ids=[1], continuation_ids=[])])


def _score_in_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    scorer = TinyScorer(make_model(VOCAB_SIZE, torch.float32), Layout(world_size=2))
    with torch.no_grad():
        scores = make_lm(scorer).score(sequences())
    Path(folder, f"rank-{rank}.json").write_text(json.dumps([score.logprob for score in scores]))
    dist.destroy_process_group()


def test_two_real_processes_hold_bitwise_the_scores_of_one(tmp_path: Path) -> None:
    mp.spawn(_score_in_process, args=(str(tmp_path),), nprocs=2)
    with torch.no_grad():
        alone_N = make_lm(TinyScorer(make_model(VOCAB_SIZE, torch.float32))).own_logprobs(sequences(), rank=0)
    for rank in range(2):
        assert json.loads((tmp_path / f"rank-{rank}.json").read_text()) == alone_N.tolist()
