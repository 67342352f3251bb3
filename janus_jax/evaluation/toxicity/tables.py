"""The table of toxicity beside the paper's, and a picture of each prompt's highest score."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from janus_jax.errors import ConfigError, counted
from janus_jax.evaluation.intervals import Cell
from janus_jax.evaluation.paper import paper
from janus_jax.evaluation.picture import plain, write
from janus_jax.evaluation.result_table import Row, Table
from janus_jax.evaluation.toxicity import figures
from janus_jax.evaluation.toxicity.generations import PERPLEXITY_MODEL, SCORER, Generation, only
from janus_jax.evaluation.toxicity.perspective import ENDS
from janus_jax.evaluation.toxicity.protocol import LEAST_PERPLEXITY_LEFT_OUT, SAMPLES, TOXIC
from janus_jax.evaluation.toxicity.scorers import described, is_papers
from janus_jax.evaluation.toxicity.scoring import unscored

MARK = "not comparable: the paper's scorer was Perspective API"


def table(files: Mapping[str, Sequence[Generation]], scorer_name: str | None = None) -> Table:
    """One row for each file, and two more where prompts of both kinds of toxicity are known.

    Args:
        files: name in the table -> rows.
        scorer_name: of files with scores that do not say who made them.

    Raises:
        ConfigError: no file has scores, files have different scorers or perplexity models, or nobody says who scored.
        DataError: rows of a file have different scorers or perplexity models.
    """
    scorer = _scorer(files, scorer_name)
    model = _perplexity_model(files)
    rows, notes = [], [f"scorer: {described(scorer)}"]
    notes += [] if model is None else [f"perplexity under {model}"]
    for name, own in files.items():
        rows += list(_rows(name, own))
        notes += [f"{name}: {line}" for line in _notes(own, model)]
    notes += [f"a score of {TOXIC} or more is toxic; means over prompts, with 95 % bootstrap intervals over prompts"]
    if not is_papers(scorer):
        notes += [f"these scores are not Perspective's, so toxicity does not compare with the paper's; {ENDS}"]
    elif "from" in scorer:
        notes += [f"that {scorer['from']} holds scores of Perspective's TOXICITY is not checked"]
    settings: dict[str, Any] = {"scorer": scorer, "perplexity_model": model, "threshold": TOXIC}
    settings["generation"] = {name: _settings(own) for name, own in files.items()}
    columns = [*paper("toxicity")["columns"], "prompts"]
    title = "RealToxicityPrompts"
    return Table("toxicity", title, columns, rows, notes, settings, "toxicity", "" if is_papers(scorer) else MARK)


def draw(files: Mapping[str, Sequence[Generation]], scorer: str, path: Path) -> None:
    """Writes an SVG: for each file, the share of prompts whose highest score is at least so high.

    Raises:
        StorageError: it cannot be written.
    """
    import numpy as np

    def fill(figure: Any) -> None:
        axis = figure.subplots()
        for name, rows in files.items():
            highest = np.sort(figures.maxima(rows))
            if len(highest):
                shares = 1 - np.arange(len(highest)) / len(highest)
                places = np.concatenate([[0.0], np.repeat(highest, 2), [1.0]])
                heights = np.concatenate([[1.0, 1.0], np.repeat(shares[1:], 2), [0.0, 0.0]])
                axis.plot(places, heights, label=plain(name))
        axis.axvline(TOXIC, color="grey", lw=1, ls="--")
        axis.set_xlim(0, 1)
        axis.set_ylim(0, 1.02)
        axis.set_xlabel(f"highest toxicity of a prompt's continuations ({plain(scorer)}); dashed: {TOXIC}")
        axis.set_ylabel("share of prompts with at least that")
        axis.legend(fontsize=9)

    write(path, (7.5, 4.2), fill)


def _rows(name: str, rows: Sequence[Generation]) -> Iterator[Row]:
    yield _row(name, rows)
    known = [(row, row.prompt_toxicity) for row in rows if row.prompt_toxicity is not None]
    toxic = [row for row, toxicity in known if toxicity >= TOXIC]
    if toxic and len(known) > len(toxic):
        yield _row(f"{name}, prompts below {TOXIC}", [row for row, toxicity in known if toxicity < TOXIC])
        yield _row(f"{name}, prompts of {TOXIC} or more", toxic)


def _row(name: str, rows: Sequence[Generation]) -> Row:
    return Row.from_cells(name, [*figures.figures(rows), Cell(len(rows))])


def _notes(rows: Sequence[Generation], model: str | None) -> Iterator[str]:
    """What is missing, and what differs from the protocol."""
    samples = [one for row in rows for one in row.samples]
    if short := [len(row.samples) for row in rows if len(row.samples) < SAMPLES]:
        what = f"{counted(len(short), 'prompt')} with fewer than {SAMPLES} continuations (fewest {min(short)})"
        yield f"{what}: their maxima are lower than the protocol's"
    if more := sum(len(row.samples) > SAMPLES for row in rows):
        yield f"{counted(more, 'prompt')} with more than {SAMPLES} continuations: their maxima are higher"
    for reason, count in unscored(rows).most_common():
        yield f"{counted(count, 'continuation')} without a score: {reason}; they count nowhere"
    if none := len(rows) - len(figures.maxima(rows)):
        yield f"{counted(none, 'prompt')} without any score count in neither column of toxicity"
    if empty := sum(not one.text.strip() for one in samples):
        yield f"{counted(empty, 'continuation')} without text have no part in dist-2 and dist-3"
    highest = figures.maxima(rows)
    if same := int((highest == TOXIC).sum()):
        above = (highest > TOXIC).mean()
        yield f"{counted(same, 'prompt')} with a maximum of exactly {TOXIC} (counting only higher ones: {above:.3f})"
    if model is not None:
        known = [one.perplexity for one in samples if one.perplexity is not None]
        high = sum(one >= LEAST_PERPLEXITY_LEFT_OUT for one in known)
        if missing := len(samples) - len(known):
            yield f"{counted(missing, 'continuation')} without a perplexity"
        if high:
            least = f"{LEAST_PERPLEXITY_LEFT_OUT:,.0f}"
            yield f"{counted(high, 'continuation')} with a perplexity of {least} or more left out of its mean"
    if chats := sum(row.is_chat for row in rows):
        part = "prompts" if chats == len(rows) else f"{chats:,} of {len(rows):,} prompts"
        yield f"{part} were messages of a chat; which way the paper took is not known"
    else:
        yield "the model went on with the prompts as text; which way the paper took is not known"


def _scorer(files: Mapping[str, Sequence[Generation]], name: str | None) -> dict[str, Any]:
    given = {}
    for file, rows in files.items():
        scorer = only(rows, SCORER)
        scorer = {"name": scorer} if isinstance(scorer, str) and scorer.strip() else scorer
        if not any(one.toxicity is not None for row in rows for one in row.samples):
            raise ConfigError(f"{file}: has no scores; first: janus measure toxicity score")
        if scorer is None and name is None:
            raise ConfigError(f"{file}: does not say who scored; name the scorer with --scorer")
        if scorer is not None and not (isinstance(scorer, Mapping) and isinstance(scorer.get("name"), str)):
            raise ConfigError(f"{file}: scorer {scorer!r}: allowed: an object with name")
        given[file] = {"name": name} if scorer is None else dict(scorer)
    first = next(iter(given))
    for file, scorer in given.items():
        if _same(scorer) != _same(given[first]):
            what = f"is scored by {described(scorer)}, but {first} by {described(given[first])}"
            raise ConfigError(f"{file}: {what}; all files of a table need the same scorer")
    return given[first]


def _same(scorer: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in scorer.items() if key != "from"}


def _perplexity_model(files: Mapping[str, Sequence[Generation]]) -> str | None:
    models = {}
    for file, rows in files.items():
        if any(one.perplexity is not None for row in rows for one in row.samples):
            models[file] = str(only(rows, PERPLEXITY_MODEL) or "a model that the file does not name")
    if len(set(models.values())) > 1:
        (one, first), (other, second) = list(Counter(models).items())[:2]
        raise ConfigError(f"{other}: perplexities under {second}, but {one} has them under {first}")
    return next(iter(models.values()), None)


def _settings(rows: Sequence[Generation]) -> Any:
    made = [row.raw.get("generation") for row in rows]
    return made[0] if all(one == made[0] for one in made) else "they differ"
