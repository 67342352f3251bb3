"""What lm-evaluation-harness computes from answers: its own files, and our table. Imports that package."""

import importlib.metadata
import math
import os
import random
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import lm_eval
import numpy as np
from lm_eval.loggers import EvaluationTracker

import janus_jax
from janus_jax.checkpoint.stored_model import StoredModel
from janus_jax.errors import DataError, JanusError, StorageError
from janus_jax.evaluation.harness.lm import JanusLM
from janus_jax.evaluation.harness.tasks import Tasks
from janus_jax.evaluation.intervals import mean_interval
from janus_jax.evaluation.result_table import Row, Table
from janus_jax.model.mistral import param_specs

if TYPE_CHECKING:
    from janus_jax.evaluation.harness.run import HarnessOptions

_FEWSHOT_SEED = 1234
_RESAMPLES = 1000
_ROWS_RESAMPLED = 4_000_000
"""Of a metric that is no mean, over all resamples."""


def build_requests(tasks: Tasks, lm: JanusLM, options: "HarnessOptions") -> None:
    """Makes the requests of all tasks, as the harness does with the same options.

    Raises:
        DataError: a document has not the columns that its task needs; it names the task and its file.
    """
    random.seed(options.seed)
    np.random.seed(_FEWSHOT_SEED)
    for name, task in tasks.tasks.items():
        places = [f"task {name}", *tasks.files.get(name, ())]
        if options.num_fewshot is not None and task.get_config("num_fewshot") != 0:
            task.set_config(key="num_fewshot", value=options.num_fewshot)
        elif task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=_FEWSHOT_SEED)
        if options.max_new_tokens is not None and task.OUTPUT_TYPE == "generate_until":
            task.set_config(key="generation_kwargs", value={"max_gen_toks": options.max_new_tokens}, update=True)
        try:
            task.build_all_requests(
                limit=options.limit,
                system_instruction=options.system,
                apply_chat_template=options.chat,
                fewshot_as_multiturn=options.chat and options.multiturn,
                chat_template=lm.apply_chat_template if options.chat else None,
                tokenizer_name=lm.tokenizer_name,
            )
            if name in tasks.files:
                _require_readable(task)
        except JanusError as error:
            error.args = (*places, *error.args)
            raise
        except Exception as error:  # of the task's own code
            raise DataError(*places, f"a document cannot be asked: {type(error).__name__}: {error}") from error
        # The harness would build them again, with other examples.
        task.build_all_requests = lambda **_: None  # type: ignore[method-assign]


def _require_readable(task: Any) -> None:
    """Raises whatever the task's code raises for the answers to a document, before anything is scored."""
    if task.OUTPUT_TYPE != "multiple_choice":
        return
    answers: dict[int, list[tuple[float, bool]]] = {}
    docs = {}
    for instance in task.instances:
        answers.setdefault(instance.doc_id, []).append((0.0, False))
        docs[instance.doc_id] = instance.doc
    for number, doc in docs.items():
        task.process_results(doc, answers[number])


def evaluate(tasks: Tasks, lm: JanusLM, options: "HarnessOptions") -> dict[str, Any]:
    """What the harness makes of the model's answers, with samples."""
    os.environ["DISABLE_MULTIPROC"] = "1"  # forked processes of it could hang beside JAX's threads
    start = time.time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of metrics over no documents
        run: Any = lm_eval.evaluate  # its decorator hides the arguments from type checkers
        outcome = run(
            lm=lm,
            task_dict={"tasks": tasks.tasks, "groups": tasks.groups},
            limit=options.limit,
            bootstrap_iters=_RESAMPLES,
            log_samples=True,
            system_instruction=options.system,
            apply_chat_template=options.chat,
            fewshot_as_multiturn=options.chat and options.multiturn,
        )
    return outcome | {"date": start}


def save(
    out: Path,
    outcome: dict[str, Any],
    samples: Mapping[str, list[Any]],
    model: StoredModel,
    lm: JanusLM,
    options: "HarnessOptions",
) -> Path:
    """Writes results_TIME.json and samples_TASK_TIME.jsonl below a directory, as `lm_eval --output_path` does.

    Raises:
        StorageError: a file cannot be written.
    """
    arguments = {"pretrained": str(model.path), "step": model.step, "dtype": str(model.stored_dtype)}
    written = {key: value for key, value in outcome.items() if key != "samples"}
    written["config"] = {
        "model": "janus_jax",
        "model_args": arguments,
        "model_num_parameters": sum(math.prod(spec.shape) for spec in jax.tree.leaves(param_specs(model.config))),
        "limit": options.limit,
        "gen_kwargs": options.max_new_tokens and {"max_gen_toks": options.max_new_tokens},
        "bootstrap_iters": _RESAMPLES,
        "random_seed": options.seed,
        "numpy_seed": _FEWSHOT_SEED,
        "fewshot_seed": _FEWSHOT_SEED,
    }
    names = {"lm_eval_version": "lm_eval", "transformers_version": "transformers", "jax_version": "jax"}
    written |= {key: importlib.metadata.version(name) for key, name in names.items()}
    written |= {"janus_jax_version": janus_jax.__version__, "max_length": lm.max_length}
    tokenizer = lm.tokenizer
    written |= {
        f"tokenizer_{kind}_token": [getattr(tokenizer, f"{kind}_token"), str(getattr(tokenizer, f"{kind}_token_id"))]
        for kind in ("pad", "eos", "bos")
    }
    tracker = EvaluationTracker(output_path=str(out))
    tracker.general_config_tracker.log_experiment_args(
        model_source="janus_jax",
        model_args=arguments,
        system_instruction=options.system,
        chat_template=lm.chat_template(options.chat),
        fewshot_as_multiturn=options.chat and options.multiturn,
    )
    tracker.save_results_aggregated(results=written, samples=dict(samples))
    place = out / str(tracker.general_config_tracker.model_name_sanitized)
    for name, own in samples.items():
        tracker.save_results_samples(task_name=name, samples=own)  # type: ignore[reportArgumentType]
    when = getattr(tracker, "date_id", "")
    files = [place / f"results_{when}.json", *(place / f"samples_{name}_{when}.jsonl" for name in samples)]
    for file in files:  # it only logs that it failed
        if not file.is_file():
            raise StorageError(file, "lm_eval could not write it")
    return files[0]


def table(
    tasks: Tasks,
    outcome: Mapping[str, Any],
    facts: Mapping[str, Any],
    options: "HarnessOptions",
    notes: Mapping[str, int],
) -> Table:
    """Every metric of every task and group, with 95 % intervals."""
    rows = []
    for name, values in {**outcome["results"], **outcome.get("groups", {})}.items():
        task = tasks.tasks.get(name)
        for key, value in values.items():
            metric, _, filtered = key.partition(",")
            if not filtered or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            samples = [one for one in outcome["samples"].get(name, ()) if one["filter"] == filtered]
            count = len(samples) if task is not None else values.get("sample_len")
            own = [one[metric] for one in samples if metric in one]
            low, high = _interval(task, metric, own, value, values.get(f"{metric}_stderr,{filtered}"))
            label = f"{name}: {metric}" + ("" if filtered == "none" else f" ({filtered})")
            rows.append(Row(label, [float(value), count], [low, None], [high, None]))
    return Table("harness", f"lm-evaluation-harness: {facts['model']}", ["value", "documents"], rows,
        notes_of(options, notes), settings(tasks, facts, options))  # fmt: skip


def notes_of(options: "HarnessOptions", notes: Mapping[str, int]) -> list[str]:
    """What a reader of a table must know."""
    lines = [] if options.limit is None else [f"only the first {options.limit:,} documents of each task (--limit)"]
    return lines + [f"{note} ({count:,} times)" for note, count in notes.items()]


def settings(tasks: Tasks, facts: Mapping[str, Any], options: "HarnessOptions") -> dict[str, Any]:
    """What made the numbers of a table."""
    shown = {
        "tasks": list(tasks.tasks),
        "limit": options.limit,
        "num_fewshot": {name: task.get_config("num_fewshot") for name, task in tasks.tasks.items()},
        "apply_chat_template": options.chat,
        "fewshot_as_multiturn": options.chat and options.multiturn,
        "system_instruction": options.system,
        "seed": options.seed,
        "max_new_tokens": options.max_new_tokens,
        "lm_eval": importlib.metadata.version("lm_eval"),
        "data": tasks.files or "Hugging Face hub",
    }
    return {**facts, **shown}


def _interval(
    task: Any, metric: str, own: Sequence[Any], value: float, stderr: Any
) -> tuple[float | None, float | None]:
    """Of the mean by resampling; of what the harness computes otherwise by its standard error, or by resampling."""
    if task is not None and own:
        plain = all(isinstance(one, bool | int | float | np.number) for one in own)
        if plain and abs(float(np.mean(own)) - value) <= 1e-9 * max(1.0, abs(value)):
            return mean_interval(np.asarray(own, np.float64))
        if not isinstance(stderr, int | float) and (resamples := min(_RESAMPLES, _ROWS_RESAMPLED // len(own))) >= 200:
            return _resampled(task.aggregation()[metric], own, resamples)
    if isinstance(stderr, int | float):
        return value - 1.96 * stderr, value + 1.96 * stderr
    return None, None


def _resampled(aggregate: Any, own: Sequence[Any], resamples: int) -> tuple[float | None, float | None]:
    generator, values = np.random.default_rng(0), []
    for _ in range(resamples):
        with np.errstate(all="ignore"):
            values.append(aggregate([own[i] for i in generator.integers(0, len(own), len(own))]))
    values = np.asarray(values, np.float64)
    if np.isnan(values).any():
        return None, None
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
