"""What a command line of `eval.run` names: the model, its tokenizer, the suite, and the documents it is measured on."""

import hashlib
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from lm_eval.api.model import LM

from eval.conductor import TokenModel
from eval.endpoint.config import Api, EndpointConfig
from eval.endpoint.lm import EndpointLM
from eval.harness import LARGEST_REPORT_BYTES, Subject
from eval.hugging_face_model import check_directory, hugging_face_model
from eval.requests import Continuation, Prompt, ScoredContinuation
from eval.text_model import TextModel
from eval.text_tokenizers import HuggingFaceTokenizer, RunTokenizer, TextTokenizer
from training.checkpoint.catalog import committed
from training.checkpoint.hugging_face import read_model_config
from training.checkpoint.manifest import read_manifest
from training.config.benchmark_checks import check_benchmarks
from training.config.data_schema import DataConfig
from training.config.eval_schema import SuiteConfig
from training.config.keys import no_such
from training.config.load import compose, load_frozen
from training.config.overrides import CONF_DIRECTORY
from training.config.run_directory import checkpoint_folders
from training.config.schema import Precision, RunConfig
from training.config.typed import to_run_config
from training.data.shards import PreparedData
from training.engine.process_group import launched_world
from training.errors import ConfigError
from training.find_run import is_run_directory
from training.plain_files import read_json, read_yaml

_OWN = ("checkpoint", "partner", "suite", "run", "output")
_PLACEMENT = ("max_memory_per_gpu", "max_cpu_memory", "offload_folder")
"""Where accelerate may put a Hugging Face directory's weights."""
_STAGE = "pretrain"
"""The one training stage of the config that is composed here; nothing is trained in it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A command line."""

    suite: str
    checkpoint: str | None = None
    partner: str | None = None
    run: Path | None = None
    placement: Mapping[str, str] = field(default_factory=dict)
    output: Path | None = None
    overrides: tuple[str, ...] = ()

    @classmethod
    def parse(cls, argv: Sequence[str]) -> Self | None:
        """Return what was asked for; None if that is help.

        Raises:
            ConfigError: not one model, or no suite.
        """
        words = [word for word in argv if not word.startswith("--local")]
        if not words or {"-h", "--help"} & set(words):
            return None
        pairs = [word.partition("=") for word in words]
        own = {name: value for name, _, value in pairs if name in (*_OWN, *_PLACEMENT)}
        if ("checkpoint" in own) == ("partner" in own):
            given = " ".join(f"{name}={own[name]}" for name in ("checkpoint", "partner") if name in own)
            remedy = "checkpoint=DIR, checkpoint=hf:DIR, partner=hf:DIR or partner=endpoint:FILE.yaml"
            raise ConfigError("model", given or "none", "one model is measured at a time", remedy)
        if "suite" not in own:
            raise ConfigError("suite", "none", "what is to be measured?", f"suite={' | '.join(_suites())}")
        return cls(
            suite=own["suite"],
            checkpoint=own.get("checkpoint"),
            partner=own.get("partner"),
            run=Path(own["run"]) if "run" in own else None,
            placement={name: own[name] for name in _PLACEMENT if name in own},
            output=Path(own["output"]) if "output" in own else None,
            overrides=tuple(
                word for word, (name, _, _) in zip(words, pairs, strict=True) if name not in (*_OWN, *_PLACEMENT)
            ),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """A model that is to be measured."""

    config: RunConfig
    """With its architecture and data; the layout is the command line's."""
    suite: SuiteConfig
    source: Path
    """The checkpoint, or the Hugging Face directory."""
    weights: str
    """What the report calls the weights."""
    output: Path
    own_data: DataConfig | None
    """What the run was trained on, whose tokenizer the model has; None for a model from elsewhere."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Partner:
    """A model that others run."""

    tokens: TokenModel
    lm: LM
    subject: Subject
    measured: Measured
    close: Callable[[], None]
    costs: Callable[[], dict[str, float]]
    """What it took, for the report."""


def engine_config(asked: Asked) -> Measured:
    """Return what is measured on our engine, under the layout that the command line asks for.

    Raises:
        ConfigError: the model, the suite or the layout cannot be.
        CorruptCheckpoint: the checkpoint has no manifest that can be read.
    """
    assert asked.checkpoint is not None
    nodes, per_node = launched_world()
    world = nodes * per_node
    layout = (
        ()
        if any(word.startswith("parallel") for word in asked.overrides)
        else (f"parallel={'zero3' if world > 1 else 'single'}",)
    )
    # A batch that any layout can divide; nothing is trained with it.
    sizes = (f"stages.{_STAGE}.micro_batch_sequences=1", f"stages.{_STAGE}.global_batch_sequences={8 * world}")
    config = compose([*_group_of(asked), *layout, *sizes, *asked.overrides], world=(nodes, per_node))
    scheme, _, rest = asked.checkpoint.partition(":")
    if scheme == "hf" and rest:
        config = replace(config, model=read_model_config(Path(rest)))
        return _measured(asked, config, source=Path(rest), weights=_named(asked.checkpoint, Path(rest)))
    source = _checkpoint_in(Path(asked.checkpoint))
    manifest = read_manifest(source)
    if not manifest.progress.training_stage:
        raise ConfigError(
            "checkpoint",
            asked.checkpoint,
            "it holds weights from elsewhere, without their tokenizer",
            "checkpoint=hf:DIR measures the Hugging Face directory that they came from",
        )
    trained = to_run_config(manifest.config)
    suites = config.eval.suites | trained.eval.suites
    if any(word.startswith((f"eval.suites.{asked.suite}.", "eval=")) for word in asked.overrides):
        suites |= config.eval.suites  # the command line speaks of these
    elsewhere = any(word.startswith("data.prepared_root=") for word in asked.overrides)
    prepared_root = (config if elsewhere else trained).data.prepared_root
    config = replace(
        config,
        model=trained.model,
        data=replace(trained.data, prepared_root=prepared_root),
        precision=trained.precision,
        eval=replace(config.eval, suites=suites),
    )
    weights = f"{source.name} of config {manifest.progress.config_hash}"
    return _measured(asked, config, source=source, weights=weights, own_data=config.data)


def open_partner(asked: Asked) -> Partner:
    """Return a model that others run, ready to be asked.

    Raises:
        ConfigError: there is no such model, or the suite cannot be.
        DataError: the held-out documents are not prepared.
    """
    assert asked.partner is not None
    if (world := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        reason = f"a partner's model is asked by one process, and {world} were started"
        raise ConfigError("partner", asked.partner, reason, "start it without a launcher")
    config = compose([*_group_of(asked), *asked.overrides])
    scheme, _, rest = asked.partner.partition(":")
    path = Path(rest)
    if scheme == "hf" and rest:
        check_directory(path)
        measured = _measured(asked, config, source=path, weights=_named(asked.partner, path))
        tokenizer = HuggingFaceTokenizer.load(path)
        lm: LM = hugging_face_model(
            path,
            prefix_token_id=tokenizer.eos_id,
            batch_size=measured.suite.batch_sequences,
            max_length=measured.suite.max_length,
            dtype="float32" if config.precision is Precision.fp32 else "bfloat16",
            max_memory_per_gpu=asked.placement.get("max_memory_per_gpu"),
            max_cpu_memory=asked.placement.get("max_cpu_memory"),
            offload_folder=Path(folder) if (folder := asked.placement.get("offload_folder")) else None,
        )
        close, costs = _nothing, _no_costs
    elif scheme == "endpoint" and rest:
        endpoint = read_endpoint(path)
        measured = _measured(asked, config, source=path, weights=f"{endpoint.model} at {endpoint.base_url}")
        partner = EndpointLM(endpoint)
        lm, close, costs = partner, partner.close, lambda: _costs(partner)
    else:
        raise ConfigError("partner", asked.partner, "names no model", "partner=hf:DIR or partner=endpoint:FILE.yaml")
    data = _data_of(asked, measured.suite)
    return Partner(
        # Without documents nothing is asked in tokens.
        tokens=TextModel(lm, RunTokenizer(data.tokenizer)) if data else _Unasked(),
        lm=lm,
        subject=Subject(data=data, prepared_root=Path(config.data.prepared_root)),
        measured=measured,
        close=close,
        costs=costs,
    )


def subject_of(asked: Asked, measured: Measured) -> tuple[Subject, TextTokenizer]:
    """Return what a model is measured on, and its own tokenizer.

    Raises:
        ConfigError: the suite measures held-out documents, and no run is named that has them.
        DataError: they are not prepared.
    """
    root = Path(measured.config.data.prepared_root)
    if measured.own_data is not None:
        data = PreparedData.open(measured.own_data)
        searched = data if measured.config.eval.contamination else None
        return Subject(data=data, prepared_root=root, training_data=searched), RunTokenizer.of(data)
    return Subject(data=_data_of(asked, measured.suite), prepared_root=root), HuggingFaceTokenizer.load(measured.source)


def read_endpoint(path: Path) -> EndpointConfig:
    """Return the endpoint that a YAML file describes; its journal counts from the file's folder.

    Raises:
        ConfigError: the file is none.
    """
    try:
        values: Any = read_yaml(path)
        journal = path.parent / str(values["journal"])
        return EndpointConfig(**{**values, "journal": journal, "api": Api(values.get("api", Api.chat))})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            "partner",
            path,
            f"describes no endpoint ({type(error).__name__}: {error})",
            "write base_url, model and journal as docs/evaluation.md shows",
        ) from error


class _Unasked:
    """The token model of a partner where no suite asks in tokens."""

    def score(self, continuations: Sequence[Continuation]) -> list[ScoredContinuation]:
        raise AssertionError("nothing is measured in tokens without documents")

    def generate(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        raise AssertionError("nothing is measured in tokens without documents")


def _measured(
    asked: Asked, config: RunConfig, *, source: Path, weights: str, own_data: DataConfig | None = None
) -> Measured:
    if asked.suite not in config.eval.suites:
        raise no_such("suite", asked.suite, "the suites", sorted({*config.eval.suites, *_suites()}))
    longest = config.model.max_sequence_length if asked.partner is None else sys.maxsize
    check_benchmarks(f"eval.suites.{asked.suite}", config.eval.suites[asked.suite], max_length=longest)
    output = _output(asked, source, own_data)
    _refuse_to_replace(output, weights)
    return Measured(
        config=config,
        suite=config.eval.suites[asked.suite],
        source=source,
        weights=weights,
        output=output,
        own_data=own_data,
    )


def _group_of(asked: Asked) -> list[str]:
    """Return the choice of the file in conf/eval that has the suite, unless the command line makes one."""
    nothing_between = f"stages.{_STAGE}.eval_suite=null"
    if any(word.startswith("eval=") for word in asked.overrides) or asked.suite not in _suites():
        return [nothing_between]
    return [f"eval={_suites()[asked.suite]}", nothing_between]


def _suites() -> dict[str, str]:
    """Return the suites that come with Autarky: name -> file in conf/eval."""
    found = {}
    for path in sorted(CONF_DIRECTORY.glob("eval/*.yaml")):
        values: Any = read_yaml(path)
        found |= dict.fromkeys(values["suites"], path.stem)
    return found


def _checkpoint_in(path: Path) -> Path:
    """Return the checkpoint at a path, or the newest one of the run directory that it is, on fast storage too."""
    folders = [path, path / "checkpoints"]
    if is_run_directory(path):
        folders = checkpoint_folders(load_frozen(path), path.resolve())
    return next(iter(committed(*folders)), path)


def _data_of(asked: Asked, suite: SuiteConfig) -> PreparedData | None:
    """Return the documents that a suite measures a model from elsewhere on; None if it measures none."""
    if suite.conversation_source is not None:
        key = f"eval.suites.{asked.suite}.conversation_source"
        reason = "conversations are measured in the tokens and the chat template of the run that was trained on them"
        raise ConfigError(key, suite.conversation_source, reason, f"{key}=null, or a checkpoint of that run")
    if suite.held_out_source is None:
        return None
    if asked.run is None:
        raise ConfigError(
            "suite",
            asked.suite,
            f"it measures held-out documents of source {suite.held_out_source}, and this model has none of its own",
            f"run=RUN_DIR of a run that was trained on them; or eval.suites.{asked.suite}.held_out_source=null",
        )
    return PreparedData.open(load_frozen(asked.run).data)


def _output(asked: Asked, source: Path, own_data: DataConfig | None) -> Path:
    """Return where the report goes: where it was asked for, or beside the run's own, or here."""
    if asked.output is not None:
        return asked.output
    if own_data is not None and source.parent.name == "checkpoints":
        return source.parent.parent / "eval" / "by_hand" / f"{asked.suite}-{source.name}.json"
    route = "engine" if asked.checkpoint is not None else (asked.partner or "").partition(":")[0]
    model = re.sub(r"[^A-Za-z0-9._-]+", "-", source.resolve().stem if route == "endpoint" else source.resolve().name)
    return Path(f"{asked.suite}-{route}-{model}.json")


def _refuse_to_replace(output: Path, weights: str) -> None:
    """Raise ConfigError if another model's report lies where one's would go."""
    try:
        there = read_json(output, largest_bytes=LARGEST_REPORT_BYTES).get("weights")
    except (OSError, ValueError, AttributeError):
        return  # nothing that could be compared
    if there != weights:
        reason = f"the report of {there} lies there, which would be replaced"
        raise ConfigError("output", output, reason, "output=OTHER.json")


def _named(name: str, directory: Path) -> str:
    """Return a Hugging Face directory's name with a hash of its config and of its weights' names, sizes and times."""
    digest = hashlib.sha256((directory / "config.json").read_bytes())
    for path in sorted(directory.glob("*.safetensors")):
        digest.update(f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}".encode())
    return f"{name} ({digest.hexdigest()[:12]})"


def _costs(partner: EndpointLM) -> dict[str, float]:
    """Return what an endpoint's answers took, as far as it is known."""
    usage = partner.client.usage()
    known = {
        "prompt_tokens": usage.input_tokens,
        "generated_tokens": usage.output_tokens,
        "generated_tokens_per_second": usage.output_tokens_per_second,
        "answers_without_count": usage.uncounted_answers,
        "possibly_billed_twice": partner.client.possibly_billed,
        "choices_without_a_letter": partner.unnamed_choices,
        "cost": usage.cost,
        "cost_per_million_tokens": usage.cost_per_million_tokens,
    }
    return {name: float(value) for name, value in known.items() if value is not None}


def _no_costs() -> dict[str, float]:
    return {}


def _nothing() -> None:
    """Close nothing."""
