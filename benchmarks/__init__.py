"""Repeatable measurements against peers: `python -m benchmarks` (`make bench`). Never part of the tests.

__main__        the command: measures, prints one page, writes docs/benchmarks.md with --write
contests        who competes with whom: engines on 2 ranks, pipelines on 4
throughput      tokens/s, CPU time and MFU of all contestants, in turns
start_up        seconds to the first optimizer step, by phase
check_seconds   seconds of `launch.check`
report          the page
tables          how it writes numbers
machine         what it ran on
crew            starts a contestant's ranks and gives them turns
rank            one rank of a contestant: the entry point of its processes
turns           the rank's side of a turn: trains, measures, answers
autarky         contestant: our engines and loader
ddp             contestant: our model in torch DDP with torch AdamW
fsdp2_pipeline  contestant: our layers in torch.distributed.pipelining over FSDP2
hf_trainer      contestant: the same model shape in the Hugging Face Trainer over DeepSpeed ZeRO-3
first_step      one rank of the Trainer, up to its first step
timed_train     one rank of training.train, with the times of its phases

checkpoint_contest     saving, resuming and changing the layout: the entrants, in rounds
checkpoint_report      the page's section about it
checkpoint_crew        starts an entrant's processes for one task, and DeepSpeed's converter
checkpoint_disk        the disk's own rate
checkpoint_rank        one rank of an entrant: trains, saves, measures; or loads and goes on
checkpoint_contestant  what an entrant does, and the training they share
checkpoint_autarky     entrant: our engine and saver
checkpoint_deepspeed   entrant: DeepSpeed's save_checkpoint, its universal format for another layout
checkpoint_dcp         entrant: torch.distributed.checkpoint over FSDP2, three ways of writing

data_contest         preparing data and loading it
preparation_contest  preparation beside the tokenizers library alone
timed_prepare        one preparation in a process of its own
loader_contest       our loader beside Hugging Face datasets
source_texts         texts that are on every machine

preference_contest          DPO beside TRL's DPOTrainer, and the page's section about it
preference_pairs            pairs of answers that are made on every machine, and their config
preference_autarky          contestant: our DPO, in packs
preference_padded           contestant: our DPO, a pair a row
preference_trl              contestant: DPOTrainer with its reference model in each step
preference_trl_precomputed  contestant: DPOTrainer with log-probabilities computed before

contamination     a command of its own: how fast training data is searched for the items of benchmarks
profile_pipeline  a command of its own: where the processor time of our pipeline's step goes
"""
