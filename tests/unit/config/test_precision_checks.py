"""fp8 is refused where the device has none, and everywhere but in plans: no engine multiplies in it."""

import pytest

from launch.rehearse import main as rehearse
from training.config.load import compose
from training.errors import ConfigError, ExitCode
from training.planner.from_config import job_of
from training.planner.job import NumberFormat

EIGHT_GPUS = ["cluster.num_nodes=1", "parallel=zero3", "stages.pretrain.global_batch_sequences=32", "precision=fp8"]
WITH_FP8 = ["azure_nd_h100_v5", "azure_nd_h200_v5", "dgx_b200", "azure_nd_mi300x_v5", "meta_24k"]


@pytest.mark.parametrize("cluster", WITH_FP8)
def test_fp8_is_planned_with_the_devices_own_peak_and_attention_in_bf16(cluster: str) -> None:
    words = [f"cluster={cluster}", *EIGHT_GPUS]
    device = job_of(compose(words, to_plan=True), "pretrain").device
    assert device.peak_flops.keys() == {NumberFormat.fp8, NumberFormat.bf16}
    assert device.peak_flops[NumberFormat.fp8] == pytest.approx(2 * device.peak_flops[NumberFormat.bf16], rel=1e-3)
    with pytest.raises(ConfigError, match="no engine of this version multiplies in fp8") as caught:
        compose(words)
    assert (caught.value.key, caught.value.remedy) == ("precision", "precision=bf16")


@pytest.mark.parametrize(
    ("cluster", "name"), [("azure_ndm_a100_v4", "A100"), ("maia_100", "Maia 100"), ("local", "CPU")]
)
def test_fp8_is_refused_where_nothing_multiplies_it_even_to_plan(cluster: str, name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}.* has no units that multiply fp8") as caught:
        compose([f"cluster={cluster}", *EIGHT_GPUS], to_plan=True)
    assert "precision=bf16" in caught.value.remedy


def test_a_rehearsal_is_of_an_engines_program_so_not_in_fp8(capsys: pytest.CaptureFixture[str]) -> None:
    assert rehearse(["cluster=azure_nd_h100_v5", *EIGHT_GPUS]) == ExitCode.BAD_CONFIG
    assert "no engine of this version multiplies in fp8" in capsys.readouterr().err


def test_what_the_devices_give_in_fp8_is_a_speed() -> None:
    with pytest.raises(ConfigError, match="fp8_flops_per_second"):
        compose(["cluster.accelerator.fp8_flops_per_second=-1.0"])
