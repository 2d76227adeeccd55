"""`dreamer check` finds environments that reset themselves inside step, and no others."""

from __future__ import annotations

import pytest
from self_resetting_envs import SELF_RESETTING, SOUND

from dreamer.apps.check.examine import examine
from dreamer.apps.check.verdicts import Settings
from dreamer.apps.check.watch import Watch


def wrongs(**options) -> dict[str, str]:
    settings = Settings(env_options=options, steps=900)
    verdicts = examine("self_resetting_envs:make", settings, Watch())
    return {verdict.key: verdict.text for verdict in verdicts if verdict.level == "wrong"}


@pytest.mark.parametrize("kind", SELF_RESETTING)
def test_an_environment_that_resets_itself_inside_step_is_found(kind):
    assert wrongs(kind=kind).keys() == {"reset-inside"}


@pytest.mark.parametrize("kind", SOUND)
def test_a_healthy_environment_is_not_reported(kind):
    assert wrongs(kind=kind, sound=True) == {}
