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


@pytest.mark.parametrize("path", SOURCES, ids=names)
def test_nothing_is_ever_unpickled(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            assert not {"pickle", "dill", "cloudpickle"} & {module.split(".")[0] for module in modules}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            call = ast.unparse(node.func)
            assert call not in {"torch.load", "yaml.load", "yaml.unsafe_load"}, call
            if call in {"np.load", "numpy.load"}:
                allowed = [keyword for keyword in node.keywords if keyword.arg == "allow_pickle"]
                assert allowed, "say allow_pickle=False"
                assert ast.unparse(allowed[0].value) == "False"
            assert not call.endswith(("_object_list", "all_gather_object", "gather_object")), f"{call} unpickles"


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
