"""Tests of `eval`: scoring, tasks, metrics, harness and gates, with a real tokenizer and a small torch model."""
