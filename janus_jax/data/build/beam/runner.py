"""Which runner executes a Beam build, and its options. Importing this module does not import Beam."""

import contextlib
import dataclasses
import importlib
import logging
import os
import re
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from janus_jax import errors
from janus_jax.errors import ConfigError, JanusError, first_line
from janus_jax.storage.bucket import is_url

DIRECT = "direct"
_SHORT = {"dataflow": "DataflowRunner", "flink": "FlinkRunner", "spark": "SparkRunner", "portable": "PortableRunner"}
_OURS = ("runner", "direct_num_workers", "direct_running_mode")  # set by --runner and --processes
_NAMED = "--beam-option {}: {}"
_OF_WORKER = re.compile(rf"^{re.escape(errors.__name__)}\.(\w+): (.*(?:\n.+)*)", re.MULTILINE)
"""An error of ours in the traceback of a worker: its class and message, which ends at an empty line."""
_STEP = re.compile(r" \[while running '[^']*'\]")
"""What Beam adds to messages."""


@dataclasses.dataclass(frozen=True)
class Runner:
    """A runner of Apache Beam.

    Args:
        name: direct (this machine), dataflow, flink, spark, portable, or a runner by its name in Beam.
        options: its options as KEY=VALUE, or KEY alone for a switch, without dashes.
    """

    name: str = DIRECT
    options: tuple[str, ...] = ()

    @property
    def is_direct(self) -> bool:
        return self.name.lower() in (DIRECT, "directrunner")

    def check(self, sources: Sequence[str | os.PathLike[str]]) -> None:
        """Checks what can be checked before files are read.

        Raises:
            ConfigError: Beam is not installed; an option is unknown or has a wrong value; workers of this runner could
                not reach a source.
        """
        try:
            importlib.import_module("apache_beam")
        except ImportError as error:
            hint = "pip install -c constraints-beam.txt 'janus_jax[beam]'"
            raise ConfigError(
                f"--runner {self.name}: needs the package apache-beam ({first_line(error)}); {hint}"
            ) from error
        self.pipeline_options(1)
        if self.is_direct:
            return
        shared = self._values().get("temp_location")
        if not shared:
            what = "is missing; workers exchange files there: a gs:// URL, or a directory that all of them mount"
            raise ConfigError(_NAMED.format("temp_location", what))
        here = [os.fspath(one) for one in sources if is_url(shared) and not is_url(one)]
        if here:
            raise ConfigError(f"source {here[0]}: workers of --runner {self.name} cannot read it; allowed: a gs:// URL")
        is_dataflow = _SHORT.get(self.name.lower(), self.name) == _SHORT["dataflow"]
        # without the second, Beam asks for gs:// without credentials
        needed = "apache_beam.runners.dataflow.internal.apiclient" if is_dataflow else "google_auth_httplib2"
        if is_dataflow or is_url(shared):
            try:
                importlib.import_module(needed)
            except ImportError as error:
                hint = "pip install -c constraints-beam.txt 'apache-beam[gcp]'"
                raise ConfigError(
                    f"--runner {self.name}: needs Google Cloud's packages ({first_line(error)}); {hint}"
                ) from error

    def scratch(self, directory: Path) -> str:
        """A new directory that the workers reach; `directory` is the incomplete output."""
        if self.is_direct:
            return os.fspath(directory / "beam")
        return f"{self._values()['temp_location'].rstrip('/')}/janus-build-{uuid.uuid4().hex}"

    def beam_runner(self) -> Any:
        """What `apache_beam.Pipeline` takes as its runner."""
        if not self.is_direct:
            return _SHORT.get(self.name.lower(), self.name)
        from apache_beam.runners.portability.fn_api_runner import FnApiRunner  # pyright: ignore[reportMissingImports]

        return FnApiRunner()  # Beam's name "DirectRunner" may download another runner

    def pipeline_options(self, processes: int) -> Any:
        """Beam's options.

        Args:
            processes: worker processes of the direct runner.

        Raises:
            ConfigError: an option is unknown or has a wrong value.
        """
        from apache_beam.options.pipeline_options import PipelineOptions  # pyright: ignore[reportMissingImports]

        logging.getLogger("apache_beam").setLevel(logging.ERROR)
        flags = [f"--{key}={value}" if value else f"--{key}" for key, value in self._values().items()]
        if self.is_direct:
            mode = "multi_processing" if processes > 1 else "in_memory"
            flags += [f"--direct_num_workers={processes}", f"--direct_running_mode={mode}"]
        try:
            known = PipelineOptions(flags).get_all_options()
        except SystemExit as error:  # argparse has printed why
            raise ConfigError(f"--beam-option {' '.join(self.options)}: Beam refuses a value") from error
        for key in self._values():
            if key not in known:
                raise ConfigError(_NAMED.format(key, "Beam has no such option"))
            if key in _OURS:
                raise ConfigError(_NAMED.format(key, "is set by --runner and --processes"))
        return PipelineOptions(flags, pipeline_type_check=False)

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Inside, an error that the pipeline raises is one of ours: that of the worker, if it raised one of ours.

        Raises:
            JanusError: another error ended the pipeline.
        """
        try:
            yield
        except JanusError as error:  # of a worker in this process
            error.args = tuple(_STEP.sub("", str(part)) for part in error.args)
            raise
        except Exception as error:  # runners raise many types, with the traceback of a worker as text
            text = _STEP.sub("", str(error))
            if ours := _OF_WORKER.findall(text):
                name, message = ours[-1]
                raise getattr(errors, name, JanusError)(message) from error
            raise JanusError(f"--runner {self.name}: the pipeline failed: {_last_line(text)}") from error

    def _values(self) -> dict[str, str]:
        values: dict[str, str] = {}
        for option in self.options:
            key, _, value = option.partition("=")
            key = key.strip().lstrip("-")
            if not key:
                raise ConfigError(_NAMED.format(repr(option), "allowed: KEY=VALUE"))
            if key in values:
                raise ConfigError(_NAMED.format(key, "is given twice"))
            values[key] = value
        return values


def _last_line(text: str) -> str:
    """The line of an error that says most: of a traceback the last."""
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if len(lines) > 1 and "Traceback" in text else first_line(text)
