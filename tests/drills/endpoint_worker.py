"""The client of the endpoint drill, in a process of its own that may be killed: asks everything, writes the answers.

    python -m tests.drills.endpoint_worker SETTINGS.json

Offline it fails as soon as anything makes a socket.
"""

import json
import sys
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance

from eval.endpoint.config import Api, EndpointConfig
from eval.endpoint.lm import EndpointLM
from training.durable_files import write_durably


def main(settings: dict[str, Any]) -> None:
    """Ask, and write down what was said and what it took."""
    if settings["endpoint"]["offline"]:
        sys.addaudithook(_refuse_sockets)
    journal, api = Path(settings["endpoint"].pop("journal")), Api(settings["endpoint"].pop("api"))
    lm = EndpointLM(EndpointConfig(journal=journal, api=api, **settings["endpoint"]))
    options = {"until": ["\n\n"], "max_gen_toks": settings["tokens"]}
    requests = [
        Instance("generate_until", {}, (prompt, options), i, metadata=(f"task-{i % 2}", i, 1))
        for i, prompt in enumerate(settings["prompts"])
    ]
    said = lm.generate_until(requests)
    usage = lm.client.usage()
    result = {
        "answers": said,
        "num_answers": usage.answers,
        "tokens": usage.input_tokens + usage.output_tokens,
        "uncounted": usage.uncounted_answers,
        "cost": usage.cost,
        "tokens_per_second": usage.output_tokens_per_second,
        "possibly_billed": lm.client.possibly_billed,
    }
    lm.close()
    write_durably(Path(settings["result"]), json.dumps(result))


def _refuse_sockets(event: str, arguments: tuple[Any, ...]) -> None:
    if event.startswith("socket."):
        raise RuntimeError(f"a socket is used offline: {event} {arguments!r}")


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
