"""What a conversion or an export did, and whether its result says what its source says."""

import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from janus_jax import __version__
from janus_jax.checkpoint.digest import Digests, tensors
from janus_jax.checkpoint.keys import KeyEntry, Layout, key_table
from janus_jax.checkpoint.source import Source, open_source
from janus_jax.errors import ConversionError

Verify = Literal["logits", "digest", "none"]
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
    janus_jax: str = __version__

    @classmethod
    def of(cls, source: Source, dtype: np.dtype, verify: Verify, layout: Layout | None = None) -> "Report":
        """A report in which nothing is done yet.

        Args:
            dtype: of what will be written.
        """
        model = dataclasses.asdict(source.config)
        return cls(source.path, source.step, model, source.stored_dtype.name, np.dtype(dtype).name, verify, layout)

    def __str__(self) -> str:
        verified = {"none": "not verified", "digest": "every tensor compared"}.get(self.verify)
        if verified is None:
            verified = f"every tensor compared, largest difference of logits {self.largest_logit_difference:.3g}"
        return f"written in {self.dtype}; {verified}"

    def tensors(self, source: Source) -> Iterator[tuple[KeyEntry, np.ndarray]]:
        """The tensors of the source; their digests, as they will be stored, are noted."""
        digests = Digests(self.sha256)
        for entry, block in tensors(source):
            if self.verify != "none":
                digests.note(entry, block, np.dtype(self.dtype))
            yield entry, block

    def finish(self, source: Source, directory: Path) -> None:
        """Verifies what was written and writes the report beside it.

        Raises:
            ConversionError: a tensor is not what the source holds; names it.
        """
        if self.verify != "none":
            self._verify(source, open_source(directory))
        if self.layout is not None:  # as the files call them; or all empty
            names = (entry.key for entry in key_table(source.config, self.layout))
            self.sha256 = dict(zip(names, self.sha256.values(), strict=False))
        (directory / REPORT).write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n", encoding="utf-8")

    def _verify(self, source: Source, written: Source) -> None:
        with Timer(self, "digests"):
            if not self.sha256:  # others wrote it
                for _ in self.tensors(source):
                    pass
            Digests(self.sha256).require(written)
        if self.verify == "logits":
            from janus_jax.checkpoint.verify import largest_logit_difference

            with Timer(self, "logits"):
                self.largest_logit_difference = largest_logit_difference(source, written)


def check_verify(verify: str) -> None:
    """Raises ConversionError for a way to verify that there is not."""
    if verify not in get_args(Verify):
        raise ConversionError(f"verify={verify}: allowed: {', '.join(get_args(Verify))}")


class Timer:
    """Adds the seconds of a block to a report."""

    def __init__(self, report: Report, name: str):
        self._report, self._name = report, name

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._report.seconds[self._name] = round(time.perf_counter() - self._began, 3)
