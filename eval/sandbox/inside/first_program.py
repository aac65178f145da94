"""The first program in a sandbox: told to go, it takes its limits upon itself for good and becomes the script.

    first_program.py DESCRIPTOR LIMITS ARGUMENT…      of the interpreter

The number of processes must be limited in here: outside it would count the user's other processes.
"""

import json
import os
import resource
import sys

if not os.read(int(sys.argv[1]), 1):
    os._exit(1)  # whoever started this is gone
for _name, _limits in json.loads(sys.argv[2]).items():
    resource.setrlimit(getattr(resource, _name), _limits)
os.closerange(3, 65536)
os.execv(sys.executable, [sys.executable, *sys.argv[3:]])
