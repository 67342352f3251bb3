"""What a conversion or an export did, and whether its result says what its source says."""

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from janus_jax import __version__
from janus_jax.checkpoint.digest import Digests, require_one_config, tensors
from janus_jax.checkpoint.hf.keys import KeyEntry, Layout, key_table
from janus_jax.checkpoint.stored_model import StoredModel, open_model
from janus_jax.errors import ConversionError

Verify = Literal["none", "digest", "logits"]
VERIFY = get_args(Verify)
"""From the weakest to the strongest."""
REPORT = "conversion_report.json"


@dataclasses.dataclass
class Report:
    """conversion_report.json in the directory that was written."""

    source: str
    step: int | None
    model: dict[str, Any]
    stored_dtype: str  # of the source
    dtype: str  # of what was written
    verify: Verify
    layout: Layout | None = None  # of a Hugging Face directory that was written
    sha256: dict[str, str] = dataclasses.field(default_factory=dict)
    """Of every tensor that was written, by Hugging Face key (`digest.digest`); empty with verify none."""
    largest_logit_difference: float | None = None
    """Between source and result, with verify logits; 0 is expected where the dtype stays."""
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    tokenizer: bool = True
    """One went along."""
    run_sha256: str | None = None
    """Of what a run says of itself (configuration, data, step): which run's step the source is."""
    janus_jax: str = __version__

    @classmethod
    def of(cls, source: StoredModel, dtype: np.dtype, verify: Verify, layout: Layout | None = None) -> "Report":
        """A report in which nothing is done yet.

        Args:
            dtype: of what will be written.
        """
        model = dataclasses.asdict(source.config)
        found = cls(source.path, source.step, model, source.stored_dtype.name, np.dtype(dtype).name, verify, layout)
        there = source.tokenizer_directory is not None
        return dataclasses.replace(found, tokenizer=there, run_sha256=run_digest(source))

    def __str__(self) -> str:
        verified = {"none": "not verified", "digest": "every tensor compared"}.get(self.verify)
        if verified is None:
            verified = f"every tensor compared, largest difference of logits {self.largest_logit_difference:.3g}"
        return f"written in {self.dtype}; {verified}" + (
            "" if self.tokenizer else "; without a tokenizer: none is there"
        )

    def tensors(self, source: StoredModel) -> Iterator[tuple[KeyEntry, np.ndarray]]:
        """The tensors of the source; their digests, as they will be stored, are noted."""
        digests = Digests(self.sha256)
        for entry, block in tensors(source):
            if self.verify != "none":
                digests.note(entry, block, np.dtype(self.dtype))
            yield entry, block

    def finish(self, source: StoredModel, directory: Path) -> None:
        """Verifies what was written and writes the report beside it.

        Raises:
            ConversionError: a tensor, a key of the model config or the logits are not those of the source; names which.
        """
        if self.verify != "none":
            self._verify(source, open_model(directory))
        source.require_unchanged()
        if self.layout is not None and self.sha256:  # as the files call them
            names = (entry.key for entry in key_table(source.config, self.layout))
            self.sha256 = dict(zip(names, self.sha256.values(), strict=True))
        (directory / REPORT).write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n", encoding="utf-8")

    def _verify(self, source: StoredModel, written: StoredModel) -> None:
        with Timer(self, "digests"):
            if not self.sha256:  # others wrote it
                for _ in self.tensors(source):
                    pass
            require_one_config(source, written)  # digests say nothing of rope_theta, the window or epsilon
            Digests(self.sha256).require(written)
        if self.verify == "logits":
            from janus_jax.checkpoint.verify import largest_logit_difference

            with Timer(self, "logits"):
                found = self.largest_logit_difference = largest_logit_difference(source, written)
            if not math.isfinite(found) or (found and self.dtype == self.stored_dtype):
                raise ConversionError(f"{written.path}: its logits differ by {found:.3g} from those of {source.path}")


def check_verify(verify: str) -> None:
    """Raises ConversionError for a way to verify that there is not."""
    if verify not in VERIFY:
        raise ConversionError(f"verify={verify}: allowed: {', '.join(reversed(VERIFY))}")


def run_digest(source: StoredModel) -> str | None:
    """sha256 of what a run says of itself in the step's meta; None for anything else."""
    if not source.meta.get("config"):
        return None
    return hashlib.sha256(json.dumps(source.meta, sort_keys=True).encode()).hexdigest()


def read_report(directory: Path) -> dict[str, Any]:
    """conversion_report.json of a directory; empty where there is none."""
    try:
        found = json.loads((directory / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


class Timer:
    """Notes the seconds of a block in a report."""

    def __init__(self, report: Report, name: str):
        self._report, self._name = report, name

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._report.seconds[self._name] = round(time.perf_counter() - self._began, 3)
