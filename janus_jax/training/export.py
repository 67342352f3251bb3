"""The Hugging Face directory that a finished run writes by itself: what a conversion of its last step would give."""

import functools
from collections.abc import Callable
from pathlib import Path

from janus_jax.checkpoint.conversion_report import VERIFY, Report, read_report, run_digest
from janus_jax.checkpoint.hf.card import model_card
from janus_jax.checkpoint.hf.write import export_dtype, save_hf
from janus_jax.checkpoint.run_dir import RunDir
from janus_jax.checkpoint.stored_model import StoredModel, open_model
from janus_jax.config.sections import ExportSection
from janus_jax.errors import ConfigError
from janus_jax.model.mistral import Params
from janus_jax.parallel import processes
from janus_jax.training.setup import Setup


def export_step(run: RunDir[Path], setup: Setup, step: int, params: Params, notify: Callable[[str], None]) -> Path:
    """Writes RUN/exports/STEP, each process some of its files, and compares it with the checkpoint of that step.

    Args:
        step: one that was saved.
        params: of that step.
        notify: told what was verified.
    Returns:
        The directory.
    Raises:
        ConfigError: it is there already, in another dtype or layout.
        ConversionError: it is not what the checkpoint holds; nothing is left then.
        StorageError: it cannot be written.
    """
    wanted = setup.config.export
    out = run.export(step)
    dtype = export_dtype(wanted.dtype or setup.config.params_dtype)
    source = open_model(run.path, step)  # what a conversion of it says, this says; Orbax wants all processes for this
    if out.exists() and any(out.iterdir()):  # a finished run started once more
        _require_suitable(out, source, dtype.name, wanted)
        return out
    dataset = setup.loader.dataset
    report = Report.of(source, dtype, wanted.verify, wanted.layout)
    save_hf(
        params,
        setup.model,
        out,
        dtype=dtype,
        max_shard_size=wanted.max_shard_size,
        tokenizer=dataset.tokenizer(),
        chat_template=dataset.template().chat_template,
        facts=source.facts,
        layout=wanted.layout,
        card=model_card(setup.model, dtype, facts=source.facts, meta=source.meta, step=step, layout=wanted.layout),
        verify=functools.partial(report.finish, source),
    )
    if processes.is_main():  # the others have verified nothing
        notify(f"{out}: {report}")
    return out


def _require_suitable(out: Path, source: StoredModel, dtype: str, wanted: ExportSection) -> None:
    """Refuses an export that is there and is not what this run would write."""
    there, report = open_model(out), read_report(out)
    if report.get("run_sha256") not in (None, run_digest(source)):
        raise ConfigError(
            f"export.hf=true: {out} is there already, of another run; remove it or choose another run.dir"
        )
    verified = report.get("verify", "none")
    for key, value, found, suits in (
        ("dtype", dtype, there.stored_dtype.name, dtype == there.stored_dtype.name),
        ("layout", wanted.layout, there.layout, wanted.layout == there.layout),
        ("verify", wanted.verify, verified, verified in VERIFY[VERIFY.index(wanted.verify) :]),
    ):
        if not suits:
            raise ConfigError(f"export.{key}={value}: {out} is there already, in {found}; remove it or leave the key")
