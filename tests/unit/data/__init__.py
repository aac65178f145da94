"""Tests of training/data: documents, tokenizer, shards, sample order, loader, commands."""
