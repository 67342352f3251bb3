"""Compiles one cell of a sweep in its own process: reads a job as JSON from stdin, writes JSON to a file.

The compiler's memory, or its crash, ends with the process. A rename creates the result file, so it is complete even if
the sweep has ended.
"""

import json
import sys
from pathlib import Path
from typing import Any

from janus_jax.config.run import RunConfig
from janus_jax.errors import ConfigError, ConversionError, DataError
from janus_jax.planning.compile import ProgramRefused, plan
from janus_jax.planning.search.cache_key import code_hash
from janus_jax.storage.local import write_whole


def main() -> None:
    job = json.load(sys.stdin)
    print(json.dumps(run_job(job)))


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """Returns `{plan: ...}` or `{error: ...}`. Writes it to `job["path"]`, unless the error may be this machine's."""
    if job["code"] != code_hash():  # the path names the result of other code
        return {"error": "the sources have changed since the sweep began; start it again"}
    config = RunConfig.model_validate(job["config"])
    try:
        planned = plan(config, job["topology"], num_slices=job["num_slices"], chips=job["chips"])
        result = {"plan": planned.to_json()}
    except ProgramRefused as error:
        result = {"error": str(error)}
    except (ConfigError, DataError, ConversionError) as error:
        return {"error": str(error)}
    write_result(Path(job["path"]), result)
    return result


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Writes one line, completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
