"""Bring a run's export here.

The export lies in the run directory, exports/STEP, once the run has ended (export.hf=true). It is copied to
DIR.partial, compared with the bucket, and renamed. A copy that was cut off goes on. Nothing that exists is overwritten.
"""

import argparse
from pathlib import Path

from janus_jax.errors import ConfigError
from launch.context import Context
from launch.runs import pull
from launch.runs.snapshot import Reader


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the command's own arguments."""
    parser.description = __doc__
    parser.add_argument(
        "run", nargs="?", metavar="RUN", help="run directory, gs://BUCKET/...; default: that of this launch's run"
    )
    parser.add_argument("directory", nargs="?", metavar="DIR", help="default: exports/NAME-STEP; new, or empty")
    parser.add_argument("--step", type=int, metavar="N", help="this step; one that was not exported is converted here")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="of a step that is converted here; default: as stored"
    )


def run(context: Context, arguments: argparse.Namespace) -> None:
    """Pulls an export."""
    where, directory = arguments.run, arguments.directory
    if where is not None and not where.startswith("gs://"):
        if directory is not None:
            raise ConfigError(f"RUN {where}", "allowed: a run directory, gs://BUCKET/...")
        where, directory = None, where
    url = (where or _run_dir(context)).rstrip("/")
    source = pull.find(context.folder(url), arguments.step)
    target = Path(directory or f"exports/{url.rpartition('/')[2]}-{source.step}").expanduser()
    if source.exported:
        if arguments.dtype is not None:
            raise ConfigError(f"--dtype {arguments.dtype}", f"{source.url} was exported by the run; leave it out")
        pull.bring(source, target, context.say, dry_run=context.dry_run)
    elif context.dry_run:
        context.say(f"janus convert to-hf {url} {target} --step {source.step}")
        return
    else:
        pull.convert(source, target, ["--dtype", arguments.dtype] if arguments.dtype else [], context.say)
    context.say(f"next: vllm serve {target}")


def _run_dir(context: Context) -> str:
    run = Reader(context.records).read().run
    if run is None:
        raise ConfigError(context.records.url, "no run was started here; name a run directory, gs://BUCKET/...")
    if run.run_dir is None:
        raise ConfigError(run.run_id, f"janus {run.command[0]} writes no export; name a run directory, gs://BUCKET/...")
    if not run.run_dir.startswith("gs://"):
        raise ConfigError(
            run.run_dir, "lies on the machines; copy it from there: python -m launch ssh, or gcloud compute tpus scp"
        )
    return run.run_dir
