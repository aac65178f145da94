"""Tests of training/config: composing, checking, refusing and freezing."""
