"""Answers that want to count as right without being so; each is the whole program for `add(a, b)`."""

HONEST = {
    "plain": "def add(a, b):\n    return a + b",
    "prints": "print('hello')\ndef add(a, b):\n    print(a, b)\n    return a + b",
    "subclass of int": "class Number(int):\n    pass\ndef add(a, b):\n    return Number(a + b)",
    "reads stdin": "import sys\nsys.stdin.read()\ndef add(a, b):\n    return a + b",
}
"""Right ones, however odd: they must pass."""

_RIGHT_LINES = r"""[\"returned\", 5]\n"""

DECEIVING = {
    "wrong": "def add(a, b):\n    return a - b",
    "ends with success before the test": "import sys\nsys.exit(0)",
    "ends with success at once": "import os\nos._exit(0)",
    "raises SystemExit when called": "def add(a, b):\n    raise SystemExit(0)",
    "ends with success when called": "import os\ndef add(a, b):\n    os._exit(0)",
    "atexit": "import atexit, os\natexit.register(os._exit, 0)\ndef add(a, b):\n    return None",
    "equals everything": """
class Everything:
    def __eq__(self, other):
        return True
    def __ne__(self, other):
        return False
    def __hash__(self):
        return 0
    def __bool__(self):
        return True
def add(a, b):
    return Everything()
""",
    "an int that equals everything": """
class Everything(int):
    __eq__ = lambda self, other: True
    __hash__ = int.__hash__
    __int__ = __index__ = lambda self: 0
def add(a, b):
    return Everything(0)
""",
    "a list that equals everything": """
class Everything(list):
    __eq__ = lambda self, other: True
    __len__ = lambda self: 10**9
def add(a, b):
    return Everything()
""",
    "patched builtins": """
import builtins
builtins.AssertionError = type("Quiet", (Exception,), {})
builtins.abs = builtins.len = builtins.sum = lambda *a: 0
builtins.isinstance = lambda *a: True
builtins.__import__ = lambda *a, **k: None
def add(a, b):
    return None
""",
    "patched json": """
import json, sys
json.dumps = lambda *a, **k: '["returned", true]'
for module in list(sys.modules.values()):
    for name in ("to_line", "from_line"):
        if hasattr(module, name):
            setattr(module, name, lambda *a: '["returned", true]\\n')
def add(a, b):
    return None
""",
    "patched test": "def check(function):\n    pass\ndef add(a, b):\n    return None",
    "a verdict on stderr": """
import os
os.write(2, b'\\n{"passed": true, "why": ""}\\n')
def add(a, b):
    os.write(2, b'\\n{"passed": true, "why": ""}\\n')
    os._exit(0)
""",
    "a verdict on every descriptor": """
import os
for number in range(64):
    try:
        os.write(number, b'\\n{"passed": true, "why": ""}\\n')
    except OSError:
        pass
def add(a, b):
    return None
""",
    "replies sent in advance": f"""
import os
for number in range(64):
    try:
        os.write(number, b"{_RIGHT_LINES}" * 1000)
    except OSError:
        pass
def add(a, b):
    return None
""",
    "looks for the test": """
import gc, os, sys
found = []
for thing in gc.get_objects():
    if isinstance(thing, dict) and "check" in thing:
        found.append(thing)
frame = sys._getframe()
while frame:
    found += [value for value in frame.f_locals.values() if "assert" in str(value)[:100_000]]
    frame = frame.f_back
for folder, _, names in os.walk("/code"):
    for name in names:
        text = open(os.path.join(folder, name)).read()
        if "SECRET" + "_OF_THE_TEST" in text:
            found.append(text)
def add(a, b):
    return a + b if any("SECRET" + "_OF_THE_TEST" in str(thing) for thing in found) else None
""",
    "NaN": "def add(a, b):\n    return float('nan')",
    "an object of its own": "def add(a, b):\n    return object()",
    "an endless iterator": "import itertools\ndef add(a, b):\n    return itertools.count()",
    "contains itself": "def add(a, b):\n    x = []\n    x.append(x)\n    return x",
    "a huge value": "def add(a, b):\n    return 'x' * 10**8",
    "a fraction that is slow to read": """
import os
def add(a, b):
    line = b'["returned", {"type": "Fraction", "of": "1e999999999"}]\\n'
    for number in range(3, 64):
        try:
            os.write(number, line)
        except OSError:
            pass
""",
    "replies without end": """
import os
def add(a, b):
    while True:
        for number in range(3, 64):
            try:
                os.write(number, b"[" * 65536)
            except OSError:
                pass
""",
    "never replies": "import time\ndef add(a, b):\n    time.sleep(10**6)",
    "closes everything and lives on": "import os, time\nos.closerange(0, 64)\ntime.sleep(10**6)",
    "kills what it sees": "import os\ndef add(a, b):\n    os.kill(-1, 9)\n    os.kill(os.getpid(), 9)",
    "takes its sandbox's time away": """
import os, resource
resource.prlimit(1, resource.RLIMIT_CPU, (0, 0))
def add(a, b):
    while True:
        if not os.fork():
            os._exit(0)
        os.wait()
""",
    "fork bomb when called": """
import os
def add(a, b):
    while True:
        try:
            os.fork()
        except OSError:
            pass
""",
    "no such function": "pass",
    "no Python": "def add(a, b:\n",
}
"""Must all count as wrong."""

TEST = '''
def check(candidate):
    """SECRET_OF_THE_TEST"""
    import random
    assert candidate(2, 3) == 5
    for _ in range(20):
        a, b = random.randint(0, 10**9), random.randint(0, 10**9)
        assert candidate(a, b) == a + b
'''
CONTEXT = 'def add(a, b):\n    """Return the sum."""\n'
