"""Every payload with the place it is planted in and the door through which it is opened."""

import json
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from tests.drills.bounded import call, module
from tests.drills.damages import reseal
from tests.drills.payload_contents import (
    JSON_FILES,
    TENSOR_FILES,
    YAML_FILES,
    Plant,
    plain_pickle,
    torch_legacy,
    written,
)
from tests.drills.payload_data_cases import INDEX_FILES, MANIFEST_CHANGES, TOKENIZER_FILES, change_manifest
from tests.drills.payload_places import Places, adopt_prepared_file, adopt_tensor_file
from tests.unit.checkpoint.simulated_ranks import ALONE, fragments_of
from training.checkpoint.catalog import newest_whole
from training.checkpoint.load import CheckpointReader, load_checkpoint, load_weights
from training.checkpoint.snapshot import Snapshot
from training.config.load import load_frozen
from training.data.shards import PreparedData
from training.errors import ExitCode
from training.lease import Lease
from training.stages.ledger import Ledger

Work = Callable[[], int]
Door = Callable[[Places], Work]

RANK_FILE = "rank-00000.safetensors"


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One payload and one door."""

    name: str
    needs: str
    """The place it is planted in."""
    plant: Callable[[Places], object]
    work: Door
    codes: frozenset[int]
    """Exit codes that are right."""


def all_cases() -> list[Case]:
    """Return every case; those of Hugging Face directories only where there is a reader of these."""
    cases = [*_tensor_files(), *_manifests(), *_beside_a_manifest(), *_prepared_data(), *_run_directories()]
    if find_spec("training.checkpoint.hugging_face"):
        cases += _hugging_face()
    assert len({case.name for case in cases}) == len(cases)
    return cases


# -- doors ---------------------------------------------------------------------------------------------------------


def _verify(places: Places) -> Work:
    return module("training.checkpoint", "verify", str(places.newest))


def _inspect(places: Places) -> Work:
    return module("training.checkpoint", "inspect", str(places.newest))


def _resume(places: Places) -> Work:
    def resume() -> None:
        found, _ = newest_whole([places.checkpoints], ALONE)
        assert found is not None
        load_checkpoint(found, Snapshot(fragments_of(0, 1, None)), ALONE)

    return call(resume)


def _start_from(places: Places) -> Work:
    """`init_from=checkpoint:DIR`, which hashes no file."""
    snapshot = Snapshot(fragments_of(0, 1, None))
    return call(lambda: load_weights(lambda: CheckpointReader(places.newest), snapshot, ALONE))


def _report(places: Places) -> Work:
    return module("training.reporting", str(places.run))


def _submit(places: Places) -> Work:
    return module("launch.submit", *places.overrides, "resume=auto")


def _load_config(places: Places) -> Work:
    return call(lambda: load_frozen(places.run))


def _open_ledger(places: Places) -> Work:
    return call(lambda: Ledger.open(places.run, ["pretrain", "anneal"]))


def _take_lease(places: Places) -> Work:
    return call(lambda: Lease.take(places.run).release())


def _inspect_data(places: Places) -> Work:
    overrides = [text for text in places.overrides if not text.startswith("run.")]
    return module("training.data", "inspect", *overrides, "--batch", "pretrain:0")


def _held_out(places: Places) -> Work:
    config = places.config()
    return call(lambda: PreparedData.open(config.data).held_out_documents("kjv"))


def _import(places: Places) -> Work:
    return module("training.checkpoint", "import", f"hf:{places.hugging_face}", str(places.root / "imported"))


def _check(places: Places) -> Work:
    return module("launch.check", "experiment=smoke", f"init_from=hf:{places.hugging_face}")


# -- checkpoints ---------------------------------------------------------------------------------------------------


def _tensor_files() -> Iterable[Case]:
    def plant(content: Plant, adopt: bool, places: Places) -> None:
        content(places.newest / RANK_FILE, places.marker)
        if adopt:
            adopt_tensor_file(places.newest, RANK_FILE)

    for name, content in TENSOR_FILES.items():
        for adopt in (False, True):
            for door, codes in ((_verify, {6}), (_start_from, {6}), (_resume, {0})):
                yield Case(
                    name=f"{RANK_FILE} is {name}{', and the manifest says so' if adopt else ''}: {door.__name__}",
                    needs="checkpoints",
                    plant=partial(plant, content, adopt),
                    work=door,
                    codes=frozenset(codes),
                )


def _manifests() -> Iterable[Case]:
    def change(old: str, new: str, places: Places) -> None:
        path = places.newest / "manifest.json"
        text = path.read_text()
        assert old in text, old
        path.write_text(reseal(text.replace(old, new, 1)))

    step, shape = '"step": 4', '"shape": [\n    7,\n    4\n   ]'
    text = {
        "a path upwards": (RANK_FILE, "../../../../etc/hostname"),
        "an absolute path": (RANK_FILE, "/etc/hostname"),
        "a path with a null": (RANK_FILE, "rank-00000.safetensors\\u0000"),
        "a step of a million digits": (step, f'"step": {"9" * 1_000_000}'),
        "a step of 20 digits": (step, f'"step": {"9" * 20}'),
        "a step that is a text": (step, '"step": "4"'),
        "a step that is a list": (step, '"step": [4]'),
        "tokens that are an object": ('"tokens": 40', '"tokens": {"a": 1}'),
        "a huge shape": (shape, f'"shape": [{"9" * 18}, {"9" * 18}]'),
        "a million huge dims": (shape, f'"shape": [{", ".join(["9" * 18] * 1_000_000)}]'),
        "a shape of texts": (shape, '"shape": ["7", "4"]'),
        "a negative shape": (shape, '"shape": [-7, -4]'),
        "sizes of texts": ('"num_bytes": ', '"num_bytes": "x", "x": '),
        "a config that is a list": ('"config": {', '"config": [], "x": {'),
        "notes that are nested": ('"notes": {}', f'"notes": {{"a": {"[" * 50_000}{"]" * 50_000}}}'),
        "a row too few": ("[0, 0, 0, ", "[9, 9, 0, "),
        "a start beyond all": ("[0, 0, 0, ", f"[0, 0, {'9' * 30}, "),
    }
    for name, (old, new) in text.items():
        for door in (_inspect, _verify, _start_from):
            yield Case(
                name=f"manifest.json holds {name}, resealed: {door.__name__}",
                needs="checkpoints",
                plant=partial(change, old, new),
                work=door,
                codes=frozenset({6}),
            )
    for name, content in JSON_FILES.items():
        for door, codes in ((_inspect, {6}), (_verify, {6}), (_start_from, {6}), (_resume, {0})):
            yield Case(
                name=f"manifest.json is {name}: {door.__name__}",
                needs="checkpoints",
                plant=lambda places, content=content: content(places.newest / "manifest.json", places.marker),
                work=door,
                codes=frozenset(codes),
            )


def _beside_a_manifest() -> Iterable[Case]:
    """What others' programs would read in such a folder: nothing here does."""

    def plant(places: Places) -> None:
        (places.newest / ".metadata").write_bytes(plain_pickle(places.marker))
        for name in ("__0_0.distcp", "mp_rank_00_model_states.pt", "pytorch_model.bin", "rank-00002.pt"):
            (places.newest / name).write_bytes(torch_legacy(places.marker))

    for door in (_inspect, _verify, _start_from, _resume):
        yield Case(
            name=f"pickles beside a good manifest: {door.__name__}",
            needs="checkpoints",
            plant=plant,
            work=door,
            codes=frozenset({0}),
        )

    def link_the_folder(places: Places) -> None:
        outside = places.root / "outside"
        shutil.move(places.newest, outside)
        (outside / RANK_FILE).write_bytes(plain_pickle(places.marker))
        os.symlink(outside, places.newest)

    yield Case(
        name="the newest checkpoint is a link to a folder outside: _resume",
        needs="checkpoints",
        plant=link_the_folder,
        work=_resume,
        codes=frozenset({0}),
    )


# -- prepared data -------------------------------------------------------------------------------------------------


def _prepared_data() -> Iterable[Case]:
    def plant(content: Plant, name: str, adopt: bool, places: Places) -> None:
        content(places.prepared / name, places.marker)
        if adopt:
            adopt_prepared_file(places.prepared, name)

    files = (
        ("kjv/train-00000.index.npy", INDEX_FILES, _inspect_data),
        ("tokenizer/tokenizer.json", TOKENIZER_FILES, _inspect_data),
        ("kjv/held_out-00000.ids.index.npy", INDEX_FILES, _held_out),
    )
    for file, contents, door in files:
        for name, content in contents.items():
            for adopt in (False, True):
                yield Case(
                    name=f"{file} is {name}{', and the manifest says so' if adopt else ''}: {door.__name__}",
                    needs="prepared",
                    plant=partial(plant, content, file, adopt),
                    work=door,
                    codes=frozenset({7}),
                )
    for name, content in JSON_FILES.items():
        yield Case(
            name=f"the prepared manifest is {name}: _inspect_data",
            needs="prepared",
            plant=lambda places, content=content: content(places.prepared / "manifest.json", places.marker),
            work=_inspect_data,
            codes=frozenset({7}),
        )
    for name, change in MANIFEST_CHANGES.items():
        yield Case(
            name=f"the prepared manifest holds {name}: _inspect_data",
            needs="prepared",
            plant=lambda places, change=change: change_manifest(places.prepared / "manifest.json", change),
            work=_inspect_data,
            codes=frozenset({7}),
        )


# -- run directories -----------------------------------------------------------------------------------------------


def _run_directories() -> Iterable[Case]:
    numbers = {"step": "x", "loss": [1], "tokens": 10**400, "seconds": 1e308, "time": 1e300, "batch_id": {}, "lr": None}
    good = {"kind": "step", "time": 1.0, "step": 1, "stage": "<script>x</script>", "loss": 1.0, "grad_norm": 1.0}
    good |= {"lr": 1.0, "tokens": 1, "tokens_per_second": 1.0, "mfu": 0.1, "batch_id": "x", "attempt": 0, "seconds": 1}
    lines: dict[str, Plant] = {**JSON_FILES}
    for field, value in numbers.items():
        lines[f"a {field} of {str(value)[:9]}"] = _line({**good, field: value})
    lines["infinite seconds"] = _line({**good, "seconds": float("inf")})
    lines["an eval without prompts"] = _line(
        {"kind": "eval", "time": 1.0, "step": 1, "stage": "a", "suite": "b", "bits_per_byte": 1.0, "metrics": {}}
        | {"samples": [{}], "seconds": 1.0, "attempt": 0}
    )
    places: list[tuple[str, dict[str, Plant], tuple[tuple[Door, set[int]], ...]]] = [
        ("config.yaml", YAML_FILES, ((_load_config, {2}), (_submit, {2}))),
        ("overrides.yaml", YAML_FILES | _texts_as_yaml(), ((_report, {0}),)),
        ("stages.json", JSON_FILES | _ledgers(), ((_open_ledger, {6}), (_report, {0}))),
        ("environment.json", JSON_FILES, ((_report, {0}),)),
        ("metrics.jsonl", lines, ((_report, {0, 2, 8}),)),
        ("leases/000001.json", JSON_FILES | _leases(), ((_take_lease, {0}),)),
        ("leases/²³.json", {"a name that is no number": JSON_FILES["a text"]}, ((_take_lease, {0}),)),
    ]
    for file, contents, doors in places:
        for name, content in contents.items():
            for door, codes in doors:
                yield Case(
                    name=f"{file} is {name}: {door.__name__}",
                    needs="runs",
                    plant=lambda places, content=content, file=file: content(places.run / file, places.marker),
                    work=door,
                    codes=frozenset(codes),
                )


def _line(record: dict[str, object]) -> Plant:
    def plant(path: Path, _marker: Path) -> None:
        with path.open("a") as file:
            file.write(json.dumps(record) + "\n")

    return plant


def _text(content: object) -> Plant:
    return written(json.dumps(content).encode())


def _texts_as_yaml() -> dict[str, Plant]:
    return {"a number": _text(7), "an object": _text({"a": 1}), "a shell's words": _text(["run.id=$(touch x)", "; ls"])}


def _ledgers() -> dict[str, Plant]:
    entry = {"name": "pretrain", "status": "promoted", "checkpoint": "c", "evaluation": None, "gate": None}
    good = {"version": 1, "state": "running", "attempt": 0, "start_evaluation": None}
    broken: dict[str, object] = {
        "stages of texts": {**good, "stages": ["pretrain"]},
        "a name of a list": {**good, "stages": [{**entry, "name": ["pretrain"]}]},
        "a checkpoint of an object": {**good, "stages": [{**entry, "checkpoint": {"a": 1}}]},
        "metrics of texts": {**good, "stages": [{**entry, "evaluation": {"path": "x", "metrics": {"a": "b"}}}]},
        "an attempt of a text": {**good, "attempt": "7", "stages": [entry]},
        "an attempt of 400 digits": {**good, "attempt": 10**400, "stages": [entry]},
    }
    return {name: _text(content) for name, content in broken.items()}


def _leases() -> dict[str, Plant]:
    good = {"number": 1, "host": "a", "machine": "b", "pid": 1, "start_time": "2", "slurm_job": ""}
    good |= {"slurm_restart_count": 0, "released": False}
    broken: dict[str, object] = {
        "a path for a process": {**good, "pid": "../../etc/passwd\0"},
        "a count that is a text": {**good, "slurm_job": "1", "slurm_restart_count": "x"},
        "a process of 400 digits": {**good, "pid": 10**400},
        "an unknown field": {**good, "command": "touch x"},
    }
    return {name: _text(content) for name, content in broken.items()}


# -- Hugging Face directories --------------------------------------------------------------------------------------


def _hugging_face() -> Iterable[Case]:
    config, weights = "config.json", "model.safetensors"

    def only_pickles(places: Places) -> None:
        (places.hugging_face / weights).unlink()
        (places.hugging_face / "pytorch_model.bin").write_bytes(torch_legacy(places.marker))

    def change_config(changes: dict[str, object], places: Places) -> None:
        path = places.hugging_face / config
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        code = f"import os\nos.system('touch {places.marker}')\n"
        (places.hugging_face / "modeling_llama.py").write_text(code)

    def beside(places: Places) -> None:
        (places.hugging_face / "pytorch_model.bin").write_bytes(torch_legacy(places.marker))
        (places.hugging_face / "training_args.bin").write_bytes(plain_pickle(places.marker))
        auto = {"auto_map": {"AutoTokenizer": ["modeling_llama.T", None]}, "tokenizer_class": "T"}
        (places.hugging_face / "tokenizer_config.json").write_text(json.dumps(auto))
        change_config({}, places)

    def index(file: str, places: Places) -> None:
        keys = ["model.embed_tokens.weight", "model.norm.weight"]
        (places.hugging_face / weights).rename(places.root / "outside.safetensors")
        content = {"metadata": {}, "weight_map": dict.fromkeys(keys, file)}
        (places.hugging_face / "model.safetensors.index.json").write_text(json.dumps(content))

    def one(plant: Callable[[Places], object], name: str, codes: set[int], door: Door = _import) -> Case:
        return Case(
            name=f"Hugging Face: {name}: {door.__name__}",
            needs="hugging_face",
            plant=plant,
            work=door,
            codes=frozenset(codes),
        )

    refused = {int(ExitCode.BAD_CONFIG), int(ExitCode.CORRUPT_CHECKPOINT)}
    yield one(lambda _places: None, "nothing planted", {0})
    yield one(only_pickles, "pytorch_model.bin alone", refused)
    yield one(only_pickles, "pytorch_model.bin alone", {2}, _check)
    yield one(beside, "pickles and a tokenizer's code beside good weights", {0, *refused})
    code: dict[str, object] = {"auto_map": {"AutoModelForCausalLM": "modeling_llama.M"}}
    yield one(partial(change_config, code), "code of its own (auto_map)", {0, *refused})
    for key, value in {
        "hidden_size": 10**30,
        "num_hidden_layers": 10**9,
        "vocab_size": "32",
        "rope_theta": [1],
        "architectures": [{"a": 1}],
    }.items():
        yield one(partial(change_config, {key: value}), f"config.json with {key}={str(value)[:12]}", refused)
    for file in ("../outside.safetensors", "/etc/hostname", "a/../../outside.safetensors", "x.safetensors\0", "x.bin"):
        yield one(partial(index, file), f"an index that names {file!r}", refused)
    for name, content in JSON_FILES.items():
        yield one(
            lambda places, content=content: content(places.hugging_face / config, places.marker),
            f"config.json is {name}",
            refused,
        )
    for name, content in TENSOR_FILES.items():
        yield one(
            lambda places, content=content: content(places.hugging_face / weights, places.marker),
            f"{weights} is {name}",
            refused,
        )
