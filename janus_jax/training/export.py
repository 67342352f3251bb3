"""The Hugging Face directory that a finished run writes: the same as a conversion of its last step."""

import functools
from collections.abc import Callable
from pathlib import Path

from janus_jax.checkpoint.conversion_report import VERIFY, Report, read_report, run_digest
from janus_jax.checkpoint.hf.card import model_card
from janus_jax.checkpoint.hf.write import export_dtype, save_hf
from janus_jax.checkpoint.run_dir import AnyRunDir
from janus_jax.checkpoint.stored_model import StoredModel, open_model
from janus_jax.config.sections import ExportSection
from janus_jax.errors import ConfigError
from janus_jax.model.mistral import Params
from janus_jax.parallel import processes
from janus_jax.storage.bucket import BucketPath
from janus_jax.storage.local import near
from janus_jax.storage.staging import occupied
from janus_jax.training.setup import Setup


def export_step(
    run: AnyRunDir, setup: Setup, step: int, params: Params, notify: Callable[[str], None]
) -> Path | BucketPath:
    """Writes RUN/exports/STEP, each process some of its files, and compares it with the checkpoint of that step.

    Args:
        step: a saved step.
        params: its parameters.
        notify: gets a line about what was verified.
    Returns:
        The directory.
    Raises:
        ConfigError: it exists already, in another dtype or layout, or of another run.
        ConversionError: it differs from the checkpoint; nothing is left then.
        StorageError: it cannot be written.
    """
    section = setup.config.export
    out = run.export(step)
    dtype = export_dtype(section.dtype or setup.config.params_dtype)
    with processes.agreement("export begins"):
        source = open_model(run.path, step)  # facts and card as in a conversion
        if exported := occupied(out) is not None:  # a finished run started once more
            _require_suitable(out, source, dtype.name, section)
    if exported:
        return out
    dataset = setup.loader.dataset
    chat = dataset.chat_format()
    report = Report.of(source, dtype, section.verify, section.layout)
    save_hf(
        params,
        setup.model,
        out,
        dtype=dtype,
        max_shard_size=section.max_shard_size,
        tokenizer=chat.tokenizer,
        chat_template=chat.chat_template,
        facts=source.facts,
        layout=section.layout,
        card=model_card(
            setup.model, dtype, facts=source.facts, meta=source.meta, step=step, layout=section.layout, chat=chat
        ),
        verify=functools.partial(report.finish, source),
    )
    if processes.is_main():  # the others have verified nothing
        notify(f"{near(out)}: {report}")
    return out


def _require_suitable(out: Path | BucketPath, source: StoredModel, dtype: str, section: ExportSection) -> None:
    """Refuses an existing export that this run would not write."""
    report = read_report(out)
    if report.get("run_sha256") not in (None, run_digest(source)):
        raise ConfigError(f"export.hf=true: {out} exists already, of another run; remove it or choose another run.dir")
    verified = report.get("verify", "none")
    if not {"dtype", "layout"} <= report.keys():  # the weights tell, which in a bucket may be many
        model = open_model(out)
        report |= {"dtype": model.stored_dtype.name, "layout": model.layout}
    for key, value, stored, suits in (
        ("dtype", dtype, report["dtype"], dtype == report["dtype"]),
        ("layout", section.layout, report["layout"], section.layout == report["layout"]),
        ("verify", section.verify, verified, verified in VERIFY[VERIFY.index(section.verify) :]),
    ):
        if not suits:
            raise ConfigError(f"export.{key}={value}: {out} exists already, in {stored}; remove it or leave the key")
