import json
import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from eval.requests import Continuation, Prompt
from tests.unit.eval.tiny import SENTENCES, TinyEngine, make_data, make_lm, make_model
from training.models.decoder import Decoder
from training.parallel.layout import Layout

DATA = make_data(11)
EOS = DATA.tokenizer.eos_id
VOCAB_SIZE = DATA.tokenizer.vocab_size


def continuations() -> list[Continuation]:
    """Of many lengths, with and without a context; 11 do not fill whole batches of 4."""
    ids = [document.token_ids.tolist() for document in DATA.documents]
    return [
        Continuation(context_ids=[EOS, *row[: 3 * (i % 3)]], continuation_ids=row[3 * (i % 3) : 9 + 7 * i])
        for i, row in enumerate(ids)
    ]


def choices() -> list[Continuation]:
    """Four answers to each of five questions."""
    rows = [document.token_ids.tolist() for document in DATA.documents]
    return [
        Continuation(context_ids=rows[question][: 30 + 3 * question], continuation_ids=rows[answer][: 2 + answer])
        for question in range(5)
        for answer in range(4)
    ]


def direct_score(model: Decoder, asked: Continuation) -> tuple[float, bool]:
    """Sum of log p over the continuation and whether it is greedy, alone, without padding, batches or caches."""
    ids = [*asked.context_ids, *asked.continuation_ids]
    with torch.no_grad():
        log_probs_TV = model(torch.tensor([ids[:-1]])).double().log_softmax(-1)[0]
    places = range(len(asked.context_ids) - 1, len(ids) - 1)
    logprob = math.fsum(log_probs_TV[t, ids[t + 1]].item() for t in places)
    return logprob, all(int(log_probs_TV[t].argmax()) == ids[t + 1] for t in places)


def direct_greedy(model: Decoder, prompt: list[int], num_tokens: int) -> list[int]:
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(num_tokens):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("asked", [continuations(), choices()], ids=["texts", "choices"])
@pytest.mark.parametrize("batch_sequences", [1, 2, 8])
def test_scores_equal_a_direct_loop_whatever_shares_a_batch(asked: list[Continuation], batch_sequences: int) -> None:
    model = make_model(VOCAB_SIZE)
    scores = make_lm(TinyEngine(model), DATA, batch_sequences).score(asked)
    for score, one in zip(scores, asked, strict=True):
        logprob, is_greedy = direct_score(model, one)
        assert score.logprob == pytest.approx(logprob, abs=1e-4)
        assert score.is_greedy == is_greedy


def test_what_the_model_itself_would_say_is_greedy() -> None:
    model = make_model(VOCAB_SIZE)
    own = [direct_greedy(model, [EOS, 5 + i], 3) for i in range(5)]
    asked = [Continuation(context_ids=[EOS, 5 + i], continuation_ids=ids) for i, ids in enumerate(own)]
    other = [Continuation(context_ids=[EOS, 5 + i], continuation_ids=[*ids[:2], 1]) for i, ids in enumerate(own)]
    scores = make_lm(TinyEngine(model), DATA).score([*asked, *other])
    assert [score.is_greedy for score in scores] == [True] * 5 + [False] * 5


def test_a_context_that_several_continuations_share_is_run_once() -> None:
    engine = TinyEngine(make_model(VOCAB_SIZE))
    make_lm(engine, DATA, batch_sequences=4).score(choices())
    whole = sum(one.num_tokens for one in choices())
    assert engine.num_calls == 2 * 5  # one batch a question: its context, then its answers
    assert engine.num_positions < whole / 2


@pytest.mark.parametrize(("world_size", "num_pipeline_stages"), [(2, 1), (3, 1), (4, 2), (4, 4), (8, 1)])
def test_shares_of_all_ranks_add_up_to_bitwise_the_same_scores(world_size: int, num_pipeline_stages: int) -> None:
    model = make_model(VOCAB_SIZE)
    layout = Layout(world_size=world_size, num_pipeline_stages=num_pipeline_stages)
    for asked in (continuations(), choices()):
        alone = make_lm(TinyEngine(model), DATA).own_scores(asked, rank=0)
        shares = [make_lm(TinyEngine(model, layout), DATA).own_scores(asked, rank=rank) for rank in range(world_size)]
        assert torch.equal(torch.stack(shares).sum(0), alone)


@pytest.mark.parametrize("asked", [continuations(), choices()], ids=["texts", "choices"])
def test_every_rank_calls_the_engine_equally_often(asked: list[Continuation]) -> None:
    layout = Layout(world_size=4, num_pipeline_stages=2)
    calls = set()
    for rank in range(4):
        engine = TinyEngine(make_model(VOCAB_SIZE), layout)
        make_lm(engine, DATA).own_scores(asked, rank=rank)
        calls.add(engine.num_calls)
    assert len(calls) == 1


@pytest.mark.parametrize("batch_sequences", [1, 2, 8])
def test_greedy_text_equals_a_direct_loop_for_prompts_of_different_lengths(batch_sequences: int) -> None:
    model = make_model(VOCAB_SIZE)
    prompts = [[EOS], [EOS, 5], [9, 8, 7, 6, 5, 4], [11, 12], [13, 14, 15]]
    expected = [direct_greedy(model, prompt, 6) for prompt in prompts]
    lm = make_lm(TinyEngine(model), DATA, batch_sequences)
    assert lm.generate([Prompt(ids=prompt, max_new_tokens=6) for prompt in prompts]) == expected
    assert len({tuple(row) for row in expected}) > 1


def test_texts_end_at_eos_or_their_length_or_a_stop_string_each_by_itself() -> None:
    model = make_model(VOCAB_SIZE)
    prompts = [[EOS, first] for first in range(20, 32)]
    whole = [direct_greedy(model, prompt, 16) for prompt in prompts]
    stops = [DATA.tokenizer.decode(ids[2:3]) for ids in whole]
    asked = [
        Prompt(ids=prompt, max_new_tokens=3 + i, stop=(stop,) if stop and i % 2 else ())
        for i, (prompt, stop) in enumerate(zip(prompts, stops, strict=True))
    ]
    new = make_lm(TinyEngine(model), DATA, batch_sequences=5).generate(asked)
    for ids, prompt, of_whole in zip(new, asked, whole, strict=True):
        assert ids == of_whole[: len(ids)]
        text = DATA.tokenizer.decode(ids)
        if prompt.stop and len(ids) < prompt.max_new_tokens:
            assert prompt.stop[0] in text
            assert prompt.stop[0] not in DATA.tokenizer.decode(ids[:-1])
        else:
            assert len(ids) == prompt.max_new_tokens or of_whole[len(ids)] == EOS
    assert len({len(ids) for ids in new}) > 3


def test_a_sampled_text_follows_from_its_seed_alone_and_seeds_differ() -> None:
    model = make_model(VOCAB_SIZE)
    asked = [
        Prompt(
            ids=[EOS, *DATA.tokenizer.encode(SENTENCES[0][: 4 + seed])], max_new_tokens=8, temperature=0.8, seed=seed
        )
        for seed in range(6)
    ]
    in_batches = make_lm(TinyEngine(model), DATA, batch_sequences=4).generate(asked)
    alone = [make_lm(TinyEngine(model), DATA).generate([prompt])[0] for prompt in asked]
    assert in_batches == alone
    same_prompt = [Prompt(ids=[EOS], max_new_tokens=8, temperature=0.8, seed=seed) for seed in range(6)]
    assert len({tuple(ids) for ids in make_lm(TinyEngine(model), DATA).generate(same_prompt)}) > 3


def _in_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    lm = make_lm(TinyEngine(make_model(VOCAB_SIZE), Layout(world_size=2)), DATA)
    scores = [score.logprob for asked in (continuations(), choices()) for score in lm.score(asked)]
    texts = lm.generate([Prompt(ids=[EOS, 5 + i], max_new_tokens=2 + 3 * (i % 3)) for i in range(9)])
    Path(folder, f"rank-{rank}.json").write_text(json.dumps([scores, texts]))
    dist.destroy_process_group()


def test_two_real_processes_hold_bitwise_the_scores_and_texts_of_one(tmp_path: Path) -> None:
    mp.spawn(_in_process, args=(str(tmp_path),), nprocs=2)
    lm = make_lm(TinyEngine(make_model(VOCAB_SIZE)), DATA)
    scores = [score.logprob for asked in (continuations(), choices()) for score in lm.score(asked)]
    texts = lm.generate([Prompt(ids=[EOS, 5 + i], max_new_tokens=2 + 3 * (i % 3)) for i in range(9)])
    for rank in range(2):
        assert json.loads((tmp_path / f"rank-{rank}.json").read_text()) == [scores, texts]
