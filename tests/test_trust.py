"""Files of strangers run no code: proofs of concept, and the ways in which a user's own names still work."""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from run_dirs import write_run
from tiny_runs import tiny

import dreamer
from dreamer import plugins, trust
from dreamer.apps import cli, commands, evaluate
from dreamer.apps.report.command import report_runs
from dreamer.apps.report.runs import read_run
from dreamer.config import load, to_yaml
from dreamer.errors import UserError
from dreamer.runtime.files import safe_files
from dreamer.runtime.run import run_config

pytestmark = pytest.mark.usefixtures("quick")

ENV = {"env": "my_lab:make", "eval__episodes": 0, "log__tensorboard": False, "env_steps": 40}


@pytest.fixture
def marker(tmp_path) -> Path:
    """A file that exists once the stranger's code has run."""
    return tmp_path / "it ran"


@pytest.fixture
def lab(tmp_path, monkeypatch, marker) -> Path:
    """Changes into a folder that holds a module of the user."""
    folder = tmp_path / "lab"
    folder.mkdir()
    (folder / "my_lab.py").write_text(
        textwrap.dedent(f"""
        from pathlib import Path
        from broken_envs import Sound

        Path({str(marker)!r}).touch()

        def make():
            return Sound()
        """)
    )
    monkeypatch.chdir(folder)
    return folder


def run_of_a_stranger(folder: Path, **settings) -> Path:
    """Writes a run directory whose config, written on another machine, names code."""
    run = folder / "runs" / "downloaded"
    config = tiny(run, env_steps=40)
    text = to_yaml(config)
    for key, value in settings.items():
        text = "\n".join(f"{key}: {value}" if line.startswith(f"{key}: ") else line for line in text.split("\n"))
    run.mkdir(parents=True)
    key, trust_key = b"x" * 32, trust._key
    try:
        trust._key = lambda make: key
        (run / "config.yaml").write_text(trust.sealed_text(text, "0" * 32))
    finally:
        trust._key = trust_key
    (run / "metrics.jsonl").write_text("")
    (run / "checkpoints").mkdir()
    return run


ATTACKS = {
    "a factory": {"env": "my_lab:make"},
    "a function of the standard library": {
        "env": "subprocess:getoutput", "env_options": "{cmd: touch '{marker}'}",
    },
    "an id behind a module": {"env": "my_lab:CartPole-v1"},
    "an id that imports what its options name": {
        "env": "GymV26Environment-v0", "env_options": "{env_id: CartPole-v1}",
    },
    "an option that names a module": {"env": "CartPole-v1", "env_options": "{entry_point: 'my_lab:make'}"},
    "a task with a path": {"env": "probes:../my_lab"},
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_run_of_a_stranger_runs_nothing(lab, marker, attack):
    settings = {key: value.replace("{marker}", str(marker)) for key, value in ATTACKS[attack].items()}
    run = run_of_a_stranger(lab, **settings)
    for use in (
        lambda: dreamer.load(run),
        lambda: evaluate.evaluate(run),
        lambda: cli.train_command(["--run-dir", str(run), "--resume"]),
        lambda: commands.eval_command([str(run)]),
        lambda: load(run / "config.yaml"),
    ):
        with pytest.raises(UserError) as error:
            use()
        assert "names code that is not dreamer's" in str(error.value) and "--trust" in str(error.value)
    with pytest.raises(UserError, match="with another config|names code"):
        dreamer.train(tiny(run, env="probes:both", env_steps=80), resume="yes")
    assert not marker.exists()


def payload(run: Path, marker: Path) -> None:
    (run / "payload.py").write_text(f"from pathlib import Path\nPath({str(marker)!r}).touch()\nclass Config: pass\n")


def with_world_model(text: str, name: str) -> str:
    """Returns a config whose world model is the plug-in `name`."""
    lines = text.split("\n")
    at = next(i for i, line in enumerate(lines) if line.strip() == "name: rssm")
    lines[at] = lines[at].replace("rssm", name)
    return "\n".join(lines)


def test_a_plug_in_inside_a_run_is_not_imported_even_with_trust(lab, marker):
    run = run_of_a_stranger(lab)
    payload(run, marker)
    text = with_world_model(to_yaml(tiny(run, env="probes:both", env_steps=40)), "runs.downloaded.payload")
    (run / "config.yaml").write_text(text)
    with pytest.raises(UserError, match="agent.world_model.name is 'runs.downloaded.payload'"):
        dreamer.load(run)
    with pytest.raises(UserError, match="lies in a run directory"):
        dreamer.load(run, trust=True)
    with pytest.raises(UserError, match="lies in a run directory"):
        plugins.load("runs.downloaded.payload")
    assert not marker.exists()


def test_a_report_imports_nothing_that_a_run_names(lab, marker):
    run = write_run(lab / "runs" / "one")
    text = with_world_model(to_yaml(tiny(run, env_steps=40)), "my_lab:plug")
    (run / "config.yaml").write_text(text)
    report_runs([str(run)], groups=[], metrics=(), out=str(lab / "report"), references_dir="", bin_width=0, media_mb=1)
    assert read_run(run).config.agent.world_model.name == "my_lab:plug"
    assert not marker.exists()


def test_a_preset_of_a_stranger_names_no_code_without_a_word(lab, marker, capsys):
    preset = lab / "stranger.yaml"
    preset.write_text("env: my_lab:make\n")
    with pytest.raises(UserError, match="stranger.yaml names code that is not dreamer's"):
        load(preset)
    assert cli.main(["train", str(preset), "--print-config"]) == 2
    assert "--env my_lab:make" in capsys.readouterr().err
    for words in (["--env", "my_lab:make"], ["--trust"], ["--env", "CartPole-v1"]):
        assert cli.main(["train", str(preset), *words, "--print-config"]) == 0
    assert load(preset, trust=True).env == "my_lab:make"
    assert load(preset, overrides={"env": "my_lab:make"}).env == "my_lab:make"
    assert not marker.exists()


def test_an_optimizer_of_a_preset_needs_no_word(tmp_path):
    file = tmp_path / "decoder.yaml"
    file.write_text("agent: {optimizers: {world_model/dec: {learning_rate: 1e-4}}}")
    assert load(file).agent.optimizers == {"world_model/dec": {"learning_rate": 1e-4}}


def test_a_plug_in_of_a_preset_is_not_imported_although_the_command_names_another(lab, marker):
    preset = lab / "stranger.yaml"
    preset.write_text("agent: {world_model: {name: 'my_lab:plug'}}\n")
    with pytest.raises(UserError, match="agent.world_model.name is 'my_lab:plug'"):
        load(preset, overrides={"agent.world_model.name": "rssm"})
    assert cli.main(["train", str(preset), "--agent.world-model.name", "rssm", "--print-config"]) == 2
    assert not marker.exists()


def test_a_run_that_this_user_made_needs_no_word_wherever_it_lies(lab, marker):
    run = dreamer.train(tiny(lab / "runs" / "mine", **ENV))
    assert marker.exists()
    moved = shutil.move(run, lab / "elsewhere")
    assert run_config.read(Path(moved)).ours
    assert run_config.load(Path(moved)).env == "my_lab:make"
    dreamer.train(tiny(Path(moved), **{**ENV, "env_steps": 48}), resume="yes")
    assert cli.main(["train", "--run-dir", str(moved), "--resume", "--print-config"]) == 0


def test_a_run_of_another_machine_needs_a_word(lab, marker, monkeypatch, tmp_path):
    run = dreamer.train(tiny(lab / "runs" / "mine", **ENV))
    marker.unlink()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another"))
    assert not run_config.read(run).ours
    with pytest.raises(UserError, match="not made by you on this machine"):
        run_config.load(run)
    assert run_config.load(run, trusted=True).env == "my_lab:make"
    assert run_config.load(run, given={"env": "my_lab:make"}).env == "my_lab:make"
    assert cli.main(["train", "--run-dir", str(run), "--resume", "--print-config"]) == 2
    assert cli.main(["train", "--run-dir", str(run), "--resume", "--print-config", "--env", "my_lab:make"]) == 0
    assert cli.main(["train", "--run-dir", str(run), "--resume", "--print-config", "--trust"]) == 0
    # In Python the config that is passed names it.
    dreamer.train(tiny(run, **{**ENV, "env_steps": 48}), resume="yes")


def test_names_that_need_no_word(lab):
    suites = plugins.suite_names()
    for env in ("CartPole-v1", "ALE/Pong-v5", "dmc:walker-walk", "minigrid:Empty-5x5-v0", "probes:both"):
        assert trust.safe_env(env, suites), env
    for env in ("os:system", "my_lab.envs:make", "module:CartPole-v1", "envs.dmc:make", "GymV21Environment-v0"):
        assert not trust.safe_env(env, suites), env


# ---- the seal of a config


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return dreamer.train(tiny(tmp_path_factory.mktemp("made") / "run", env="probes:both", **{
        key: value for key, value in ENV.items() if key != "env"}))  # fmt: skip


def test_a_config_that_was_changed_is_named(tmp_path, made):
    run = shutil.copytree(made, tmp_path / "run")
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("seed: 0", "seed: 1"))
    for use in (lambda: run_config.read(run), lambda: read_run(run), lambda: load(run / "config.yaml")):
        with pytest.raises(UserError, match="changed after it was written"):
            use()


def test_the_config_of_another_run_is_named(tmp_path, made):
    run = shutil.copytree(made, tmp_path / "run")
    other = dreamer.train(tiny(tmp_path / "other", env="probes:both", eval__episodes=0, env_steps=40))
    shutil.copy(other / "config.yaml", run / "config.yaml")
    with pytest.raises(UserError, match="config.yaml belongs to another run: checkpoint 40 belongs to run"):
        dreamer.train(tiny(run, env="probes:both", eval__episodes=0, env_steps=60), resume="yes")
    with pytest.raises(UserError, match="belongs to another run"):
        dreamer.load(run)


def test_a_config_without_its_seal_is_refused_for_a_sealed_run(tmp_path, made):
    run = shutil.copytree(made, tmp_path / "run")
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.partition("\n")[2].replace("seed: 0", "seed: 1"))
    with pytest.raises(UserError, match="has lost its first line, which seals it"):
        dreamer.load(run)


def test_the_line_of_an_error_in_a_sealed_config_is_the_line_of_the_file(tmp_path):
    (tmp_path / "config.yaml").write_text(trust.sealed_text("seed: 0\nenv_steps: [\n", "0" * 32))
    with pytest.raises(UserError, match=r"config\.yaml:4"):
        load(tmp_path / "config.yaml")


# ---- the key


def test_the_key_is_made_once_and_for_the_user_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    mac = trust.seal(b"data")
    assert trust.sealed_here(b"data", mac) and not trust.sealed_here(b"other", mac)
    assert trust.key_file().stat().st_mode & 0o777 == 0o600
    assert [path.name for path in trust.key_file().parent.iterdir()] == ["key"]


def test_a_key_that_others_can_read_proves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    mac = trust.seal(b"data")
    trust.key_file().chmod(0o644)
    assert not trust.sealed_here(b"data", mac) and trust.seal(b"data") == ""


def test_without_a_place_for_a_key_nothing_is_sealed(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    assert trust.seal(b"data") == "" and not trust.sealed_here(b"data", "")
    assert trust.unsealed(trust.sealed_text("seed: 0\n", "0" * 32)) == ("seed: 0\n", "0" * 32, False)


# ---- the current folder


def test_modules_of_the_current_folder_take_no_others_place(tmp_path, marker):
    folder = tmp_path / "stranger"
    folder.mkdir()
    for name in ("signal", "yaml", "gymnasium", "numpy", "select", "envs", "dreamer_plugin"):
        (folder / f"{name}.py").write_text(f"open({str(marker)!r}, 'w')\n")
    root = Path(__file__).parent.parent
    code = (
        f"import sys; sys.path[:0] = [{str(root)!r}]; from dreamer.apps import cli; "
        "sys.exit(cli.main(['check', 'probes:both', '--steps', '20', '--workers', '1']))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not marker.exists()


def test_a_run_directory_is_never_on_the_path(tmp_path, monkeypatch, made):
    monkeypatch.chdir(made / "rows")
    monkeypatch.setattr(sys, "path", list(sys.path))
    plugins.add_current_folder()
    assert str(made / "rows") not in sys.path
    monkeypatch.chdir(tmp_path)
    plugins.add_current_folder()
    assert sys.path[-1] == str(tmp_path)


# ---- text files


def test_only_small_regular_text_files_are_read(tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/etc/hostname")
    (tmp_path / "large").write_bytes(b"x" * 1001)
    (tmp_path / "bytes").write_bytes(b"\xff")
    for name, why in {"pipe": "not a regular", "link": "it is a link", "large": "larger than", "bytes": "not UTF-8",
                       "none": "is missing"}.items():  # fmt: skip
        with pytest.raises(UserError, match=why):
            safe_files.read_text(tmp_path / name, most=1000)


def test_a_yaml_bomb_is_refused(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    (tmp_path / "bomb.yaml").write_text("\n".join(lines))
    with pytest.raises(UserError, match="holds more than 100,000 values"):
        load(tmp_path / "bomb.yaml")
