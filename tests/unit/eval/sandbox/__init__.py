"""Tests of `eval.sandbox`; they need bubblewrap and a host that lets ordinary users make namespaces."""
