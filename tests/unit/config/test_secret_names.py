"""What looks like a secret, in every place that asks."""

import pytest

from tests.unit.config.test_resume_policy import schema_keys
from training.config.secret_names import has_password, is_secret, is_secret_key, is_secret_variable


@pytest.mark.parametrize(
    "name",
    [
        *(
            "WANDB_API_KEY",
            "HF_TOKEN",
            "AWS_SECRET_ACCESS_KEY",
            "DB_PASSWORD",
            "MYTOKEN",
            "MY_TOKEN_2",
            "AZURE_CREDENTIALS",
        ),
        *("HTTP_AUTH", "db_pass", "SSH_PASSPHRASE", "GPGKEY"),
    ],
)
def test_variables_with_the_name_of_a_secret(name: str) -> None:
    assert is_secret_variable(name)


@pytest.mark.parametrize(
    "name", ["TOKENIZERS_PARALLELISM", "NCCL_DEBUG", "PATH", "KEYBOARD", "AUTHOR", "HF_HOME", "BYPASS", "MASTER_PORT"]
)
def test_other_variables(name: str) -> None:
    assert not is_secret_variable(name)


def test_keys_of_a_config() -> None:
    assert is_secret_key("wandb.api_key")
    assert is_secret_key("a.db-password")
    assert not is_secret_key("data.tokenizer")
    assert not is_secret_key("stages.pretrain.tokens")
    assert not is_secret_key("model.key_size")


def test_an_address_with_a_password_is_one_whatever_it_is_called() -> None:
    assert is_secret("WANDB_BASE_URL", "https://me:pw@wandb.example")
    assert not is_secret("WANDB_BASE_URL", "https://wandb.example:8080/a@b")
    assert has_password("x http://:pw@h y")


def test_no_section_of_the_schema_has_the_name_of_a_secret() -> None:
    sections = {key.rpartition(".")[0].replace("*", "name") for key in schema_keys()} - {""}
    parents = {section.rsplit(".", number)[0] for section in sections for number in range(section.count(".") + 1)}
    assert [key for key in sorted(sections | parents) if is_secret_key(key)] == []
