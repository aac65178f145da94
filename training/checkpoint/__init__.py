"""Checkpoints that belong to no layout.

manifest   what a checkpoint holds and how far the run was (JSON, no torch)
store      write and commit, scan, verify, read any range (safetensors; nothing is ever unpickled)
__main__   `python -m training.checkpoint {inspect|verify|import|export}`

Open weights in and out:
hugging_face     a Hugging Face directory as a source of weights, for any layout
import_weights   such a directory -> a checkpoint of step 0
export_weights   a checkpoint's weights -> such a directory, checked bit by bit
logits_check     the result in transformers against our decoder
tokenizer_files  the tokenizer beside it
tensor_stream    tensors a bounded piece at a time, bf16 <-> fp32
strict_json      JSON that others wrote
whole_directory  a directory that appears whole or not at all
"""
