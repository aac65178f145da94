"""How a run stands, in about ten lines for a terminal."""

from training.reporting import formatting
from training.reporting.expert_health import expert_health
from training.reporting.summary import RunSummary


def text_summary(summary: RunSummary) -> str:
    """Return about ten lines for a terminal."""
    lines = [f"run {summary.run_id}: {summary.state.upper()}"]
    for gate in summary.blocking_gates:
        lines += [f"  gate after {gate.stage} BLOCKED: {reason}" for reason in gate.reasons]
    took = formatting.duration(summary.last_time_seconds - summary.first_time_seconds)
    lines.append(f"  {formatting.when(summary.first_time_seconds)}, {took}, {summary.num_attempts} attempt(s)")
    if summary.goodput and summary.goodput.wall_seconds:
        lines.append(f"  goodput {formatting.percent(summary.goodput.share)} of the wall time")
    lines.append(f"  {formatting.count(summary.tokens)} tokens in {len(summary.steps)} steps")
    for stage in summary.stages:
        loss = f", loss {stage.first_loss:.4f} -> {stage.last_loss:.4f}" if stage.first_loss is not None else ""
        bits = f", {stage.bits_per_byte:.4f} bits per byte" if stage.bits_per_byte is not None else ""
        lines.append(f"  {stage.name}: {stage.status}, {stage.num_steps} steps{loss}{bits}")
    lines += [f"  {health}"] if (health := expert_health(summary.steps)) else []
    lines.append(f"  {len(summary.checkpoints)} checkpoint(s), {len(summary.incidents)} incident(s)")
    lines += [f"  note: {note}" for note in summary.notes]
    lines.append(f"  continue: {summary.resume_command}")
    return "\n".join(lines)
