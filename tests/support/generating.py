"""What each of several processes generates with a copy of stored weights, as JSON."""

import json
import sys
from pathlib import Path
from typing import Any

import jax

from janus_jax.checkpoint.stored_model import open_model
from janus_jax.generation.engine import Engine
from janus_jax.generation.requests import Request
from janus_jax.generation.sampling import SamplingOptions
from janus_jax.generation.stopping import StoppingOptions

REQUESTS = [
    Request([5, 6, 7 + i] * (i + 1), samples=2, stopping=StoppingOptions(8 + i), sampling=SamplingOptions(1.0))
    for i in range(5)
]
PAIRS = [([1, 2, 3], [4, 5]), ([7], [8] * 9)]


def told(engine: Engine) -> dict[str, Any]:
    """Ids of all texts, by request and sample, and log-probs."""
    texts: dict[str, list[int]] = {}
    for event in engine.generate(REQUESTS):
        texts.setdefault(f"{event.request}/{event.sample}", []).extend(event.ids)
    return {"texts": texts, "log_probs": [list(one.tokens) for one in engine.log_probs(PAIRS)]}


if __name__ == "__main__":  # in each process of tests.support.hosts
    directory = Path(sys.argv[1])
    engine = Engine.stored(open_model(directory / "hf"), rows=6, steps_per_call=4)
    copied = Engine.live(engine.config, engine.params, rows=6, steps_per_call=4)
    (directory / f"{jax.process_index()}.json").write_text(json.dumps(told(copied)))
