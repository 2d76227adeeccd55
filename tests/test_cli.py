"""dreamer/apps/cli.py: flags, help, exit codes and the one line on stderr."""

from __future__ import annotations

import pathlib
import re
import signal
import subprocess
import sys
import types

import pytest
import yaml

from dreamer.apps import cli, train_help
from dreamer.config import Config, load, to_yaml
from dreamer.errors import UserError
from dreamer.fields import MAY_CHANGE, get, keys, marked
from dreamer.plugins import suite_names
from dreamer.runtime.log.glossary import METRICS
from dreamer.runtime.run.stopping import Stopped

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture
def preset(tmp_path):
    """Writes a preset file and returns its path."""

    def write(text: str, name: str = "mine.yaml") -> str:
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return write


@pytest.fixture
def trained(monkeypatch):
    """Records the configs that `train` receives."""
    configs: list[Config] = []
    module = types.ModuleType("dreamer.runtime.train")
    module.train = lambda config, **_: configs.append(config)
    monkeypatch.setitem(sys.modules, "dreamer.runtime.train", module)
    return configs


@pytest.fixture
def evaluated(monkeypatch):
    """Records the arguments that `evaluate_run` receives."""
    calls: list[tuple] = []
    module = types.ModuleType("dreamer.apps.evaluate")
    module.evaluate_run = lambda run, **options: calls.append((run, options))
    monkeypatch.setitem(sys.modules, "dreamer.apps.evaluate", module)
    return calls


def printed_config(capsys, *args: str) -> dict:
    assert cli.main(["train", *args, "--print-config"]) == 0
    return yaml.safe_load(capsys.readouterr().out)


def error_line(capsys, *args: str) -> str:
    assert cli.main(args) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("dreamer: error: ") and err.count("\n") == 1 and err.endswith("\n")
    return err


# ---- train


def test_presets_stack_and_flags_override_wherever_they_stand(preset, trained):
    first, second = preset("seed: 1\nreplay_ratio: 2", "a.yaml"), preset("seed: 2", "b.yaml")
    args = ["train", "--replay-ratio", "8", first, "--lockstep", second, "--agent.world-model.free-nats", "0.5"]
    assert cli.main(args) == 0
    expected = {"seed": 2, "replay_ratio": 8, "lockstep": True, "agent.world_model.free_nats": 0.5}
    assert trained == [load(overrides=expected)]
    assert type(trained[0]) is Config


def test_every_field_has_a_flag(capsys):
    default = Config()
    for key in keys(default):
        if key != "env_options":
            value = default
            for part in key.split("."):
                value = getattr(value, part)
            words = ([str(item) for item in value] or ["[]"]) if isinstance(value, tuple) else [str(value)]
            assert cli.main(["train", "--" + key.replace("_", "-"), *words, "--print-config"]) == 0
            assert capsys.readouterr().out == to_yaml(default)


@pytest.mark.parametrize(
    "words, path, value",
    [
        (["--env-steps", "1e6"], ["env_steps"], 1_000_000),
        (["--env-steps=1_000"], ["env_steps"], 1000),
        (["--env_steps", "7"], ["env_steps"], 7),
        (["--replay-ratio", "7e-4"], ["replay_ratio"], 7e-4),
        (["--lockstep"], ["lockstep"], True),
        (["--lockstep", "false"], ["lockstep"], False),
        (["--lockstep", "--no-lockstep"], ["lockstep"], False),
        (["--log.no-tensorboard"], ["log", "tensorboard"], False),
        (["--log.wandb", "off"], ["log", "wandb"], "off"),
        (["--run-dir", "12"], ["run_dir"], "12"),
        (["--run-dir=a.yaml"], ["run_dir"], "a.yaml"),
        (["--seed", "1", "--seed", "2"], ["seed"], 2),
        (["--agent.world-model.mults", "1", "2", "3"], ["agent", "world_model", "mults"], [1, 2, 3]),
        (["--agent.world-model.mults", "[4, 5]"], ["agent", "world_model", "mults"], [4, 5]),
        (
            ["--env-options.size", "64", "32", "--env-options.image", "true"],
            ["env_options"],
            {"size": [64, 32], "image": True},
        ),
        (
            ["--env-options", "{size: [64, 32]}", "--env-options.camera=2"],
            ["env_options"],
            {"size": [64, 32], "camera": 2},
        ),
        (["--env-options.offset", "-1.5"], ["env_options"], {"offset": -1.5}),
    ],
)
def test_a_flag_sets_its_field(capsys, words, path, value):
    found = printed_config(capsys, *words)
    for part in path:
        found = found[part]
    assert found == value


def test_a_flag_for_an_option_leaves_the_options_of_the_preset(capsys, preset):
    path = preset("env_options: {image: true, size: [64, 64]}")
    found = printed_config(capsys, path, "--env-options.size", "[32, 32]")
    assert found["env_options"] == {"image": True, "size": [32, 32]}


def test_the_printed_config_is_a_preset(capsys, preset):
    cli.main(["train", "--seed", "3", "--env-options.a", "[1, x]", "--print-config"])
    text = capsys.readouterr().out
    cli.main(["train", preset(text), "--print-config"])
    assert capsys.readouterr().out == text


@pytest.mark.parametrize(
    "args, parts",
    [
        (["--sed", "3"], ["unknown flag --sed", "'--seed'"]),
        (["-seed", "3"], ["unknown flag -seed", "'--seed'"]),
        (["--free-nats", "3"], ["--free-nats", "'--agent.world-model.free-nats'"]),
        (["--print-confg"], ["--print-confg", "'--print-config'"]),
        (["--no-lockstp"], ["--no-lockstp", "'--lockstep'"]),
        (["--no-seed"], ["unknown flag --no-seed"]),
        (["--seed"], ["--seed", "needs a value", "int"]),
        (["--seed", "--lockstep"], ["--seed", "needs a value"]),
        (["--seed", "abc"], ["seed", "whole number", "'abc'", "--seed"]),
        (["--seed", "1.5"], ["seed", "whole number", "1.5"]),
        (["--seed", "-1"], ["seed", "from 0", "-1", "--seed"]),
        (["--seed="], ["seed", "whole number", "--seed"]),
        (["--agent.world-model.free-nats", "abc"], ["agent.world_model.free_nats", "number", "'abc'"]),
        (["--agent.world-model.mults", "2", "x"], ["agent.world_model.mults", "list", "'x'"]),
        (["--log.wandb", "offlin"], ["log.wandb", "offline", "'offlin'"]),
        (["--lockstep=maybe"], ["lockstep", "true or false", "'maybe'"]),
        (["--agent.world-model", "rssm"], ["--agent.world-model", "group", "--agent.world-model.name"]),
        (["--agent.world-model.name", "rsm"], ["agent.world_model.name", "'rsm'", "'rssm'"]),
        (["--env-options", "3"], ["env_options", "mapping", "3", "--env-options"]),
        (["--env-options.size"], ["--env-options.size", "needs a value"]),
        (["--env-options", "3", "--env-options.size", "3"], ["env_options", "both"]),
        (["walker"], ["stray argument 'walker'", ".yaml"]),
        (["--seed", "3", "walker"], ["stray argument 'walker'"]),
        (["--lockstep", "walker"], ["stray argument 'walker'"]),
        (["--"], ["--"]),
        (["nowhere/a.yaml"], ["nowhere/a.yaml", "no folder"]),
        (["nowhere/quickstart.yaml"], ["no folder 'nowhere'", "dreamer train quickstart"]),
        (["quickstrat"], ["stray argument 'quickstrat'", "did you mean 'quickstart'?"]),
        (["--env-options", "size=3"], ["write --env-options.size 3"]),
        (["--agent.optimizer.lr", "1e-4"], ["'--agent.optimizer.learning-rate'"]),
        (["--lr", "1e-4"], ["'--agent.optimizer.learning-rate'"]),
        (["--gamma", "0.9"], ["'--agent.horizon'"]),
        (["--steps", "9"], ["'--env-steps'"]),
        (["--num-envs", "9"], ["'--workers.envs'"]),
        (["--logdir", "x"], ["'--run-dir'"]),
    ],
)
def test_a_wrong_flag_ends_with_one_line_and_code_2(capsys, trained, args, parts):
    line = error_line(capsys, "train", *args)
    for part in parts:
        assert part in line, line
    assert not trained


def test_a_preset_named_without_its_ending_is_found(capsys, preset, tmp_path, monkeypatch):
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "mine.yaml").touch()
    monkeypatch.chdir(tmp_path)
    assert "'experiments/mine.yaml'" in error_line(capsys, "train", "mine")


# ---- which words are presets


def test_a_shipped_preset_is_found_by_its_name_and_a_folder_of_ones_own_hides_none(trained, tmp_path, monkeypatch):
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "quickstart.yaml").write_text("seed: 9")
    (tmp_path / "quickstart").write_text("seed: 8")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "quickstart", "--lockstep", "size12m"]) == 0
    assert trained == [load("quickstart", "size12m", overrides={"lockstep": True})]
    assert trained[0].env_steps == 30_000 and trained[0].seed == 0
    assert cli.main(["train", "experiments/quickstart.yaml"]) == 0
    assert trained[1].seed == 9


@pytest.mark.parametrize(
    ("flags", "key", "value", "preset_too"),
    [
        (["--env-options.config", "scene.yaml"], "env_options", {"config": "scene.yaml"}, False),
        (["--env-options.config", "scene.yaml", "{preset}"], "env_options", {"config": "scene.yaml"}, True),
        (["--env-options.size", "3", "4", "{preset}"], "env_options", {"size": [3, 4]}, True),
        (["--env-options.config=scene.yaml", "{preset}"], "env_options", {"config": "scene.yaml"}, True),
        (["--run-dir", "scene.yaml"], "run_dir", "scene.yaml", False),
        (["--run-dir", "debug", "{preset}"], "run_dir", "debug", True),
        (["--init-from", "a.yaml"], "init_from", "a.yaml", False),
        (["--lockstep", "{preset}"], "lockstep", True, True),
        (["--no-lockstep", "{preset}"], "lockstep", False, True),
        (["--lockstep", "true", "{preset}"], "lockstep", True, True),
        (["--agent.world-model.mults", "1", "2", "{preset}"], "agent.world_model.mults", (1, 2), True),
    ],
)
def test_a_word_after_a_flag_is_its_value_and_the_rest_are_presets(trained, preset, flags, key, value, preset_too):
    path = preset("seed: 5")
    assert cli.main(["train", *(flag.format(preset=path) for flag in flags)]) == 0
    assert (get(trained[0], key), trained[0].seed) == (value, 5 if preset_too else 0)


def test_resume_before_a_preset_is_a_switch(monkeypatch, trained, preset):
    seen = []
    module = sys.modules["dreamer.runtime.train"]
    monkeypatch.setattr(module, "train", lambda config, resume, **_: seen.append(resume))
    assert cli.main(["train", "--resume", preset("seed: 1")]) == 0
    assert cli.main(["train", "--resume", "auto", preset("seed: 1")]) == 0
    assert seen == ["yes", "auto"]


def test_presets_are_listed_with_what_they_are(capsys):
    assert cli.main(["presets"]) == 0
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines()[1:])
    assert set(lines) == {path.stem for path in (ROOT / "experiments").glob("*.yaml")}
    assert re.fullmatch(r" *30,000 +its own +CartPole-v1, from scratch .*", lines["quickstart"])
    assert re.fullmatch(r" *51,000,000 +200m +Atari .*", lines["atari"])


def test_every_suite_is_listed_with_an_example_that_names_it(capsys):
    assert cli.main(["envs"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:-2]]
    assert {row[0] for row in rows} == {*suite_names(), "classic", "box2d"}
    assert all(row[-1].startswith(f"{row[0]}:") for row in rows if row[0] in suite_names())
    assert {row[0]: row[-3] for row in rows}["probes"] == "yes"


def test_metrics_are_listed_and_one_is_explained(capsys):
    assert cli.main(["metrics"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {metric.name} " in out for metric in METRICS) and max(map(len, out.splitlines())) <= 100
    assert cli.main(["metrics", "dyn"]) == 0
    assert capsys.readouterr().out.startswith("loss/dyn\n  Dynamics loss in nats")


@pytest.mark.parametrize(
    "args, parts",
    [
        (["metrics", "latent/kI"], ["no metric 'latent/kI'", "'latent/kl'"]),
        (["metrics", "a", "b"], ["takes 1 word, not 'b'"]),
        (["presets", "size1m"], ["takes nothing, not 'size1m'"]),
        (["envs", "--all"], ["takes nothing, not '--all'"]),
        (["completion", "bsh"], ["bash and zsh", "'bsh'", "did you mean 'bash'?"]),
        (["completion"], ["needs a shell"]),
        (["train", "--help", "entropi"], ["no flag of dreamer train is about 'entropi'", "'entropy'"]),
    ],
)
def test_a_wrong_word_for_a_list_or_the_help_ends_with_one_line(capsys, args, parts):
    line = error_line(capsys, *args)
    assert all(part in line for part in parts), line


@pytest.mark.parametrize(
    "typed, wanted", [("tra", "train"), ("train --env-st", "--env-steps"), ("train quick", "quickstart"),
                      ("metrics loss/dy", "loss/dyn"), ("eval --epis", "--episodes")],
)  # fmt: skip
def test_bash_completes_commands_flags_and_presets(capsys, tmp_path, typed, wanted):
    assert cli.main(["completion", "bash"]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    words = ["dreamer", *typed.split()]
    program = (
        f"source {tmp_path / 'script'}; complete -p dreamer >/dev/null; COMP_WORDS=({' '.join(words)}); "
        f"COMP_CWORD={len(words) - 1}; _dreamer; echo ${{COMPREPLY[@]}}"
    )
    done = subprocess.run(["bash", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert wanted in done.stdout.split() and not done.stderr


@pytest.fixture
def kept_lab(tmp_path, monkeypatch):
    """Writes kept_lab.model, a world model of the user whose Config inherits ours."""
    (tmp_path / "kept_lab").mkdir()
    (tmp_path / "kept_lab" / "model.py").write_text(
        "import dataclasses\nfrom dreamer.world_models import rssm\n\n@dataclasses.dataclass(frozen=True)\n"
        "class Config(rssm.Config):\n    name: str = 'x'\n    deter: int = 4096\n    mine: int = 1\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield
    for name in ("kept_lab", "kept_lab.model"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("kept_lab")
def test_a_plug_in_given_by_flag_keeps_the_sizes_of_the_preset(capsys, preset):
    named = ["--agent.world-model.name", "kept_lab.model"]
    found = printed_config(capsys, "debug", "size1m", *named, "--agent.world-model.mine", "3")["agent"]["world_model"]
    expected = load("debug", "size1m").agent.world_model
    assert found | {"name": 0} == vars(expected) | {"mults": list(expected.mults), "mine": 3, "name": 0}
    assert printed_config(capsys, *named)["agent"]["world_model"]["deter"] == 4096  # its own default


def test_a_preset_cannot_hold_what_only_the_command_line_has(capsys, preset):
    assert "'print_config'" in error_line(capsys, "train", preset("print_config: true"))


def test_a_user_error_of_the_run_is_one_line(capsys, monkeypatch, trained):
    def fail(config, **_):
        raise UserError("env 'x' is\n not there")

    monkeypatch.setattr(sys.modules["dreamer.runtime.train"], "train", fail)
    assert error_line(capsys, "train") == "dreamer: error: env 'x' is not there\n"


@pytest.mark.parametrize(
    ("stop", "code"),
    [
        (KeyboardInterrupt(), 130), (Stopped(signal.SIGINT), 130), (Stopped(signal.SIGTERM), 143),
        (Stopped(signal.SIGUSR1), 138),
    ],
)  # fmt: skip
def test_an_interrupt_exits_with_the_code_of_its_signal(monkeypatch, trained, stop, code):
    def interrupt(config, **_):
        raise stop

    monkeypatch.setattr(sys.modules["dreamer.runtime.train"], "train", interrupt)
    assert cli.main(["train"]) == code


def test_an_interrupted_run_that_could_not_be_saved_exits_with_2(monkeypatch, trained, capsys):
    def interrupt(config, **_):
        stop = Stopped(signal.SIGTERM)
        stop.add_note("the disk\n is full")
        raise stop

    monkeypatch.setattr(sys.modules["dreamer.runtime.train"], "train", interrupt)
    expected = "dreamer: error: interrupted, and not all was saved: the disk is full\n"
    assert error_line(capsys, "train") == expected


@pytest.mark.parametrize(
    ("words", "expected"), [([], "no"), (["--resume"], "yes"), (["--resume", "auto"], "auto"), (["--resume=no"], "no")]
)
def test_resume_is_passed_on(monkeypatch, trained, tmp_path, words, expected):
    seen = []
    module = sys.modules["dreamer.runtime.train"]
    monkeypatch.setattr(module, "train", lambda config, resume, **_: seen.append(resume))
    assert cli.main(["train", "--run-dir", str(tmp_path), *words]) == 0
    assert seen == [expected]


def test_a_resumed_run_has_its_own_config_beneath_what_is_given(trained, tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 7\nenv_steps: 100\n")
    assert cli.main(["train", "--resume", "--run-dir", str(tmp_path), "--env-steps", "200"]) == 0
    assert (trained[0].seed, trained[0].env_steps) == (7, 200)


def test_a_bug_is_not_dressed_up_as_a_user_error(monkeypatch, trained):
    def bug(config, **_):
        raise ZeroDivisionError

    monkeypatch.setattr(sys.modules["dreamer.runtime.train"], "train", bug)
    with pytest.raises(ZeroDivisionError):
        cli.main(["train"])


# ---- eval


NEUTRAL = {"env": "", "env_options": {}, "trust": False, "video": None, "json_file": None, "mode": None, "seed": 0}


def test_eval_takes_its_run_and_flags_in_any_order(evaluated):
    args = ["--episodes", "3", "runs/x", "--mode=mode", "--video", "a.mp4", "--seed", "1", "--json", "s.json"]
    args += ["--env-options.size", "15", "--env", "CartPole-v1"]
    assert cli.main(["eval", *args, "--video-episodes", "9"]) == 0
    assert cli.main(["eval", "runs/x"]) == 0
    given = {"env": "CartPole-v1", "env_options": {"size": 15}, "trust": False}
    assert evaluated == [
        ("runs/x", dict(given, episodes=3, video="a.mp4", video_episodes=9, json_file="s.json", mode="mode", seed=1)),
        ("runs/x", {**NEUTRAL, "episodes": 20, "video_episodes": 4}),
    ]


@pytest.mark.parametrize(
    "args, parts",
    [
        ([], ["directory of a run"]),
        (["a", "b"], ["stray argument 'b'"]),
        (["a", "--episodes", "0"], ["episodes", "at least 1", "--episodes"]),
        (["a", "--episodes"], ["--episodes", "needs a value"]),
        (["a", "--video-episodes", "17"], ["video_episodes", "from 1 to 16", "--video-episodes"]),
        (["a", "--mode", "smple"], ["mode", "sample, mode", "'smple'", "--mode"]),
        (["a", "--episode", "3"], ["--episode", "'--episodes'"]),
    ],
)
def test_a_wrong_eval_ends_with_one_line_and_code_2(capsys, evaluated, args, parts):
    line = error_line(capsys, "eval", *args)
    for part in parts:
        assert part in line, line
    assert not evaluated


# ---- help and version


def help_text(capsys, monkeypatch, *args: str) -> str:
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(args) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_help_lists_every_field_with_type_default_and_meaning(capsys, monkeypatch):
    text = help_text(capsys, monkeypatch, "train", "--help-all")
    rows = re.split(r"^\W*--(?=\w)", text, flags=re.MULTILINE)[1:]
    for key in [*keys(Config()), "print_config"]:
        flag = key.replace("_", "-")
        found = [row for row in rows if row.split()[0].rstrip(",") == flag]
        assert len(found) == 1, f"{flag} is not in the help"
        meaning, default, _ = found[0].partition("\n")[2].partition("(default:")
        assert default and len(re.findall(r"\w+", meaning)) > 1, found[0]


def test_help_lists_what_may_differ_at_a_resume(capsys, monkeypatch):
    text = " ".join(help_text(capsys, monkeypatch, "train", "--help-all").replace("\n- ", " ").split())
    assert f"may differ from the run's own config: {', '.join(marked(Config(), MAY_CHANGE))}." in text


@pytest.mark.parametrize("flag", ["-h", "--help-all"])
def test_help_fits_80_columns(capsys, monkeypatch, flag):
    text = help_text(capsys, monkeypatch, "train", flag)
    assert max(map(len, text.splitlines())) <= 80


def test_the_help_of_train_fits_one_screen_with_examples_and_presets(capsys, monkeypatch):
    text = help_text(capsys, monkeypatch, "train", "--help")
    assert len(text.splitlines()) <= 45
    assert "examples:" in text and "--env-steps" in text and "dmc_vision" in text and "--help-all" in text


@pytest.mark.parametrize(
    "word, flags",
    [("entropy", ["--agent.behavior.entropy"]), ("replay.batch-size", ["--replay.batch-size"]),
     ("checkpoint", ["--checkpoint.every", "--checkpoint.keep", "--resume-from"])],
)  # fmt: skip
def test_help_on_a_word_shows_the_flags_whose_name_or_meaning_has_it(capsys, monkeypatch, word, flags):
    text = help_text(capsys, monkeypatch, "train", "--help", word)
    shown = re.findall(r"^  (--\S+)", text, flags=re.MULTILINE)
    assert set(flags) <= set(shown) and len(shown) < 12


def test_every_flag_of_train_has_a_meaning_in_the_search():
    assert [row.key for row in train_help.rows_of(cli.TrainFlags()) if not row.meaning] == []


def test_help_shows_the_defaults_after_the_presets(capsys, monkeypatch, preset):
    text = help_text(capsys, monkeypatch, "train", preset("env_steps: 12345\nenv_options: {a: 1}"), "--help-all")
    assert "(default: 12345)" in text and "(default: '{a: 1}')" in text


def test_help_shows_the_fields_of_the_chosen_plug_in(capsys, monkeypatch, tmp_path):
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "model.py").write_text(
        "import dataclasses\n\n@dataclasses.dataclass(frozen=True)\nclass Config:\n"
        '    name: str = "x"\n    """Its name."""\n    wings: int = 7\n    """Number of wings."""\n'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    text = help_text(capsys, monkeypatch, "train", "--agent.world-model.name", "lab.model", "--help-all")
    assert "--agent.world-model.wings INT" in text and "Number of wings." in text
    assert "--agent.world-model.deter" not in text


def test_eval_help_lists_its_flags(capsys, monkeypatch):
    text = help_text(capsys, monkeypatch, "eval", "--help")
    assert all(flag in text for flag in ("--episodes INT", "--video", "--json", "--mode", "--seed INT", "RUN"))


@pytest.mark.parametrize("args", [[], ["-h"], ["--help"]])
def test_the_bare_command_shows_its_usage(capsys, args):
    assert cli.main(args) == 0
    assert "dreamer train" in capsys.readouterr().out


@pytest.mark.parametrize("word, near", [("trian", "'train'"), ("--versoin", "'--version'"), ("a.yaml", "; choices: ")])
def test_an_unknown_command_names_the_nearest(capsys, word, near):
    assert near in error_line(capsys, word)


def test_python_m_dreamer_is_the_command():
    run = subprocess.run([sys.executable, "-m", "dreamer", "--version"], capture_output=True, text=True, check=True)
    assert run.stdout.startswith("dreamer ")
    run = subprocess.run([sys.executable, "-m", "dreamer", "tran"], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (2, "dreamer: error: unknown command 'tran'; did you mean 'train'?\n")


def test_usage_and_help_of_eval_load_no_jax():
    program = (
        "import sys\nfrom dreamer.apps import cli\n"
        "cli.main(['--help']); cli.main(['eval', '--help']); cli.main(['report', '--help'])\n"
        "assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_every_command_has_a_help(capsys):
    names = ("train", "eval", "imagine", "check", "report", "verify", "data", "presets", "envs", "metrics")
    for name in (*names, "completion"):
        assert cli.main([name, "--help"]) == 0, name
        assert capsys.readouterr().out.strip(), name
