"""The shape of the repository, held by tests: what import-linter and ruff cannot say."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import training

REPOSITORY = Path(__file__).parents[2]
PRODUCT = ("training", "eval", "launch")
SOURCES = sorted(path for folder in PRODUCT for path in (REPOSITORY / folder).rglob("*.py"))
ALL_PYTHON = sorted(
    path for folder in (*PRODUCT, "conf", "tests", "benchmarks") for path in (REPOSITORY / folder).rglob("*.py")
)


def names(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def test_the_package_under_test_is_this_checkout() -> None:
    # The package names are generic: an installed one from elsewhere would be imported without a word.
    assert Path(training.__file__).is_relative_to(REPOSITORY)


@pytest.mark.parametrize("path", ALL_PYTHON, ids=names)
def test_no_file_is_too_long(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 500, "which two things is it?"


@pytest.mark.parametrize("path", [path for path in ALL_PYTHON if path.name == "__init__.py"], ids=names)
def test_packages_hold_only_their_map(path: Path) -> None:
    body = ast.parse(path.read_text()).body
    assert len(body) == 1, "only a docstring: an import here would couple the torch-free parts to torch"
    assert isinstance(body[0], ast.Expr)


def test_no_file_has_a_name_that_says_nothing() -> None:
    vague = {"utils", "util", "helpers", "helper", "common", "misc"}
    assert not [names(path) for path in ALL_PYTHON if vague & set(path.with_suffix("").parts)]


@pytest.mark.parametrize("path", ALL_PYTHON, ids=names)
def test_the_builtin_eval_is_never_shadowed(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not [alias.name for alias in node.names if alias.name.split(".")[0] == "eval"]


UNPICKLING_MODULES = {
    *("pickle", "_pickle", "cPickle", "pickle5", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"),
    *("torch.hub", "torch.package", "torch.jit", "torch.serialization", "torch.distributed.checkpoint"),
    *("numpy.lib.npyio", "numpy.lib.format", "multiprocessing.connection"),
}
"""Modules that unpickle, or run what they read."""
UNPICKLING_NAMES = {
    *("torch.load", "torch.hub", "torch.jit.load", "torch.package", "torch.serialization", "torch.export.load"),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.full_load_all", "yaml.unsafe_load", "yaml.unsafe_load_all"),
    *("yaml.Loader", "yaml.FullLoader", "yaml.UnsafeLoader", "yaml.CLoader", "yaml.CFullLoader", "yaml.CUnsafeLoader"),
    *("numpy.lib.format.read_array", "numpy.lib.npyio", "logging.config.listen"),
}
UNPICKLING_ENDINGS = (
    *("_object_list", "gather_object", "send_object", "recv_object", "load_from_checkpoint", "from_pretrained"),
    *("read_pickle", "load_checkpoint_in_model", "load_state_dict_from_url", "load_state_dict_from_file"),
)


def unpickling(source: str) -> list[str]:
    """What of a source text can unpickle, under whatever name it was imported."""
    tree, known, found = ast.parse(source), {}, []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known |= {alias.asname or alias.name.split(".")[0]: alias.asname and alias.name for alias in node.names}
            imported = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            known |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            imported = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        unsafe = UNPICKLING_MODULES | UNPICKLING_NAMES
        found += [name for name in imported if any(f"{name}.".startswith(f"{module}.") for module in unsafe)]
        found += [name for name in imported if name.endswith(UNPICKLING_ENDINGS) or name.startswith("numpy.load")]
    safe_loads = set[ast.AST]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = full_name(node.func, known)
            told = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            only_tensors = told.get("use_safetensors") == "True" and told.get("trust_remote_code") == "False"
            if name == "numpy.load" and told.get("allow_pickle") == "False":
                safe_loads.add(node.func)
            if name.endswith(".from_pretrained") and only_tensors:
                safe_loads.add(node.func)
            if told.get("trust_remote_code", "False") != "False" or told.get("allow_pickle", "False") != "False":
                found.append(ast.unparse(node))
        if isinstance(node, ast.Attribute):
            name = full_name(node, known)
            unsafe = name in UNPICKLING_NAMES or name == "numpy.load" or name.endswith(UNPICKLING_ENDINGS)
            if unsafe and node not in safe_loads:
                found.append(name)
        elif isinstance(node, ast.Constant) and node.value in {"pickle", "torch.load", "trust_remote_code"}:
            found.append(f"the text {node.value!r}")  # importlib.import_module, getattr
    return found


def full_name(node: ast.AST, known: dict[str, str | None]) -> str:
    first, _, rest = ast.unparse(node).partition(".")
    return f"{known.get(first) or first}.{rest}" if rest else known.get(first) or first


@pytest.mark.parametrize("path", SOURCES, ids=names)
def test_nothing_is_ever_unpickled(path: Path) -> None:
    assert unpickling(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import joblib.memory",
        "from shelve import open as o",
        "import marshal as m",
        "from torch import load",
        "from torch import load as read",
        "import torch as t\nt.load(path)",
        "import torch\nread = torch.load",
        "import torch\ntorch.jit.load(path)",
        "import torch\ntorch.hub.load('a', 'b')",
        "from torch import hub",
        "from torch import jit",
        "from torch.distributed import checkpoint",
        "import torch.distributed.checkpoint as dcp",
        "import numpy as np\nnp.load(path)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "import numpy as n\nread = n.load",
        "from numpy import load",
        "import numpy as np\nnp.lib.format.read_array(file)",
        "from numpy.lib.format import read_array",
        "import yaml\nyaml.load(text, Loader=yaml.Loader)",
        "from yaml import unsafe_load",
        "from yaml import FullLoader",
        "import torch.distributed as dist\ndist.broadcast_object_list(things)",
        "from torch.distributed import all_gather_object",
        "import x\nx.read_pickle(path)",
        "AutoModel.from_pretrained(path)",
        "AutoModel.from_pretrained(path, use_safetensors=True, trust_remote_code=True)",
        "AutoModel.from_pretrained(path, trust_remote_code=False)",
        "import importlib\nimportlib.import_module('pickle')",
    ],
)
def test_every_way_to_unpickle_is_seen(source: str) -> None:
    assert unpickling(source)


def test_what_reads_plain_arrays_is_allowed() -> None:
    assert not unpickling("import numpy as np\nnp.load(path, allow_pickle=False)\nnp.fromfile(path)\nyaml.safe_load(t)")


def test_yaml_never_names_code() -> None:
    for path in sorted((REPOSITORY / "conf").rglob("*.yaml")):
        assert "_target_" not in path.read_text(), names(path)


def test_ci_calls_the_readme_test_command_and_nothing_else() -> None:
    commands = [
        line
        for line in (REPOSITORY / ".ci" / "run").read_text().splitlines()
        if line and not line.startswith(("#", "set ", "cd "))
    ]
    assert commands == ["make test"]
    assert "make test" in (REPOSITORY / "README.md").read_text()


def test_torch_free_parts_start_without_torch() -> None:
    code = (
        "import sys, launch.check, launch.submit, training.stages.ledger, eval.gates, training.checkpoint.manifest;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0


@pytest.mark.parametrize(
    ("module", "spared"),
    [
        ("training.composition", ["lm_eval", "transformers", "datasets", "pandas", "scipy.stats", "wandb"]),
        ("launch.submit", ["torch", "deepspeed", "scipy.optimize", "pandas"]),
    ],
)
def test_a_start_imports_nothing_slow_that_only_some_runs_use(module: str, spared: list[str]) -> None:
    code = f"import sys, {module}; print([name for name in {spared} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"


NAMES_CUDA = {
    "launch/hostfile.py": "CUDA_DEVICE_* are among the variables that a host's shell passes on",
    "launch/local.py": "CUDA_VISIBLE_DEVICES belongs to devices of that name, and launch may not ask DeepSpeed for it",
    "launch/preflight/node.py": "what it asks of these devices is asked by NVIDIA's own commands",
}
"""The only files whose code names one maker's devices: everything else asks DeepSpeed's accelerator, or the config."""


def naming_cuda(source: str) -> list[str]:
    """What of a source text says cuda in code; not in comments and docstrings."""
    tree = ast.parse(source)
    prose = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    found = []
    for node in ast.walk(tree):
        text = ""
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in prose:
            text = node.value
        elif isinstance(node, ast.Attribute):
            text = node.attr
        elif isinstance(node, ast.Name):
            text = node.id
        elif isinstance(node, ast.Import | ast.ImportFrom):
            text = ast.unparse(node)
        if "cuda" in text.lower():
            found.append(text)
    return found


@pytest.mark.parametrize("path", SOURCES, ids=names)
def test_no_code_names_one_makers_devices(path: Path) -> None:
    found = naming_cuda(path.read_text())
    assert bool(found) == (names(path) in NAMES_CUDA), found


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.cuda.synchronize()",
        "x.to('cuda:0')",
        "x.cuda()",
        "from torch import cuda as c",
        "import torch.cuda",
        "is_cuda = True",
        "os.environ['CUDA_VISIBLE_DEVICES']",
    ],
)
def test_every_way_to_name_them_is_seen(source: str) -> None:
    assert naming_cuda(source)
    assert not naming_cuda('"""Runs on cuda."""\nx = 1  # not on cuda')
