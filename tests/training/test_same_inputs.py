"""Hosts whose configuration, data or weights differ do not train together."""

import json

from janus_jax.checkpoint.hf.read import save_hf
from janus_jax.training.same_inputs import config_facts
from tests.support import processes
from tests.support.models import random_params
from tests.support.run_configs import ONE_LAYER, run_config
from tests.support.training_examples import TINY, random_examples, write_dataset


def test_two_processes_refuse_each_other_and_say_what_differs(tmp_path):
    for name, seed in (("sft", 1), ("other", 2)):
        write_dataset(tmp_path / name, {"train": random_examples(40, pairs=False, seed=seed)}, kind="sft")
    params = random_params(TINY)
    save_hf(params, TINY, tmp_path / "model")
    save_hf(params, TINY, tmp_path / "copy")
    save_hf(params | {"final_norm": params["final_norm"].at[3].add(1e-3)}, TINY, tmp_path / "changed")

    def config(**changes):
        schedule = {"epochs": None, "steps": 1, "warmup_steps": 0}
        mesh = {"data": 1, "fsdp": 2, "tensor": 1}
        defaults = {"model": ONE_LAYER, "mesh": mesh, "schedule": schedule, "eval": {"every_steps": None}}
        values = run_config(tmp_path, tmp_path / "run", **(defaults | changes))
        return values.model_dump(mode="json", by_alias=True)

    def of(name):
        return config(model=None, init={"from": str(tmp_path / name), "allow_other_tokenizer": True})

    rate = {"epochs": None, "steps": 1, "warmup_steps": 0, "learning_rate": 0.1}
    pairs = {
        "schedule.learning_rate is 0.1 in process 1": [config(), config(schedule=rate)],
        "data.dir: examples that are read is": [config(), config(data={"dir": str(tmp_path / "other")})],
        "init.from: model.norm.weight is": [of("model"), of("changed")],
        "": [of("model"), of("copy")],
        f"{tmp_path}/none: no such directory": [config(), config(data={"dir": str(tmp_path / "none")})],
    }
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    port = processes.free_port()
    processes.run(*(["-m", "tests.support.processes", "disagree", port, i, tmp_path] for i in range(2)))
    first, second = (json.loads((tmp_path / f"errors.{process}.json").read_text()) for process in range(2))
    missing = [*pairs][-1]  # process 1 has found it, and says so first
    assert first[missing][1] == f"process 1: {second[missing][1]}"
    assert first | {missing: second[missing]} == second
    for expected, (code, message) in first.items():
        assert (code, expected in message) == ((2, True) if expected else (0, True)), message
    assert "1 more" not in first["init.from: model.norm.weight is"][1]


def test_places_of_copies_may_differ_and_nothing_else_of_a_configuration(tmp_path):
    one, other = (config_facts(run_config(tmp_path / name, tmp_path / "run")) for name in "ab")
    assert one == other and one["run.dir"] == str(tmp_path / "run") and one["mesh.fsdp"] == 2
    moved = config_facts(run_config(tmp_path / "a", tmp_path / "elsewhere"))
    assert {key for key in one if one[key] != moved[key]} == {"run.dir"}
