"""The rehearsal of every rank's program."""
