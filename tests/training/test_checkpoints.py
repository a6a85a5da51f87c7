"""A run that is killed goes on from its last whole checkpoint, as if it had never stopped."""

import json
import os
import re
import signal
import sys
from pathlib import Path

import killed_runs
import pytest
from conftest import make_model, quick_config, run_alone
from killed_runs import CASES, KILLED, UPDATES, Steps, build, state_of

from sft_utils.training import checkpoints
from sft_utils.training.checkpoints import (
    MANIFEST,
    WholeCheckpoints,
    last_whole_checkpoint,
    mark_whole,
    train_resumably,
)

linux = pytest.mark.skipif(sys.platform != "linux", reason="forks processes that have torch")
SAME = ("weights", "log", "best", "step", "random", "dropped", "records")


# --- Killed and resumed ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What became of every run: for each part how it ended, and its result if it did not die."""
    folder = tmp_path_factory.mktemp("killed")
    tests = Path(__file__).parents[1]
    paths = os.pathsep.join([str(tests.parent), str(tests)])
    settings = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    run_alone(sys.executable, tests / "killed_runs.py", folder, cwd=folder, **settings)
    return json.loads((folder / "found.json").read_text())


@pytest.mark.weekly
@linux
@pytest.mark.parametrize("case", CASES)
def test_a_killed_run_ends_as_one_that_was_never_stopped(found, case):
    order, parts = CASES[case]
    [(code, expected)] = found[f"never, {order}"]
    assert code == 0 and expected["step"] == UPDATES

    *stopped, (code, last) = found[case]
    assert [code for code, _ in stopped] == [-signal.SIGKILL] * len(parts)
    assert code == 0
    resumed = parts[-1][1]
    assert last["resumed"] == resumed
    kept = case == "the run kept, the checkpoints there"
    assert last["made"] == (0 if kept else UPDATES - int(resumed.partition("-")[2]))
    for name in SAME:
        assert last[name] == expected[name], name
    assert last["left"] == ["run"]  # no checkpoint is left over


@pytest.mark.weekly
@linux
def test_the_two_orders_are_not_the_same_run(found):
    """Else the test above could compare anything with anything."""
    results = [found[f"never, {order}"][0][1] for order in ("by length", "at random")]
    for name in ("weights", "log", "records"):
        assert results[0][name] != results[1][name]
    losses = [entry["loss"] for entry in results[0]["log"] if "loss" in entry]
    assert len(set(losses)) == len(losses) == UPDATES // 2


@pytest.mark.weekly
@linux
@pytest.mark.parametrize("case", KILLED)
def test_the_time_of_all_parts_is_told(found, case):
    last = found[case][-1][1]
    kept = case == "the run kept, the checkpoints there"
    assert last["before"] < last["runtime"] <= last["seconds"] or kept
    assert 0 < last["runtime"] <= last["seconds"]


@pytest.mark.weekly
@linux
def test_two_processes_of_one_run_are_resumed_together(found):
    [whole], [killed, resumed] = found["two processes, never"], found["two processes, killed"]
    assert killed[0][0] == -signal.SIGKILL and killed[1][0] != 0
    for rank in range(2):
        (code, expected), (again, result) = whole[rank], resumed[rank]
        assert code == again == 0
        assert (expected["made"], result["resumed"]) == (expected["step"], "checkpoint-3")
        assert result["made"] == expected["step"] - 3 > 0
        for name in ("weights", "best", "step", "random", "log"):
            assert result[name] == expected[name], (rank, name)
    assert whole[0][1]["weights"] == whole[1][1]["weights"]


@pytest.mark.weekly
@linux
def test_of_two_that_want_the_same_run_one_computes_it(found):
    (code, (reused, first)), (other, (taken, second)) = found["at once"]
    assert (code, other) == (0, 0)
    assert (reused, taken) == (False, True)
    assert first == second == {name: found["never, by length"][0][1][name] for name in first}


@pytest.mark.parametrize("strategy", ["no", "epoch"])
def test_a_long_run_is_saved_by_the_clock_and_ends_the_same(tmp_path, monkeypatch, strategy):
    """Whatever its settings save: here every update comes later than a checkpoint may."""

    def stop():
        raise KeyboardInterrupt

    changes = {"save_strategy": strategy, "load_best_model_at_end": False, "eval_steps": 4}
    whole = build(tmp_path, **changes)
    train_resumably(whole, tmp_path / "whole")
    expected = state_of(whole)
    stopped, folder = build(tmp_path, **changes), tmp_path / "stopped"
    monkeypatch.setattr(checkpoints, "EVERY", 0.0)
    monkeypatch.setattr(killed_runs, "kill", stop)
    stopped.add_callback(steps := Steps())
    steps._last = 8  # of 10, and an evaluation: the last checkpoint is that of 7
    with pytest.raises(KeyboardInterrupt):
        train_resumably(stopped, folder)
    assert last_whole_checkpoint(folder).name == "checkpoint-7"
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-7"]
    again = build(tmp_path, **changes)
    train_resumably(again, folder)
    assert {**state_of(again), "random": 0} == {**expected, "random": 0}


# --- What counts as a checkpoint ---------------------------------------------------------------

FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth",
         "trainer_state.json", "progress_0.json", "epoch-start/rng_state.pth")  # fmt: skip


def write_checkpoint(folder, updates, best=None, marked=True):
    checkpoint = folder / f"checkpoint-{updates}"
    for name in FILES:
        (checkpoint / name).parent.mkdir(parents=True, exist_ok=True)
        (checkpoint / name).write_bytes(f"{name} after {updates}".encode())
    if marked:
        mark_whole(checkpoint, best)
    return checkpoint


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def damages():
    for name in (FILES[0], FILES[-1], MANIFEST):
        for harm in (Path.unlink, flip, cut):
            yield pytest.param(name, harm, id=f"{name}, {harm.__name__}")
    for text in ("", "{}", "[]", '{"files": {}}', '{"files": 3, "best": null}'):
        yield pytest.param(MANIFEST, lambda path, text=text: path.write_text(text), id=repr(text))


@pytest.mark.parametrize("name, harm", [*damages()])
def test_a_damaged_checkpoint_is_never_picked(tmp_path, name, harm):
    older, newer = (write_checkpoint(tmp_path, updates) for updates in (9, 10))
    assert last_whole_checkpoint(tmp_path) == newer
    harm(newer / name)
    assert last_whole_checkpoint(tmp_path) == older
    harm(older / name)
    assert last_whole_checkpoint(tmp_path) is None


def test_one_that_was_never_sealed_is_none(tmp_path):
    assert last_whole_checkpoint(tmp_path / "nowhere") is None
    write_checkpoint(tmp_path, 3, marked=False)
    (tmp_path / "checkpoint-last").mkdir()
    (tmp_path / "checkpoint-7").write_text("a file")
    assert last_whole_checkpoint(tmp_path) is None


def test_the_best_must_be_whole_as_well(tmp_path):
    for updates in (3, 6, 9):
        write_checkpoint(tmp_path, updates, best=f"checkpoint-{min(updates, 6)}")
    assert last_whole_checkpoint(tmp_path).name == "checkpoint-9"
    flip(tmp_path / "checkpoint-6" / "model.safetensors")
    assert last_whole_checkpoint(tmp_path).name == "checkpoint-3"


@pytest.mark.parametrize("argument", [{"save_only_model": True}, {"save_total_limit": 1}])
def test_checkpoints_that_nothing_could_go_on_from_are_refused(tmp_path, argument):
    class Trainer:
        args = quick_config(tmp_path, **argument)
        model = make_model("qwen3")

    with pytest.raises(ValueError, match=re.escape("{}={}".format(*[*argument.items()][0]))):
        WholeCheckpoints(Trainer())
