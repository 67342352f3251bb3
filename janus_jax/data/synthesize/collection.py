"""The last checks, and the collection in the published schemas: what `janus data build` and `janus bench` read.

OUT/collection/train.parquet      main_source, original_source, preference_set, system, prompt, output
OUT/bench/train.parquet           source, preference_set, system, prompt, reference_answer, rubrics
OUT/provenance/collection.jsonl   one line for each row, in the same order; bench.jsonl too
"""

import contextlib
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from janus_jax.data.schema import PREFERENCE_KEYS
from janus_jax.data.synthesize import gates, structured
from janus_jax.data.synthesize.asking import Rejected
from janus_jax.data.synthesize.files import INCOMPLETE, digest_of
from janus_jax.data.synthesize.stage import Stage
from janus_jax.data.synthesize.texts import SCORES, RubricAnswer, bench_ids, limited, rubric_of
from janus_jax.errors import DataError
from janus_jax.storage.bucket import os_errors

_ROWS = 1000  # of a row group

COLLECTION = ("main_source", "original_source", "preference_set", "system", "prompt", "output")
BENCH = ("source", "preference_set", "system", "prompt", "reference_answer", "rubrics")


def schemas() -> tuple[Any, Any]:
    """The Arrow schemas of the collection and of the bench, as the hub has them."""
    import pyarrow as pa

    text = pa.string()
    preferences = pa.list_(pa.struct([(key, text) for key in PREFERENCE_KEYS]))
    rubric = pa.struct([("criteria", text), ("score_descriptions", pa.struct([(score, text) for score in SCORES]))])
    types = {"preference_set": preferences, "rubrics": pa.list_(rubric)}
    return tuple(pa.schema([(name, types.get(name, text)) for name in names]) for names in (COLLECTION, BENCH))  # pyright: ignore


class Collection:
    """Checks that each instruction has all its rows, and writes the published files; a file without a row is none."""

    name = "collection"
    inputs = ("instructions", "systems", "responses", "rubrics")

    def settings(self, stage: Stage) -> dict[str, Any]:
        return {
            **stage.config.collection.model_dump(),
            "per_instruction": stage.config.sets.per_instruction,
            "bench": stage.config.bench.instructions,
        }

    def estimate(self, stage: Stage) -> None:
        """Asks nothing."""

    def run(self, stage: Stage) -> None:
        out, held = Path(stage.config.out), bench_ids(stage)
        schema, bench_schema = schemas()
        chosen = limited(stage)
        wanted = {False: chosen is None or chosen - held, True: held if chosen is None else held & chosen}
        files = {
            False: _Table(out / "collection" / "train.parquet", out / "provenance" / "collection.jsonl", schema),
            True: _Table(out / "bench" / "train.parquet", out / "provenance" / "bench.jsonl", bench_schema),
        }
        try:
            for in_bench, row, origin in self._rows(stage, held):
                files[in_bench].add(row, origin)
                stage.writer.counts["bench_rows" if in_bench else "collection_rows"] += 1
                stage.writer.add({"id": origin["id"], "file": "bench" if in_bench else "collection"})
            for in_bench, table in files.items():
                table.finish()
                name = "bench" if in_bench else "collection"
                if wanted[in_bench] and not stage.writer.counts[f"{name}_rows"]:
                    what = "is complete, so its file is not written; dropped.jsonl of each step says why"
                    stage.note(f"{name}: no row of the {name} {what}")
        finally:
            for table in files.values():
                table.discard()

    def _rows(self, stage: Stage, held: set[str]) -> Iterator[tuple[bool, dict[str, Any], dict[str, Any]]]:
        """(whether it is of the bench, row, provenance)."""
        instructions = {row["id"]: row for row in stage.rows("instructions")}
        rubrics: dict[str, dict[int, dict[str, Any]]] = {}
        for row in stage.rows("rubrics"):
            rubrics.setdefault(row["id"], {})[row["preference"]] = row
        responses, response = stage.rows("responses"), None
        wanted, writer, chosen = stage.config.sets.per_instruction, stage.writer, limited(stage)
        unusual = _outliers(stage)
        origins = {name: _Origins(stage, name) for name in ("systems", "responses", "rubrics")}
        for one, group in itertools.groupby(stage.rows("systems"), key=lambda row: row["instruction"]):
            complete = []
            for row in group:
                response = response or next(responses, None)  # in the order of the system messages
                if response is not None and response["id"] == row["id"]:
                    complete.append((row, response))
                    response = None
            if chosen is not None and one not in chosen:
                continue
            complete = [pair for pair in complete if pair[0]["id"] not in unusual]
            if len(complete) < wanted and (stage.config.collection.incomplete == "drop" or not complete):
                writer.drop(INCOMPLETE, instruction=one, rows=len(complete))
                continue
            instruction = instructions[one]
            for row, answered in complete:
                origin = {"id": row["id"], "instruction": one, "place": instruction["place"]}
                origin |= {"system": origins["systems"].of(row, row["system"])}
                origin |= {"response": origins["responses"].of(answered, answered["output"])}
                shared = {"preference_set": row["preferences"], "system": row["system"]}
                shared |= {"prompt": instruction["prompt"]}
                sources = {name: instruction[name] for name in ("main_source", "original_source")}
                if one not in held:
                    yield False, {**sources, **shared, "output": answered["output"]}, origin
                    continue
                own = rubrics.get(row["id"], {})
                if len(own) < len(row["preferences"]):
                    writer.drop("without_rubrics", id=row["id"], rubrics=len(own))
                    continue
                ordered = [own[number] for number in range(len(row["preferences"]))]
                made = [{name: rubric[name] for name in ("criteria", "score_descriptions")} for rubric in ordered]
                source = sources["original_source"] or sources["main_source"]
                bench = {"source": source, **shared, "reference_answer": answered["output"], "rubrics": made}
                of_rubrics = [origins["rubrics"].of(*pair) for pair in zip(ordered, made, strict=True)]
                yield True, bench, {**origin, "rubrics": of_rubrics}
        left = sum(1 for _ in responses) + (response is not None)
        if left:
            raise DataError("responses", f"{left} rows are of no system message, or in another order than those")


class _Origins:
    """The provenance of a step's rows, with `edited` where a person changed what the model had answered."""

    def __init__(self, stage: Stage, step: str):
        self._answers: set[str] | None = None
        if (directory := stage.edited(step)) is None:
            return
        if not directory.journal.exists():
            stage.note(f"{step}: rows were edited, and no journal tells which: provenance marks none")
            return
        self._answers = set()
        for record in directory.answers():
            value: Any = record["text"].strip()
            if step == "rubrics":
                try:
                    value = rubric_of(structured.read(record["text"], RubricAnswer)[0])
                except Rejected:
                    continue
            self._answers.add(digest_of([value, record.get("time", 0), record.get("model", "")]))

    def of(self, row: dict[str, Any], value: Any) -> dict[str, Any]:
        """Args: value: what was read from the answer."""
        origin = row.get("provenance", {})
        if self._answers is None or digest_of([value, origin.get("time"), origin.get("model")]) in self._answers:
            return origin
        return {**origin, "edited": True}


def _outliers(stage: Stage) -> set[str]:
    """Ids of the rows whose system message or response has an unusual length; each is counted as dropped."""
    section, ids = stage.config.collection, set[str]()
    for step, column in (("systems", "system"), ("responses", "output")):
        lengths = {row["id"]: len(row[column]) for row in stage.rows(step)}
        if section.outliers is None or (usual := gates.Lengths.of([*lengths.values()], section.outliers_from)) is None:
            continue
        before, (least, most) = len(ids), usual.bounds(section.outliers)
        for one, number in lengths.items():
            if abs(distance := usual.distance(number)) >= section.outliers:
                stage.writer.drop("length_outlier", id=one, text=step, characters=number, distance=round(distance, 1))
                ids.add(one)
        if len(ids) > before:
            stage.note(f"{step}: texts with fewer than {least:,} or more than {most:,} characters are outliers")
    return ids


class _Table:
    """A Parquet file and the provenance of its rows. They appear whole; without a row, an older file goes."""

    def __init__(self, path: Path, provenance: Path, schema: Any):
        self._paths, self._schema = (path, provenance), schema
        self._rows: list[dict[str, Any]] = []
        self._writer = self._lines = None

    def add(self, row: dict[str, Any], origin: dict[str, Any]) -> None:
        with os_errors(self._paths[0]):
            if self._lines is None:
                import pyarrow.parquet

                for path in self._paths:
                    path.parent.mkdir(parents=True, exist_ok=True)
                self._writer = pyarrow.parquet.ParquetWriter(_beside(self._paths[0]), self._schema)
                self._lines = _beside(self._paths[1]).open("w", encoding="utf-8")
            self._rows.append(row)
            self._lines.write(json.dumps(origin, ensure_ascii=False) + "\n")
            if len(self._rows) >= _ROWS:
                self._flush()

    def _flush(self) -> None:
        import pyarrow

        if self._rows and self._writer is not None:
            self._writer.write_table(pyarrow.Table.from_pylist(self._rows, self._schema))
            self._rows = []

    def finish(self) -> None:
        with os_errors(self._paths[0]):
            if self._writer is None or self._lines is None:
                for path in self._paths:
                    path.unlink(missing_ok=True)
                return
            self._flush()
            self._writer.close()
            self._lines.close()
            self._writer = self._lines = None
            for path in self._paths:
                os.replace(_beside(path), path)

    def discard(self) -> None:
        """Removes what is not finished."""
        for opened in (self._writer, self._lines):
            with contextlib.suppress(OSError):  # the disk is full; what went wrong first is the error
                if opened is not None:
                    opened.close()
        for path in self._paths:
            _beside(path).unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.incomplete")
