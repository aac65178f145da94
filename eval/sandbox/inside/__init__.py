"""What runs in a sandbox, on Python's standard library alone; sent there as text.

Map: `first_program` takes the limits · `answer` a model's program, whose function is called · `checker` the test that
calls it · `values` the language between the two.
"""
