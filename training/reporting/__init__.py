"""What a run tells people: typed records, the log that keeps them, and views of that log.

records          one dataclass per kind of line in metrics.jsonl
metrics          append-only JSONL on disk (the truth): write, read, follow
log_writer       metrics.jsonl on a thread of its own: no disk holds training up
background       a view on a thread of its own: no terminal and no process does either
reporter         the facade that training uses: one call per record, on rank 0
console          view: progress on a terminal, plain lines elsewhere
event_lines      events as lines of text
wandb_view       view: starts and stops the process that feeds Weights & Biases
wandb_follower   that process: follows metrics.jsonl, so wandb can neither slow nor stop training
wandb_feed       what both do: feed one wandb run from a run directory, where the starts before got to
wandb_rows       what wandb gets of each record: a pure function over all of a run's records
wandb_fragments  the files of offline starts: where they end, and how they are made whole after a kill
send_to_wandb    sends what wandb lacks of a run (`python -m training.reporting.send_to_wandb RUN_DIR`)
tensorboard_view view: event files for TensorBoard (reporting.tensorboard)
dashboard        the team's view in Weights & Biases, as code (`python -m training.reporting.dashboard`)
process_log      logs/rank-NNNNN.log, written on a thread of its own
hosts            which ranks run on which host, in few words
starts           when starts of a run began and ended, as launch/ wrote it down
goodput          where the wall time of a run went, over all its attempts
summary          a run directory as plain facts
stage_summaries  its training stages and gates, part of these facts
run_config       its config.yaml as plain values, and the commands to go on with it or to repeat it
planned          plan.json: what was expected of it before it started
export           metrics.jsonl as CSV or Parquet tables (`python -m training.reporting.export RUN_DIR`)
evaluations      its evaluations side by side: metric × occasion
forecast         where the loss of a training stage is expected, and whether it has left that band
expert_health    how a model's experts are, in a sentence, and what helps
layer_health     how a model's layers learn, in a sentence, and what helps
item_tables      what became of each item of an evaluation, read from its report
report/          those facts as one self-contained HTML page (`python -m training.reporting RUN_DIR`)
charts           figures in the style of all pages
evaluation_page  the page of one evaluation by hand
pages            how pages are made from templates (*.j2), and that nothing in them is taken for markup
"""
