"""The computation that all hosts share, while process 0 alone runs lm-evaluation-harness and says what to compute."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from janus_jax.generation.engine import Engine
from janus_jax.generation.requests import Request
from janus_jax.generation.sampling import SamplingOptions
from janus_jax.generation.scoring import Pair
from janus_jax.generation.stopping import StoppingOptions
from janus_jax.parallel import processes


class Together:
    """An engine on all hosts. Process 0 calls `score` and `generate`, and `finish` at the end; the others `follow`.

    Args:
        length: slots of a row of generated text (`memory.longest_row`), so that one program does for all.
    """

    def __init__(self, engine: Engine, length: int):
        self._engine, self._length = engine, length
        self.shards = engine.row_shards
        """Of rows, over devices."""
        self._computes = False

    def score(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        """Log-prob of each continuation, and whether it is the most probable one, token for token."""
        self._say("score", [[list(part) for part in pair] for pair in pairs])
        results = [(one.total, one.is_greedy) for one in self._engine.log_probs(pairs)]
        self._computes = False
        return results

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, list[int]]]:
        """Place and ids of each text of one sample, when it is finished. Take all of them."""
        self._say("generate", [dataclasses.asdict(request) for request in requests])
        growing: dict[int, list[int]] = {}
        for event in self._engine.generate(requests, length=self._length):
            growing.setdefault(event.request, []).extend(event.ids)
            if event.reason is not None:
                yield event.request, growing.pop(event.request)
        self._computes = False

    def finish(self) -> None:
        """Lets the others go on, unless a failed computation has ended them as well."""
        if not self._computes:
            processes.broadcast_large("harness", None)

    def follow(self) -> None:
        """What other processes than 0 do until `finish`."""
        while (asked := processes.broadcast_large("harness", None)) is not None:
            kind, values = asked
            if kind == "score":
                self._engine.log_probs(values)
            else:
                for _ in self._engine.generate(map(_request, values), length=self._length):
                    pass

    def _say(self, kind: str, values: list[Any]) -> None:
        processes.broadcast_large("harness", [kind, values])
        self._computes = True


def _request(values: dict[str, Any]) -> Request:
    stopping, sampling = StoppingOptions(**values.pop("stopping")), SamplingOptions(**values.pop("sampling"))
    return Request(**values, stopping=stopping, sampling=sampling)
