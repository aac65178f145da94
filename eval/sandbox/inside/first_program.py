"""The first program in a sandbox: it takes its limits upon itself for good, then becomes the script it was given.

The number of processes must be limited in here: outside it would count the user's other processes.
"""

import json
import os
import resource
import sys

for _name, _limits in json.loads(sys.argv[1]).items():
    resource.setrlimit(getattr(resource, _name), _limits)
os.closerange(3, 65536)
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
