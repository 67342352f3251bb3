"""conversion_report.json: what a conversion or an export did, and how its result was verified."""

import contextlib
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
from janus_jax.checkpoint.digest import digest, require_one_config, tensors
from janus_jax.checkpoint.hf.files import TEMPLATES
from janus_jax.checkpoint.hf.keys import KeyEntry, Layout, key_table
from janus_jax.checkpoint.stored_model import StoredModel, open_model
from janus_jax.errors import ConversionError, counted
from janus_jax.storage.local import Place
from janus_jax.text.served import CONVERSATIONS, check_served, read_conversations

Verify = Literal["none", "digest", "logits"]
VERIFY = get_args(Verify)
"""From the weakest to the strongest."""
REPORT = "conversion_report.json"
_MAX_NAMED = 5


def _no_outputs() -> Any:
    return None


@dataclasses.dataclass
class Report:
    """The content of conversion_report.json, which lies in the written directory."""

    source: str
    step: int | None
    model: dict[str, Any]
    stored_dtype: str  # of the source
    dtype: str  # of the written tensors
    verify: Verify
    layout: Layout | None = None  # of a written Hugging Face directory
    xxh3_128: dict[str, str] = dataclasses.field(default_factory=dict)
    """Digest (`digest.digest`) of every written tensor, by Hugging Face key; empty with verify=none."""
    largest_logit_difference: float | None = None
    """Between source and result, with verify=logits. If the dtype changes, this package computes both. If not, it is 0
    without computing: equal tensors and configs give equal logits. It shows that the result holds the model that was
    read, not that another library computes the same from it."""
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    tokenizer: bool = True
    """Whether the tokenizer was written too."""
    served: dict[str, Any] | None = None
    """Conversations of the training data that transformers reads from the written files as they were trained; None
    without such data or a chat template."""
    left_out: dict[str, str] = dataclasses.field(default_factory=dict)
    """What the source holds that is not written, and why: see `StoredModel.left_out`."""
    notes: list[str] = dataclasses.field(default_factory=list)
    """What a user should know of the source."""
    run_sha256: str | None = None
    """Identifies the run and step of the source: digest of its configuration, data and step (`run_digest`)."""
    janus_jax: str = __version__
    _outputs = _no_outputs()  # of the source, with verify=logits; no field of the report

    @classmethod
    def of(cls, source: StoredModel, dtype: np.dtype, verify: Verify, layout: Layout | None = None) -> "Report":
        """The report of a conversion that has not begun.

        Args:
            dtype: of the tensors to write.
        """
        return cls(
            source=source.path,
            step=source.step,
            model=dataclasses.asdict(source.config),
            stored_dtype=source.stored_dtype.name,
            dtype=np.dtype(dtype).name,
            verify=verify,
            layout=layout,
            tokenizer=source.tokenizer_directory is not None,
            left_out=_left_out(source, layout),
            notes=[] if layout is None else _notes(source),
            run_sha256=run_digest(source),
        )

    def __str__(self) -> str:
        verified = "not verified" if self.verify == "none" else "every tensor compared"
        if self.verify == "logits" and self.dtype == self.stored_dtype:
            verified += " and equal to its source, so logits are equal too"
        elif self.verify == "logits":
            difference = f"{self.largest_logit_difference:.3g}"
            verified += f", largest difference of logits {difference} (both computed by janus_jax)"
        parts = [f"written in {self.dtype}", verified]
        parts += [] if self.tokenizer else ["no tokenizer: the source has none"]
        if self.served is not None:
            checked, merged = self.served["checked"], self.served["merged"]
            meet = f"; in {merged} of them prompt and response have other ids where they meet in one text"
            what = f"{counted(checked, 'conversation')} checked{meet if merged else ''}"
            parts.append(f"in transformers, tokenizer and chat template give the ids of training ({what})")
        names = [name for name in self.left_out if not name.startswith("config.json: ")]
        names += [name for name in self.left_out if name.endswith("dropout")]
        if names:
            more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
            parts.append(f"left out: {', '.join(names[:_MAX_NAMED])}{more} ({REPORT} says why)")
        return "; ".join([*parts, *self.notes])

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Records the seconds of its block."""
        began = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - began, 3)

    def tensors(self, source: StoredModel) -> Iterator[tuple[KeyEntry, np.ndarray]]:
        """Yields the tensors of the source and records their digests in the dtype to write. Runs the source if that is
        another dtype."""
        outputs = self._outputs = self._new_outputs(source)
        for entry, block in tensors(source):
            if self.verify != "none":
                with np.errstate(over="ignore"):  # the writer refuses a tensor that overflows
                    self.xxh3_128[entry.key] = digest(block.astype(np.dtype(self.dtype), copy=False))
            if outputs is not None:
                outputs.add(entry, block)
            yield entry, block
            del block

    def _new_outputs(self, model: StoredModel) -> Any:
        if self.verify != "logits" or self.dtype == self.stored_dtype:
            return None
        from janus_jax.checkpoint.verify import Outputs

        return Outputs(model.config)

    def finish(self, source: StoredModel, directory: Path) -> None:
        """Verifies the written directory and writes the report into it.

        Raises:
            ConversionError: a tensor, a key of the model config or the logits differ from the source; names which.
        """
        if self.layout is not None:
            self.served = _check_served(source, directory)
        if self.verify != "none":
            self._verify(source, open_model(directory))
        source.require_unchanged()
        if self.layout is not None and self.xxh3_128:  # under the keys that the files use
            names = (entry.key for entry in key_table(source.config, self.layout))
            self.xxh3_128 = dict(zip(names, self.xxh3_128.values(), strict=True))
        (directory / REPORT).write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n", encoding="utf-8")

    def _verify(self, source: StoredModel, written: StoredModel) -> None:
        """Reads what was written, once. The source is compared as it was when it was read for the conversion."""
        with self.timed("verification"):
            if not self.xxh3_128:  # an export at the end of a run does not pass through `tensors`
                for _ in self.tensors(source):
                    pass
            require_one_config(source, written)  # digests do not cover rope_theta, the window or epsilon
            outputs = self._new_outputs(written)
            for entry, block in tensors(written):
                if digest(block) != self.xxh3_128[entry.key]:
                    raise ConversionError(written.path, f"tensor {entry.key} is not what was written; nothing is kept")
                if outputs is not None:
                    outputs.add(entry, block)
                del block
            if self.verify == "logits":
                self.largest_logit_difference = self._compare(source, written, outputs)

    def _compare(self, source: StoredModel, written: StoredModel, outputs: Any) -> float:
        if outputs is None:
            return 0.0
        from janus_jax.checkpoint.verify import largest_logit_difference

        difference = largest_logit_difference(self._outputs, outputs)
        if not math.isfinite(difference):
            raise ConversionError(written.path, f"logits differ by {difference:.3g} from those of {source.path}")
        return difference


def _check_served(source: StoredModel, directory: Path) -> dict[str, Any] | None:
    chat = source.chat_format()
    if chat is None or source.tokenizer_directory is None:
        return None
    conversations = list(read_conversations(Path(source.tokenizer_directory) / CONVERSATIONS))
    if not conversations:
        return None
    return dataclasses.asdict(check_served(directory, chat, conversations, whole=source.config.head == "value"))


def _notes(source: StoredModel) -> list[str]:
    chat = source.chat_format()
    return list(filter(None, [] if chat is None else [source.facts.replaced_template(chat)]))


def _left_out(source: StoredModel, layout: Layout | None) -> dict[str, str]:
    """What the source has that will not be written, and why.

    Args:
        layout: of the Hugging Face directory to write; None for a converted directory, which keeps more.
    """
    reasons = dict(source.left_out)
    if layout is not None:
        if source.template is not None:
            names = (name for name in source.facts.texts if name.startswith(f"{TEMPLATES}/"))
            reasons |= dict.fromkeys(names, f"the model was trained with the template {source.template}")
        if source.config.head == "value" and source.facts.generation:
            reasons["generation_config.json"] = "a reward model generates no text"
    return reasons


def check_verify(verify: str) -> None:
    """Raises ConversionError if `verify` is not one of VERIFY."""
    if verify not in VERIFY:
        raise ConversionError(f"verify={verify}: allowed: {', '.join(reversed(VERIFY))}")


def run_digest(source: StoredModel) -> str | None:
    """sha256 of a step's `meta` item; None for a model that is not a step of a run."""
    if not source.meta.get("config"):
        return None
    return hashlib.sha256(json.dumps(source.meta, sort_keys=True).encode()).hexdigest()


def read_report(directory: Path | Place) -> dict[str, Any]:
    """conversion_report.json of a directory; empty if it does not exist or cannot be read."""
    try:
        report = json.loads((directory / REPORT).read_bytes())
    except (OSError, ValueError):
        return {}
    return report if isinstance(report, dict) else {}
