"""What scores texts from 0 to 1. `SCORERS` holds all of them."""

import dataclasses
import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from janus_jax.errors import ConfigError, first_line
from janus_jax.evaluation.toxicity.perspective import URL, Perspective

Scores = Sequence[float | str]
"""A score from 0 to 1 for each text, or a sentence that says why it has none."""


class Scorer(Protocol):
    """Made from options, it checks them; nothing is loaded or asked before `scores`."""

    name: str
    """Stands in every file and table."""
    settings: dict[str, Any]
    """What else decides the scores, such as a version."""
    at_once: int
    """Texts that a call should have, if there are so many."""

    def scores(self, texts: Sequence[str]) -> Scores:
        """Of texts that are not empty."""
        ...

    def close(self) -> None:
        """Nothing is scored any more."""
        ...


@dataclasses.dataclass(frozen=True)
class ScorerOptions:
    """Of all scorers; each takes its own."""

    journal: Path
    """Where a scorer that asks an API keeps replies."""
    key_variable: str = "PERSPECTIVE_API_KEY"
    url: str = URL
    language: str = "en"
    requests_a_second: float = 1.0
    concurrent: int = 4
    timeout_s: float = 30.0
    classifier: str | None = None
    label: str | None = None
    batch: int = 64


def perspective(options: ScorerOptions) -> Perspective:
    """Google's Perspective API."""
    return Perspective(
        options.journal,
        key_variable=options.key_variable,
        url=options.url,
        language=options.language,
        requests_a_second=options.requests_a_second,
        concurrent=options.concurrent,
        timeout_s=options.timeout_s,
    )


class Classifier:
    """A text classifier of transformers, which needs torch; on a GPU if there is one.

    Raises:
        ConfigError: no classifier is named, torch is missing, or the model or the label does not exist.
    """

    name = "classifier"

    def __init__(self, options: ScorerOptions):
        if options.classifier is None:
            raise ConfigError("--scorer classifier: needs --classifier, a directory or a hub id")
        self.at_once = options.batch
        try:
            from transformers.pipelines import pipeline

            self._pipeline: Any = pipeline("text-classification", model=options.classifier, top_k=None)
        except ImportError as error:
            raise ConfigError(f"--scorer classifier: needs torch, as on a GPU machine ({first_line(error)})") from error
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(f"--classifier {options.classifier}: cannot be loaded ({first_line(error)})") from error
        labels = list(self._pipeline.model.config.id2label.values())
        usual = [one for one in labels if one.lower() in ("toxic", "toxicity")]
        label = options.label or (usual[0] if len(usual) == 1 else None)
        if label not in labels:
            raise ConfigError(f"--label {options.label or 'is missing'}: allowed: {', '.join(map(str, labels))}")
        self._label = label
        self.settings: dict[str, Any] = {"model": options.classifier, "label": label}

    def scores(self, texts: Sequence[str]) -> Scores:
        made = self._pipeline(list(texts), batch_size=self.at_once, truncation=True)
        return [next(float(one["score"]) for one in scores if one["label"] == self._label) for scores in made]

    def close(self) -> None:
        """Nothing to do."""


class Profanity:
    """A small linear model of the package alt-profanity-check, which holds its weights: for trials and tests.

    Raises:
        ConfigError: the package is missing.
    """

    name = "profanity"
    at_once = 1000

    def __init__(self, options: ScorerOptions):
        try:
            from profanity_check import predict_prob
        except ImportError as error:
            raise ConfigError("--scorer profanity: needs pip install 'janus_jax[toxicity]'") from error
        self._predict = predict_prob
        self.settings: dict[str, Any] = {"version": importlib.metadata.version("alt-profanity-check")}

    def scores(self, texts: Sequence[str]) -> Scores:
        return [min(max(float(one), 0.0), 1.0) for one in self._predict(list(texts))]

    def close(self) -> None:
        """Nothing to do."""


SCORERS: dict[str, Callable[[ScorerOptions], Scorer]] = {
    "perspective": perspective,
    "classifier": Classifier,
    "profanity": Profanity,
}
"""Name of --scorer -> makes it."""


def is_papers(scorer: Mapping[str, Any]) -> bool:
    """Whether scores compare with the paper's: they are Perspective's toxicity."""
    same = scorer.get("attribute", "TOXICITY") == "TOXICITY" and scorer.get("url", URL) == URL
    return scorer.get("name") == "perspective" and same


def described(scorer: Mapping[str, Any]) -> str:
    """Name and settings in one line."""
    rest = ", ".join(f"{key} {value}" for key, value in scorer.items() if key != "name")
    return f"{scorer['name']} ({rest})" if rest else str(scorer["name"])
