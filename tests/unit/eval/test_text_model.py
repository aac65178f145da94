"""A model that is asked in text finds what the same model finds in tokens."""

import json
from pathlib import Path

import pytest
import tokenizers
from lm_eval.api.instance import Instance
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from eval.live_model import LiveModel
from eval.requests import Continuation, Prompt
from eval.text_model import TextModel
from eval.text_tokenizers import HuggingFaceTokenizer, RunTokenizer
from tests.unit.eval.tiny import SENTENCES, TinyEngine, make_data, make_lm, make_model, report_of
from training.config.eval_schema import SuiteConfig
from training.errors import ConfigError

DATA = make_data()
TOKENIZER = RunTokenizer(DATA.tokenizer)
EOS = TOKENIZER.eos_id
LM = make_lm(TinyEngine(make_model(DATA.tokenizer.vocab_size)), DATA)
LIVE = LiveModel(LM, TOKENIZER, prefix_id=EOS, max_length=400)


def test_continuations_and_texts_are_the_same_in_text() -> None:
    ids = [TOKENIZER.encode(sentence) for sentence in SENTENCES]
    asked = [Continuation(context_ids=[EOS], continuation_ids=row) for row in ids]
    in_text = TextModel(LIVE, TOKENIZER).score(asked)
    for ours, theirs in zip(LM.score(asked), in_text, strict=True):
        assert theirs.logprob == pytest.approx(ours.logprob, rel=1e-5)
        assert theirs.is_greedy == ours.is_greedy
    prompts = [Prompt(ids=[EOS, *row[:5]], max_new_tokens=6) for row in ids]
    new = TextModel(LIVE, TOKENIZER).generate(prompts)
    assert len(new) == len(prompts)


def test_rolling_text_is_scored_in_windows_that_do_not_overlap() -> None:
    text = " ".join(SENTENCES)
    ids = TOKENIZER.encode(text)
    short = LiveModel(LM, TOKENIZER, prefix_id=EOS, max_length=20)
    windows = list(short._windows(text))
    assert [token for window in windows for token in window.continuation_ids] == ids
    assert all(len(window.context_ids) + len(window.continuation_ids) <= 21 for window in windows)
    assert len(windows) > 3
    whole = next(iter(LIVE._windows(text)))
    assert whole.context_ids == [EOS]


def test_what_does_not_fit_is_refused_and_not_cut_in_silence() -> None:
    short = LiveModel(LM, TOKENIZER, prefix_id=EOS, max_length=20)
    request = Instance(
        request_type="generate_until", doc={}, arguments=("The wind", {"until": [], "max_gen_toks": 20}), idx=0
    )
    with pytest.raises(ConfigError, match="no room is left for the question"):
        short.generate_until([request])
    long = Continuation(context_ids=[EOS], continuation_ids=TOKENIZER.encode(" ".join(SENTENCES)))
    with pytest.raises(ConfigError, match="would be scored in part"):
        TextModel(short, TOKENIZER).score([long])


def test_special_tokens_are_stop_strings_and_templates_may_name_them(tmp_path: Path) -> None:
    words = {"<s>": 0, "</s>": 1, "<end>": 2, "a": 3, "b": 4}
    inner = tokenizers.Tokenizer(WordLevel(words, unk_token="<s>"))
    inner.pre_tokenizer = Whitespace()
    inner.add_special_tokens(["<s>", "</s>", "<end>"])
    inner.save(str(tmp_path / "tokenizer.json"))
    templates = [{"name": "default", "template": "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"}]
    config = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "chat_template": templates}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = HuggingFaceTokenizer.load(tmp_path)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "a"}], add_generation_prompt=True) == "<s>a"
    assert tokenizer.decode([3, 2, 4]).split() == ["a", "b"]
    assert tokenizer.spelled([3, 2, 4]).split() == ["a", "<end>", "b"]


def test_a_suite_without_documents_has_no_bits_per_byte() -> None:
    report = report_of(LM, DATA, SuiteConfig(prompts=["The wind"], sample_tokens=3))
    assert report.metrics == {}
    assert report.data_identity == ""
    assert [sample["prompt"] for sample in report.samples] == ["The wind"]
