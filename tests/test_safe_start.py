"""Starting and resuming: nothing is lost, a refusal changes no byte, and a ring that has wrapped can be resumed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_resume import rows_by_place, stopped
from tiny_runs import flat, lines, tiny

import dreamer
from dreamer import agent as agents
from dreamer import trust
from dreamer.config import load
from dreamer.errors import UserError
from dreamer.runtime.files import lock
from dreamer.runtime.files.checkpoint import Checkpoints
from dreamer.runtime.files.run_dir import existing_run_dir
from dreamer.runtime.replay import capacity
from dreamer.runtime.run import assembling, ending, evaluation, resume, start
from dreamer.runtime.run.ending import RunFailed
from dreamer.runtime.run.init_from import Taken
from dreamer.runtime.run.loop import Run
from dreamer.runtime.run.stopping import Stopping

pytestmark = pytest.mark.usefixtures("quick")

ENV = {"env": "probes:both", "eval__episodes": 0, "log__tensorboard": False}
# Rings of 24 rows and a checkpoint every 12 rows: the rings wrap several times, and files are pruned often.
ROUND = {
    **ENV, "replay__capacity_steps": 48, "env_steps": 240, "replay__flush": 1e-9, "checkpoint__every": 1e9,
    "checkpoint__keep": 2,
}  # fmt: skip


def tree(folder: Path) -> dict[str, str]:
    """Returns every file and folder under `folder` with a checksum of its contents."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


def newest(run_dir: Path) -> int:
    with Checkpoints(run_dir) as checkpoints:
        step = checkpoints.latest()
        assert step is not None
        return step


def saved_steps(run_dir: Path) -> int:
    """Returns the env_steps of the newest checkpoint, whose number is higher if it was saved after updates alone."""
    found = resume.find(run_dir)
    assert found is not None
    return found.env_steps


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


@pytest.fixture(scope="module")
def half(tmp_path_factory) -> Path:
    """A lockstep run that was stopped halfway, with two checkpoints."""
    settings = {**ENV, "checkpoint__every": 0, "checkpoint__keep": 3}
    return stopped(tmp_path_factory.mktemp("half") / "run", 20, **settings)


@pytest.fixture(scope="module")
def threads(tmp_path_factory) -> Path:
    """A run with threads that was stopped, with a checkpoint at its start and at its end."""
    return stopped(tmp_path_factory.mktemp("threads") / "run", 6, **ENV, lockstep=False)


# ---- rings that wrap


@pytest.mark.parametrize("lockstep", [True, False])
def test_every_kept_checkpoint_of_a_run_longer_than_its_replay_can_be_resumed(tmp_path, monkeypatch, lockstep):
    monkeypatch.setattr(capacity, "LEAST_BETWEEN", 0)
    run_dir = dreamer.train(tiny(tmp_path / "run", **ROUND, lockstep=lockstep))
    with Checkpoints(run_dir) as checkpoints:
        steps = checkpoints.steps()
    assert saved_steps(run_dir) == 240 and len(steps) >= 2
    for step in steps:
        again = shutil.copytree(run_dir, tmp_path / str(step))
        dreamer.train(tiny(again, **{**ROUND, "env_steps": 260}, lockstep=lockstep), resume_from=step)
        assert saved_steps(again) == 260
        if lockstep:
            assert lines(again)[-1]["env_steps"] == 260


def test_a_checkpoint_that_keep_every_keeps_can_be_resumed(tmp_path, monkeypatch):
    monkeypatch.setattr(capacity, "LEAST_BETWEEN", 0)
    run_dir = dreamer.train(tiny(tmp_path / "run", **{**ROUND, "checkpoint__keep": 1, "checkpoint__keep_every": 60}))
    with Checkpoints(run_dir) as checkpoints:
        older = [step for step in checkpoints.steps() if 0 < step < 240]
    assert older
    dreamer.train(tiny(run_dir, **{**ROUND, "env_steps": 250}), resume_from=older[0])
    assert saved_steps(run_dir) == 250


# ---- a refusal changes nothing


def flip_newest(run: Path) -> None:
    damage(next((run / "checkpoints" / str(newest(run)) / "state" / "d").iterdir()))


def flip_state_file(run: Path) -> None:
    damage(sorted((run / "rows").glob("state-*"))[-1])


def flip_rows(run: Path) -> None:
    damage(sorted((run / "rows").glob("rows-*"))[0])


def flip_metrics(run: Path) -> None:
    damage(run / "metrics.jsonl")


def cut_metrics(run: Path) -> None:
    (run / "metrics.jsonl").write_bytes(b"")


def flip_latents(run: Path) -> None:
    damage(sorted((run / "rows").glob("latents-*"))[-1])


def flip_later_rows(run: Path) -> None:
    shutil.rmtree(run / "checkpoints" / str(newest(run)))
    damage(sorted((run / "rows").glob("rows-*"))[-1])


def change_config(run: Path) -> None:
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("replay_ratio: 2.0", "replay_ratio: 4.0"))


def swap_config(run: Path) -> None:
    text = trust.unsealed((run / "config.yaml").read_text()).text
    (run / "config.yaml").write_text(trust.sealed_text(text, "0" * 32))


def unseal_config(run: Path) -> None:
    (run / "config.yaml").write_text(trust.unsealed((run / "config.yaml").read_text()).text)


def swap_checkpoints(run: Path) -> None:
    older, newer = sorted((run / "checkpoints").iterdir(), key=lambda path: int(path.name))[-2:]
    older.rename(run / "aside")
    newer.rename(older)
    (run / "aside").rename(newer)


def remove_rows(run: Path) -> None:
    sorted((run / "rows").glob("rows-*"))[0].unlink()


def put_stranger(run: Path) -> None:
    (run / "rows" / "notes.txt").write_text("mine")


def damage_meta(run: Path) -> None:
    damage(run / "checkpoints" / str(newest(run)) / "meta" / "metadata")


def hold(run: Path) -> None:
    card = lock._own_card()._replace(host="elsewhere", pid=12, token="theirs")
    (run / "lock").write_text(json.dumps(card._asdict()))


REFUSALS = {
    "train state": (flip_newest, {}, "checksum of .* differs"),
    "host state": (flip_state_file, {}, r"state-\d+\.dreamer"),
    "rows": (flip_rows, {}, r"rows-0+\.dreamer"),
    "metrics": (flip_metrics, {}, "move it away to resume"),
    "cut metrics": (cut_metrics, {}, "cut short"),
    "latents": (flip_latents, {}, r"latents-\d+-\d+\.dreamer"),
    "missing rows": (remove_rows, {}, r"rows-0+\.dreamer is missing"),
    "changed config": (change_config, {}, "changed after it was written"),
    "config of another run": (swap_config, {}, "belongs to another run"),
    "config without its seal": (unseal_config, {}, "has lost its first line"),
    "swapped checkpoints": (swap_checkpoints, {}, "was saved as"),
    "a stranger's file": (put_stranger, {}, "notes.txt is not a file of this run"),
    "manifest": (damage_meta, {}, "meta/metadata"),
    "lock": (hold, {}, "is in use by process 12"),
    "seed": (None, {"seed": 3}, "seed is 3, the run has 0"),
    "another environment": (None, {"env": "probes:pixel"}, "env is 'probes:pixel', the run has 'probes:both'"),
    "wandb": (None, {"log__wandb": "online"}, "needs an account|needs the package"),
    "resume_from": (None, {"resume_from": 5}, "no checkpoint 5"),
    "devices": (None, {"devices__count": 4096}, "devices"),
    "workers": (None, {"workers__backend": "nowhere"}, "backend"),
}  # fmt: skip
BOTH = ("train state", "host state", "rows", "metrics", "lock")  # also tested without lockstep


@pytest.mark.parametrize("kind, form", [*((kind, "half") for kind in REFUSALS), *((kind, "threads") for kind in BOTH)])
def test_a_resume_that_is_refused_changes_no_byte(tmp_path, request, monkeypatch, kind, form):
    import wandb

    monkeypatch.setattr(wandb, "login", lambda **_: False)
    prepare, changed, expected = REFUSALS[kind]
    run_dir = shutil.copytree(request.getfixturevalue(form), tmp_path / "run")
    if prepare:
        prepare(run_dir)
    before = tree(tmp_path)
    settings = {**ENV, "checkpoint__every": 0, "checkpoint__keep": 3, "lockstep": form == "half"}
    resume_from = changed.get("resume_from")
    overrides = {**settings, **{key: value for key, value in changed.items() if key != "resume_from"}}
    with pytest.raises(UserError, match=expected):
        config = load(overrides={k.replace("__", "."): v for k, v in {**flat_tiny(run_dir), **overrides}.items()})
        dreamer.train(config, resume="yes", resume_from=resume_from)
    assert tree(tmp_path) == before


def flat_tiny(run_dir: Path) -> dict:
    from tiny_runs import TINY

    return {**flat(TINY), "run_dir": str(run_dir)}


NEW = {
    "init_from": ({"init_from": "nowhere"}, "no run at"),
    "environment": ({"env": "nothing:there"}, "nothing"),
    "environment that fails": ({"env": "broken_envs:fails", "env_options": {"how": "spaces"}}, "Text"),
    "devices": ({"devices__count": 4096}, "devices"),
    "replay": ({"replay__capacity_steps": 4}, "batch_length"),
}  # fmt: skip


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("kind", NEW)
def test_a_new_run_that_is_refused_leaves_nothing(tmp_path, kind, there):
    changed, expected = NEW[kind]
    run_dir = tmp_path / "runs" / "deep" / "run"
    if there:
        run_dir.mkdir(parents=True)
        (run_dir / "notes.txt").write_text("mine")
    before = tree(tmp_path)
    with pytest.raises(UserError, match=expected):
        dreamer.train(tiny(run_dir, **{**ENV, **changed}), resume="auto")
    assert tree(tmp_path) == before


def test_a_corrected_init_from_is_used_by_the_run(tmp_path, half, monkeypatch):
    taken = lambda state, run, *how: Taken(state, [str(existing_run_dir(run))])  # noqa: E731
    monkeypatch.setattr(assembling, "begin_with", taken)
    config = tiny(tmp_path / "run", **ENV, init_from="nowhere")
    with pytest.raises(UserError, match="no run at nowhere"):
        dreamer.train(config, resume="auto")
    other = tiny(tmp_path / "run", **ENV, init_from=str(half), env_steps=40)
    dreamer.train(other, resume="auto")
    assert load(tmp_path / "run" / "config.yaml").init_from == str(half)


def test_rows_that_came_later_and_are_damaged_are_named_and_stay(tmp_path, threads):
    run_dir = shutil.copytree(threads, tmp_path / "run")
    flip_later_rows(run_dir)
    before = tree(run_dir)
    with pytest.raises(UserError, match="it is newer than the checkpoint: move it and all later rows files away"):
        dreamer.train(tiny(run_dir, **ENV, lockstep=False), resume="yes")
    assert tree(run_dir) == before


def test_an_environment_that_shows_something_else_is_named_by_its_key(tmp_path, half, monkeypatch):
    run_dir = shutil.copytree(half, tmp_path / "run")
    before = tree(run_dir)
    check = resume.as_json
    monkeypatch.setattr(resume, "as_json", lambda spec: {**check(spec), "obs": {"other": check(spec)["obs"]["vector"]}})
    with pytest.raises(UserError, match="observation 'vector' shape .* now missing; resume with the environment"):
        dreamer.train(tiny(run_dir, **ENV), resume="yes")
    assert tree(run_dir) == before


# ---- a damaged checkpoint


def test_a_resumed_run_that_has_all_its_rows_collects_no_more(tmp_path):
    config = tiny(tmp_path / "run", **ENV, lockstep=False)
    dreamer.train(config, callbacks=[lambda line: "stop" if line.env_steps >= 96 else None])
    dreamer.train(config, resume="yes")
    assert saved_steps(tmp_path / "run") == 96


def test_a_damaged_checkpoint_is_refused_and_the_previous_one_can_be_resumed(tmp_path, threads, capsys):
    run_dir = shutil.copytree(threads, tmp_path / "run")
    last = newest(run_dir)
    flip_newest(run_dir)
    config = tiny(run_dir, **ENV, lockstep=False)
    with pytest.raises(UserError, match=f"checkpoint {last} .* is damaged: .*; checkpoint 0 .* --resume-from 0"):
        dreamer.train(config, resume="yes")
    kept = rows_by_place(run_dir)
    dreamer.train(config, resume_from=0)
    rows = rows_by_place(run_dir)
    assert saved_steps(run_dir) == 96 and not (run_dir / "aside").exists()
    for place, row in kept.items():
        np.testing.assert_equal(rows[place], row)
    assert f"moved aside until the next checkpoint: the newer checkpoints {last}" in capsys.readouterr().out


def test_a_damaged_old_checkpoint_does_not_keep_a_run_from_its_newest(tmp_path, half, capsys):
    run_dir = shutil.copytree(half, tmp_path / "run")
    with Checkpoints(run_dir) as checkpoints:
        first, *_ = checkpoints.steps()
    damage(run_dir / "checkpoints" / str(first) / "meta" / "metadata")
    dreamer.train(tiny(run_dir, **ENV), resume="yes")
    assert saved_steps(run_dir) == 96
    assert f"not used, and kept as it is: checkpoint {first}" in capsys.readouterr().out


def test_files_that_lockstep_writes_again_are_moved_aside_until_the_next_checkpoint(tmp_path, half, monkeypatch):
    run_dir = shutil.copytree(half, tmp_path / "run")
    with Checkpoints(run_dir) as checkpoints:
        first = checkpoints.steps()[0]
    before = tree(run_dir)
    seen: list[dict[str, str]] = []
    monkeypatch.setattr(Run, "take_turns", lambda run: seen.append(tree(run.parts.run_dir / "aside" / "1")))
    monkeypatch.setattr(Run, "finish", lambda run: None)
    dreamer.train(tiny(run_dir, **ENV), resume_from=first)
    (aside,) = seen
    files = {name: digest for name, digest in aside.items() if name.startswith(("rows/", "checkpoints/"))}
    assert files and all(before[name] == digest for name, digest in files.items())
    whole = (run_dir / "metrics.jsonl").read_bytes() + (run_dir / "aside" / "1" / "metrics.jsonl").read_bytes()
    assert hashlib.sha256(whole).hexdigest() == before["metrics.jsonl"]


def test_an_environment_that_refuses_its_state_loses_no_rows(tmp_path, monkeypatch, capsys):
    env = {**ENV, "env": "broken_envs:refuses_its_state", "checkpoint__every": 1e9}
    run_dir = tmp_path / "run"
    tend, turns = Run.tend, iter(range(10**9))

    def dies(run):
        tend(run)
        if next(turns) == 20:
            run.save()
        replay, store = run.parts.replay, run.parts.store
        if len(replay.counts) and replay.steps >= 60:
            store.flush(replay)
            store.wait()
            raise KeyboardInterrupt

    monkeypatch.setattr(Run, "tend", dies)
    monkeypatch.setattr(ending, "rescue", lambda run, error, checkpoint=True: None)
    with pytest.raises(KeyboardInterrupt):
        dreamer.train(tiny(run_dir, **env))
    monkeypatch.undo()
    kept, logged = rows_by_place(run_dir), lines(run_dir)
    monkeypatch.setattr(agents, "make", lambda config, spec, **_: __import__("tiny_runs").plain_agent(spec))
    dreamer.train(tiny(run_dir, **env), resume="yes")
    rows = rows_by_place(run_dir)
    for place, row in kept.items():
        np.testing.assert_equal(rows[place], row)
    assert lines(run_dir)[: len(logged)] == logged
    assert "not resumed: the running episodes of all environments, since it refused its saved state" in (
        capsys.readouterr().out
    )


# ---- the lock


def test_a_second_run_in_the_same_directory_is_refused_and_the_first_is_named(tmp_path, half):
    run_dir = shutil.copytree(half, tmp_path / "run")
    with lock.RunLock(run_dir, print, print), pytest.raises(UserError, match=rf"is in use by process {os.getpid()} of"):
        dreamer.train(tiny(run_dir, **ENV), resume="auto")
    assert not (run_dir / "lock").exists()


def test_a_new_run_is_refused_where_another_is_about_to_begin(tmp_path):
    (tmp_path / "run").mkdir()
    with lock.RunLock(tmp_path / "run", print, print), pytest.raises(UserError, match="is in use by"):
        dreamer.train(tiny(tmp_path / "run", **ENV))


def test_the_lock_of_an_ended_process_is_replaced_and_reported(tmp_path):
    card = lock._own_card()._replace(pid=2**22 + 1, token="gone")
    (tmp_path / "lock").write_text(json.dumps(card._asdict()))
    reported: list[str] = []
    with lock.RunLock(tmp_path, reported.append, print) as own:
        assert json.loads((tmp_path / "lock").read_text())["token"] == own.card.token
    assert len(reported) == 1 and reported[0].endswith("that process is gone") and not list(tmp_path.iterdir())


@pytest.mark.parametrize("age, stale", [(lock.STALE / 2, False), (lock.STALE * 2, True)])
def test_a_lock_of_another_machine_is_stale_when_its_heartbeat_is_old(tmp_path, age, stale):
    hold(tmp_path)
    now = (tmp_path / "lock").stat().st_mtime
    os.utime(tmp_path / "lock", (now - age, now - age))
    with contextlib.nullcontext() if stale else pytest.raises(UserError, match="on elsewhere"):
        lock.RunLock(tmp_path, print, print).close()


def test_an_owner_is_notified_that_it_has_lost_its_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT", 0.01)
    lost: list[UserError] = []
    own = lock.RunLock(tmp_path, print, lost.append)
    theirs = own.card._replace(token="theirs", host="elsewhere")
    (tmp_path / "new").write_text(json.dumps(theirs._asdict()))
    os.replace(tmp_path / "new", tmp_path / "lock")
    own._thread.join(10)
    own.close()
    assert "was taken by process" in str(lost[0]) and (tmp_path / "lock").exists()


def test_a_run_that_lost_its_lock_stops_and_writes_no_more(tmp_path, monkeypatch):
    tend = Run.tend

    def taken(run):
        if run.parts.replay.steps == 40:
            run.parts.stopping.fail(UserError("the lock of this run was taken"))
        tend(run)

    monkeypatch.setattr(Run, "tend", taken)
    with pytest.raises(UserError, match="was taken"):
        dreamer.train(tiny(tmp_path / "run", **ENV))
    assert newest(tmp_path / "run") == 0


def test_a_lost_lock_stops_all_writers_and_fails_the_next_check():
    stopping, error, reached = Stopping(print), UserError("the lock of this run was taken"), []
    stopping.on_failure(reached.append)
    assert stopping.failure is None
    stopping.fail(error)
    assert reached == [error] and stopping.failure is error
    with pytest.raises(UserError, match="was taken"):
        stopping.check()


def test_only_one_of_many_processes_gets_a_stale_lock(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    card = lock._own_card()._replace(pid=2**22 + 1, token="gone")
    (tmp_path / "lock").write_text(json.dumps(card._asdict()))

    def take(_):
        try:
            return lock.RunLock(tmp_path, lambda line: None, print)
        except UserError:
            return None

    with ThreadPoolExecutor(8) as pool:
        held = [own for own in pool.map(take, range(8)) if own]
    assert len(held) == 1
    held[0].close()
    assert not list(tmp_path.iterdir())


# ---- making the directory


def test_a_default_name_that_exists_gets_a_number(tmp_path):
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(start.Created(tmp_path / "runs" / "name", own_name=True)) for _ in range(3)]
        assert [one.path.name for one in made] == ["name", "name-2", "name-3"]
    assert not (tmp_path / "runs").exists()


def test_a_start_that_comes_too_late_does_not_change_the_first_run(tmp_path, monkeypatch):
    """Another process starts there between the check and the creation of the directory."""
    make, first = start.Created._make, []

    def late(self, own_name):
        if not first:
            first.append(None)
            first[0] = start.Created(tmp_path / "run", own_name=False)
            (tmp_path / "run" / "config.yaml").write_text("theirs")
        make(self, own_name)

    monkeypatch.setattr(start.Created, "_make", late)
    with pytest.raises(UserError, match="is in use by"):
        start.Created(tmp_path / "run", own_name=False)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["config.yaml", "lock"]
    first[0].keep()
    first[0].__exit__()
    with pytest.raises(UserError, match="already holds a run"):
        start.Created(tmp_path / "run", own_name=False)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.yaml"]


def test_a_run_that_does_not_begin_removes_what_it_made_and_nothing_of_others(tmp_path):
    with start.Created(tmp_path / "run", own_name=False):
        (tmp_path / "run" / "config.yaml").write_text("ours")
        (tmp_path / "run" / "slurm.out").write_text("theirs")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["slurm.out"]


def test_a_run_whose_checkpoints_are_gone_is_not_overwritten(tmp_path, half):
    run_dir = shutil.copytree(half, tmp_path / "run")
    shutil.move(run_dir / "checkpoints", tmp_path / "elsewhere")
    before = tree(run_dir)
    with pytest.raises(UserError, match="has rows or metrics but no checkpoint"):
        dreamer.train(tiny(run_dir, **ENV), resume="yes")
    assert tree(run_dir) == before


@pytest.mark.parametrize("kind", ["empty", "link", "folder"])
def test_an_invalid_lock_is_replaced_or_named(tmp_path, kind):
    path = tmp_path / "lock"
    if kind == "empty":
        path.touch()
        os.utime(path, (1, 1))
        lock.RunLock(tmp_path, lambda line: None, print).close()
        assert not list(tmp_path.iterdir())
        return
    path.symlink_to("nowhere") if kind == "link" else path.mkdir()
    with pytest.raises(UserError, match="is not a lock file; remove it"):
        lock.RunLock(tmp_path, print, print)
    assert [one.name for one in tmp_path.iterdir()] == ["lock"]


def test_an_end_of_another_checkpoint_of_that_number_does_not_count(tmp_path, monkeypatch):
    """Lockstep: a run ended at 96, was resumed from an older checkpoint, and was killed in the evaluation at 96."""
    settings = {**ENV, "checkpoint__every": 0, "checkpoint__keep": 3, "eval__episodes": 1, "eval__video": "off"}
    run_dir = dreamer.train(tiny(tmp_path / "run", **settings))
    with Checkpoints(run_dir) as checkpoints:
        older = checkpoints.steps()[0]

    def dies(run):
        run.save()
        run.parts.checkpoints.wait()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "_evaluate", dies)
        patch.setattr(ending, "rescue", lambda run, error, checkpoint=True: None)
        dreamer.train(tiny(run_dir, **settings), resume_from=older)
    dreamer.train(tiny(run_dir, **settings), resume="yes")
    assert [line["env_steps"] for line in lines(run_dir) if "eval/return" in line] == [96]


def test_the_run_directory_is_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = tiny(Path("runs/here"), **ENV, env_steps=40)
    assert dreamer.train(config) == tmp_path / "runs" / "here"


# ---- every end saves


class Odd(Exception):
    """An unexpected exception."""


@pytest.mark.parametrize("lockstep", [True, False])
def test_any_exception_saves_the_run_and_names_the_file_of_its_traceback(tmp_path, monkeypatch, lockstep):
    log = Run.log

    def odd(run):
        begun = run.parts.replay.steps >= 40 and run.parts.learner.updates
        if begun and not isinstance(getattr(run, "once", None), Odd):
            run.once = Odd("out of the blue")
            raise run.once
        log(run)

    monkeypatch.setattr(Run, "log", odd)
    run_dir = tmp_path / "run"
    with pytest.raises(RunFailed, match=r"Odd: out of the blue .*checkpoint \d+ .*saved in .*error\.txt") as failed:
        dreamer.train(tiny(run_dir, **ENV, lockstep=lockstep))
    assert isinstance(failed.value.__cause__, Odd) and "\n" not in str(failed.value)
    assert "Traceback" in (run_dir / "error.txt").read_text() and "in odd" in (run_dir / "error.txt").read_text()
    assert newest(run_dir) >= 40 and not (run_dir / "lock").exists()
    assert f"checkpoint {newest(run_dir)} and all rows are saved" in str(failed.value)
    monkeypatch.undo()
    monkeypatch.setattr(agents, "make", lambda config, spec, **_: __import__("tiny_runs").plain_agent(spec))
    dreamer.train(tiny(run_dir, **ENV, lockstep=lockstep), resume="yes")
    assert saved_steps(run_dir) == 96


def test_parameters_that_are_not_finite_do_not_replace_a_checkpoint(tmp_path, monkeypatch, capsys):
    def diverges(run):
        if run.parts.replay.steps >= 40:
            import jax

            state = run.parts.learner.state
            run.parts.learner.state = state._replace(params=jax.tree.map(lambda x: x * np.nan, state.params))
            raise UserError("the agent's action is not finite")

    monkeypatch.setattr(Run, "log", diverges)
    with pytest.raises(RunFailed, match="not finite"):
        dreamer.train(tiny(tmp_path / "run", **ENV))
    assert newest(tmp_path / "run") == 0
    assert "the parameters are no longer finite and are not saved" in capsys.readouterr().out


# ---- evaluation


def test_a_run_is_saved_before_it_evaluates(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "make_eval_workers", lambda *args, **kw: (_ for _ in ()).throw(Odd("died")))
    monkeypatch.setattr(ending, "rescue", lambda run, error, checkpoint=True: None)
    with pytest.raises(RunFailed, match="Odd: died"):
        dreamer.train(tiny(tmp_path / "run", **{**ENV, "eval__episodes": 1, "eval__every": 50, "eval__video": "off"}))
    assert saved_steps(tmp_path / "run") == 50


def test_a_run_that_was_killed_in_its_last_evaluation_makes_it_when_resumed(tmp_path, monkeypatch):
    evaluate = Run._evaluate

    def dies(run):
        run.save()
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "_evaluate", dies)
    monkeypatch.setattr(ending, "rescue", lambda run, error, checkpoint=True: None)
    run_dir = tmp_path / "run"
    settings = {**ENV, "eval__episodes": 1, "eval__video": "off"}
    with pytest.raises(KeyboardInterrupt):
        dreamer.train(tiny(run_dir, **settings))
    assert not any("eval/return" in line for line in lines(run_dir))
    monkeypatch.setattr(Run, "_evaluate", evaluate)
    dreamer.train(tiny(run_dir, **settings), resume="yes")
    assert [line["env_steps"] for line in lines(run_dir) if "eval/return" in line] == [96]
    before = tree(run_dir)
    dreamer.train(tiny(run_dir, **settings), resume="yes")
    assert tree(run_dir) == before


def test_a_run_that_was_killed_in_an_evaluation_makes_it_at_the_same_step_when_resumed(tmp_path, monkeypatch):
    run_dir, settings = tmp_path / "run", {**ENV, "eval__episodes": 1, "eval__video": "off", "eval__every": 40}

    def dies(run):
        run.save()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "_evaluate", dies)
        patch.setattr(ending, "rescue", lambda run, error, checkpoint=True: None)
        dreamer.train(tiny(run_dir, **settings))
    dreamer.train(tiny(run_dir, **settings), resume="yes")
    assert [line["env_steps"] for line in lines(run_dir) if "eval/return" in line] == [40, 80, 96]


def test_rows_are_flushed_while_the_main_thread_is_busy(tmp_path, monkeypatch):
    compile_ = Run._compile

    def slow(run, batch):
        steps = run.parts.replay.steps
        while len(rows_by_place(run.parts.run_dir)) < steps:
            pass  # only the flushing thread can end this loop
        compile_(run, batch)

    monkeypatch.setattr(Run, "_compile", slow)
    dreamer.train(tiny(tmp_path / "run", **{**ENV, "replay__flush": 0.05, "checkpoint__every": 1e9}, lockstep=False))
    assert len(rows_by_place(tmp_path / "run")) == 96
