from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from eval.batching import batches_by_length, turns, two_passes_are_cheaper
from eval.requests import Continuation, Prompt

TOKENS = st.lists(st.integers(0, 3), min_size=1, max_size=6)
CONTINUATIONS = st.lists(st.builds(Continuation, context_ids=TOKENS, continuation_ids=TOKENS), max_size=40)


@given(num_batches=st.integers(0, 200), num_replicas=st.integers(1, 40))
def test_turns_cover_every_batch_once_with_equally_many_calls(num_batches: int, num_replicas: int) -> None:
    plans = [turns(num_batches=num_batches, num_replicas=num_replicas, replica=r) for r in range(num_replicas)]
    assert len({len(plan) for plan in plans}) == 1
    counted = [turn.batch_index for plan in plans for turn in plan if turn.counts]
    assert sorted(counted) == list(range(num_batches))
    assert all(0 <= turn.batch_index < num_batches for plan in plans for turn in plan)
    assert all(t.batch_index % num_replicas == r for r, plan in enumerate(plans) for t in plan if t.counts)


@given(asked=CONTINUATIONS, batch_sequences=st.integers(1, 9))
def test_every_request_is_in_one_batch_and_one_context_is_not_scattered(
    asked: list[Continuation], batch_sequences: int
) -> None:
    batches = batches_by_length(asked, batch_sequences)
    assert sorted(index for batch in batches for index in batch) == list(range(len(asked)))
    assert all(0 < len(batch) <= batch_sequences for batch in batches)
    assert sum(map(len, batches[:-1])) == batch_sequences * (len(batches) - 1 if batches else 0)
    order = [tuple(asked[index].context_ids) for batch in batches for index in batch]
    assert sum(a != b for a, b in pairwise(order)) == max(0, len(set(order)) - 1)


@given(asked=CONTINUATIONS)
def test_single_requests_come_longest_first(asked: list[Continuation]) -> None:
    alone = list({tuple(one.context_ids): one for one in asked}.values())
    lengths = [alone[index].num_tokens for [index] in batches_by_length(alone, 1)]
    assert lengths == sorted(lengths, reverse=True)


def test_prompts_that_are_drawn_differently_are_not_mixed() -> None:
    asked = [Prompt(ids=[1] * (1 + i), max_new_tokens=2, temperature=float(i % 2)) for i in range(8)]
    for batch in batches_by_length(asked, 3):
        assert len({asked[index].temperature for index in batch}) == 1 or len(batch) == 1


def test_contexts_are_run_apart_only_where_that_saves_work() -> None:
    questions = [Continuation(context_ids=[q] * 30, continuation_ids=[a] * 3) for q in range(4) for a in range(4)]
    texts = [Continuation(context_ids=[0], continuation_ids=[1] * (20 + i)) for i in range(8)]
    assert two_passes_are_cheaper(questions, batches_by_length(questions, 4))
    assert not two_passes_are_cheaper(questions, batches_by_length(questions, 1))
    assert not two_passes_are_cheaper(texts, batches_by_length(texts, 4))
