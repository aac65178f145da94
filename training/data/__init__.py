"""Text to token batches: everything between a named source and what an engine trains on.

corpus.py     documents of a source (embedded texts, the standard library, files); which documents are held out
tokenizer.py  byte-level BPE, trained on the training documents
chat.py       conversations to tokens, and which of them the model has to say; messages.py checks them, call_text.py
              writes functions and calls as text, tokenizer_directory.py reads a Hugging Face tokenizer's files
manifest.py   what a prepared folder holds; which settings give it its name
shard_files.py   files of one shard: writer and checked reader
stream.py     all shards of a source as one row of tokens, cut into records
shards.py     a whole prepared folder
prepare.py    builds a prepared folder and commits it by one rename
order.py      sample index -> (source, draw) -> unit, pure, seekable and invertible; no torch
mixture.py    phases of a training stage's mixture: changes, limits of epochs
packing.py    lengths -> packs, best fit
pack_table.py    the packs of a source, made once and kept
units.py      what a source is cut into: windows, or packs of whole records
stage_order.py   which unit of which source each sample of a training stage is
loader.py     the samples and micro-batches of one training stage, stateless
batch.py      the unit of work of an engine
__main__.py   python -m training.data {prepare|inspect}
"""
