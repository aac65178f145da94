"""Text to token batches: everything between a named source and what an engine trains on.

Preparation, in the order in which it runs:
prepare.py    builds a prepared folder, step by step, and commits it by one rename
settings.py   all that prepared data follows from, which names its folder
work_folder.py   one writer at a time; found again after a kill
workers.py    processes that do the work; progress.py says how far they are
readers/      rows of every kind of source
corpus.py     records of a source (records.py), each usable or with the reason why not; which are held out
chunks.py     a source as it was read, in Arrow files (chunk_files.py)
examination.py   signatures and benchmarks' items in a chunk: near_duplicates.py, text_overlap.py, benchmark_passages.py
selection.py  which records are used, in which split and shard
encoding.py   a shard of documents from text to files; encoding_chat.py the same of conversations and pairs
tokenizer.py  a Hugging Face directory's tokenizer, or a byte-level BPE that is trained
preparation_report.py   what it came to, in lines

chat.py       conversations to tokens, and which of them the model has to say; messages.py checks them, call_text.py
              writes functions and calls as text, tokenizer_directory.py reads a Hugging Face tokenizer's files

What is prepared, and reading it:
manifest.py   what a prepared folder holds
shard_files.py   files of one shard: writer and checked reader
stream.py     all shards of a source as one row of tokens, cut into records
shards.py     a whole prepared folder
order.py      sample index -> (source, draw) -> unit, pure, seekable and invertible; no torch
mixture.py    phases of a training stage's mixture: changes, limits of epochs
packing.py    lengths -> packs, best fit
pack_table.py    the packs of a source, made once and kept
units.py      what a source is cut into: windows, or packs of whole records
stage_order.py   which unit of which source each sample of a training stage is
loader.py     the samples and micro-batches of one training stage, stateless
batch.py      the unit of work of an engine
inspection.py, sample_ledger.py   what is in a batch; when a record was used
__main__.py   python -m training.data {prepare|inspect|used}
"""
