"""Event files, as TensorBoard's own reader reads them."""

import math
import socket

import pytest

from janus_jax.errors import StorageError
from janus_jax.training.event_file import EventFile, ends_of_events


def read(directory):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = EventAccumulator(str(directory))
    return shown.Reload()


def test_tensorboard_reads_scalars_and_texts(tmp_path):
    file = EventFile(tmp_path / "new")
    file.scalars(3, {"train/loss": 0.5, "train/tokens": 2**40, "eval/loss": math.nan, "eval/nll": 1e300})
    file.scalars(300_000, {"train/loss": -0.25})
    file.text(3, "samples/ü", "# Ja\n" * 100)
    shown = read(tmp_path / "new")
    assert [(e.step, e.value) for e in shown.Scalars("train/loss")] == [(3, 0.5), (300_000, -0.25)]
    assert [e.value for e in shown.Scalars("train/tokens")] == [2.0**40]
    assert math.isnan(shown.Scalars("eval/loss")[0].value) and shown.Scalars("eval/nll")[0].value == math.inf
    (text,) = shown.Tensors("samples/ü/text_summary")
    assert text.step == 3 and text.tensor_proto.string_val[0].decode() == "# Ja\n" * 100
    assert [dim.size for dim in text.tensor_proto.tensor_shape.dim] == [1]
    assert shown.SummaryMetadata("samples/ü/text_summary").plugin_data.plugin_name == "text"


def test_a_later_file_replaces_steps_of_an_earlier_one(tmp_path):
    for first, steps in ((0, (1, 2, 3)), (3, (3, 4))):
        file = EventFile(tmp_path, first)
        for step in steps:
            file.scalars(step, {"loss": step + first})
        file.close()
    assert [(e.step, e.value) for e in read(tmp_path).Scalars("loss")] == [(1, 1), (2, 2), (3, 6), (4, 7)]


def test_events_end_where_the_next_begins(tmp_path):
    file = EventFile(tmp_path)
    (path,) = tmp_path.iterdir()
    assert path.name.endswith(socket.gethostname())
    before = len(path.read_bytes())
    file.scalars(1, {"loss": 1.0})
    whole = path.read_bytes()
    assert ends_of_events(whole)[1:] == [before, len(whole)]
    assert ends_of_events(whole[:-1])[-1] == before


def test_a_directory_that_is_a_file_is_named(tmp_path):
    (tmp_path / "tensorboard").write_text("")
    with pytest.raises(StorageError, match="tensorboard"):
        EventFile(tmp_path / "tensorboard")
