"""No secret and no code gets into a config, and no refusal repeats one."""

import pytest

from training.config.arguments import parse_arguments
from training.config.load import compose
from training.config.overrides import expand_sweep
from training.errors import ConfigError

CANARY = "CANARY_9f3a1c77e0"

LOOKS_SECRET = [
    f"wandb.api_key={CANARY}",
    f"WANDB_API_KEY={CANARY}",
    f"+deepspeed.extra.api_key={CANARY}",
    f"+deepspeed.extra.wandb={{api_key: {CANARY}}}",
    f"+deepspeed.extra.a={{b: {{'hf-token': '{CANARY}'}}}}",
    f"+deepspeed.extra.list=[{{password: {CANARY}}}]",
    f"+deepspeed.extra.secret={CANARY}",
    f"wandb={{api_key: {CANARY}}}",
    f"wandb={{api_key: {CANARY}",
    f"wandb={{api_key: {CANARY}}},{{api_key: {CANARY}2}}",
    f"+deepspeed.extra.db_password={CANARY}",
    f"+deepspeed.extra.aws_secret_access_key={CANARY}",
    f"+deepspeed.extra.credentials={CANARY}",
    f"reporting.wandb.apikey={CANARY}",
    f"reporting.wandb={{token: {CANARY}}}",
    f"hf.token={CANARY}",
    f"run.root=https://me:{CANARY}@host/x",
    f"data.sources.kjv.path=s3://key:{CANARY}@bucket/x",
    f"+deepspeed.extra.url=postgres://u:{CANARY}@host",
]


@pytest.mark.parametrize("override", LOOKS_SECRET)
def test_what_looks_like_a_secret_is_refused_and_not_repeated(override: str) -> None:
    for read in (lambda: compose([override]), lambda: expand_sweep([override, "run.seed=1,2"])):
        with pytest.raises(ConfigError) as refused:
            read()
        assert CANARY not in str(refused.value)
        assert "environment" in refused.value.remedy


@pytest.mark.parametrize("variable", ["WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD", "my_token"])
@pytest.mark.parametrize(
    "override",
    [
        f"run.name={CANARY}",
        f"eval.suites.quick.prompts=[x{CANARY}y]",
        f"+deepspeed.extra.{CANARY}=1",
        f"run.id={CANARY}",
    ],
)
def test_the_value_of_a_secret_variable_is_refused_wherever_it_stands(
    variable: str, override: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, CANARY)
    with pytest.raises(ConfigError) as refused:
        compose([override])
    assert CANARY not in str(refused.value)
    assert variable in refused.value.reason


def test_what_only_sounds_like_a_secret_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_KEY", "/etc/ssl/private")  # a path is no secret
    monkeypatch.setenv("SHORT_TOKEN", "demo")
    config = compose(
        [
            "experiment=demo",
            "stages.pretrain.tokens=1000000",
            "eval.suites.quick.sample_tokens=4",
            "+deepspeed.extra.use_cls_token=true",
            "+deepspeed.extra.num_tokens=3",
            "+deepspeed.extra.pad_token=0",
            "+deepspeed.extra.monkey=banana",
            "+deepspeed.extra.tokenizer=bpe",
            "run.root=/etc/ssl/private/runs",
            "eval.suites.quick.prompts=['a key: none']",
        ]
    )
    assert config.deepspeed.extra["monkey"] == "banana"


RESOLVERS = [
    "${oc.env:HOME}",
    "${oc.env:HF_TOKEN,none}",
    "x${oc.env:HOME}y",
    "${ oc.env : HOME }",
    "${oc.decode:'1'}",
    "${oc.decode:${oc.env:HOME}}",
    "${oc.create:{a: 1}}",
    "${oc.select:run.seed}",
    "${oc.dict.keys:run}",
    "${oc.dict.values:run}",
    "${oc.deprecated:run.seed}",
    "${hydra:runtime.cwd}",
    "${now:%Y}",
    "${python_version:}",
    "${eval:'1+1'}",
    "${oc.${run.name}:HOME}",
    "${run.${oc.env:HOME}}",
]
PLACES = [
    "run.name={}",
    "run.root={}",
    "+deepspeed.extra.x={}",
    "+deepspeed.extra.x=[{}]",
    "+deepspeed.extra.x={{y: {}}}",
]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("resolver", RESOLVERS)
def test_no_resolver_is_asked(resolver: str, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", CANARY)
    quoted = '"' + resolver + '"' if place != "run.name={}" else resolver
    with pytest.raises(ConfigError) as refused:
        compose([place.format(quoted)])
    assert CANARY not in str(refused.value)


def test_another_value_of_the_config_may_be_named() -> None:
    assert compose(["run.name=seed-${run.seed}"]).run.name == "seed-0"


TARGETS = [
    *("os.system", "subprocess.run", "builtins.eval", "builtins.exec", "builtins.__import__", "builtins.open"),
    *("torch.load", "torch.hub.load", "pickle.loads", "runpy.run_path", "importlib.import_module", "os.execv"),
    *("training.train.main", "launch.submit.main", "hydra.utils.instantiate", "hydra.utils.get_method"),
    *("numpy.load", "yaml.unsafe_load", "shutil.rmtree", "pathlib.Path.unlink", "ctypes.CDLL", "code.interact"),
    *("torch.nn.Linear", "collections.OrderedDict", "os.environ.__class__", "training.errors.sys.modules"),
]
TARGET_PLACES = [
    "+deepspeed.extra._target_={}",
    "+deepspeed.extra.x={{_target_: {}}}",
    "+deepspeed.extra.x=[{{_target_: {}}}]",
    "+deepspeed.extra.x={{y: {{_target_: {}, _partial_: true}}}}",
    "+model._target_={}",
    "optimizer={{_target_: {}}}",
    "+stages._target_={}",
    "+data.sources.x={{_target_: {}}}",
    "+_target_={}",
]


@pytest.mark.parametrize("place", TARGET_PLACES)
@pytest.mark.parametrize("target", TARGETS)
def test_no_config_names_code(target: str, place: str) -> None:
    with pytest.raises(ConfigError):
        compose([place.format(target)])


@pytest.mark.parametrize("name", ["_partial_", "_args_", "_recursive_", "_convert_"])
def test_none_of_the_names_that_hydra_gives_a_meaning_gets_through(name: str) -> None:
    with pytest.raises(ConfigError, match="names code to run"):
        compose([f"+deepspeed.extra.x={{{name}: 1}}"])


@pytest.mark.parametrize(
    "override",
    [
        "hydra.searchpath=[/tmp]",
        "+hydra.searchpath=[/tmp]",
        "hydra/launcher=basic",
        "+hydra/job_logging=none",
        "model@hydra=tiny",
        "+model@hydra.searchpath=tiny",
        "hydra.job.chdir=true",
        "model=../../../etc/passwd",
        "+experiment=/etc/passwd",
        "experiment=file:///tmp/x",
        "model@_global_=../x",
    ],
)
def test_hydra_looks_for_files_nowhere_else(override: str) -> None:
    with pytest.raises(ConfigError):
        compose([override])


@pytest.mark.parametrize("option", ["--config-dir", "--config-path", "-cd", "-cp", "--config-name", "--package"])
def test_no_option_points_hydra_elsewhere_and_its_value_is_not_repeated(option: str) -> None:
    with pytest.raises(ConfigError, match="no such option") as refused:
        parse_arguments([f"{option}={CANARY}", "experiment=demo"])
    assert CANARY not in str(refused.value)
