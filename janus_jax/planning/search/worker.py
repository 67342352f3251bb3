"""One cell of a sweep in a process of its own: a job as JSON on stdin, its result as one line of JSON in a file.

What a compiler leaves in memory, or a crash of it, ends with the process. The result appears by a rename, so that what
is there is whole, also where the sweep that asked for it is gone.
"""

import json
import sys
from pathlib import Path
from typing import Any

from janus_jax.config.run import RunConfig
from janus_jax.errors import ConfigError, ConversionError, DataError
from janus_jax.planning.compile import Refused, plan
from janus_jax.planning.search.cache_key import code
from janus_jax.storage.local import write_whole


def main() -> None:
    job = json.load(sys.stdin)
    print(json.dumps(work(job)))


def work(job: dict[str, Any]) -> dict[str, Any]:
    """`{plan: ...}` or `{error: ...}`, kept in `job["path"]` but for errors that may be of this machine."""
    if job["code"] != code():  # edited since the sweep began: the name of its result is not this program's
        return {"error": "the sources have changed since the sweep began; start it again"}
    config = RunConfig.model_validate(job["config"])
    try:
        found = plan(config, job["topology"], num_slices=job["num_slices"], chips=job["chips"])
        result = {"plan": found.to_json()}
    except Refused as error:
        result = {"error": str(error)}
    except (ConfigError, DataError, ConversionError) as error:
        return {"error": str(error)}
    keep(Path(job["path"]), result)
    return result


def keep(path: Path, result: dict[str, Any]) -> None:
    """Writes one line, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
