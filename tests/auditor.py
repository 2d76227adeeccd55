"""Checks the rows that workers return from `faulty_envs:witness` against the expected next rows and the files."""

from __future__ import annotations

import numpy as np


def act(ready):
    """Returns actions that the next rows can be checked against."""
    return np.eye(4, dtype=np.float32)[chosen(ready)]


def chosen(ready):
    return (ready.step.obs["time"].sum(1) + ready.streams).astype(int) % 4


class Auditor:
    """Keeps the received rows, and fails on a row that cannot follow them."""

    def __init__(self, envs):
        self.life, self.time, self.over, self.sent = [-1] * envs, [(0, 0)] * envs, [True] * envs, [4] * envs
        self.rows: dict[int, int] = {}
        self.total = 0

    def take(self, ready):
        obs = ready.step.obs
        for i, env in enumerate(ready.streams.tolist()):
            life, (episode, time) = int(obs["life"][i, 0]), obs["time"][i].astype(int).tolist()
            first = ready.step.is_first[i]
            if life != self.life[env]:
                assert life not in self.rows, "a seed was used twice"
                assert (life - 10) % len(self.life) == env and first and (episode, time) == (1, 0)
                self.life[env] = life
            else:
                before = self.time[env]
                assert (episode, time) == ((before[0] + 1, 0) if self.over[env] else (before[0], before[1] + 1))
                assert first == self.over[env]
            assert obs["action"][i] == (4 if first else self.sent[env])
            self.rows[life] = self.rows.get(life, 0) + 1
            assert (obs["picture"][i] == (life + self.rows[life]) % 256).all(), "the row is torn"
            self.time[env], self.over[env] = (episode, time), bool(ready.step.is_last[i])
        for env, action in zip(ready.streams.tolist(), chosen(ready).tolist(), strict=True):
            self.sent[env] = action
        self.total += len(ready.streams)

    def check(self, folder, lost_with_others=0):
        """Fails unless every row that a life has written was received; a process that dies may lose one row of each."""
        made = {int(file.name): int(file.read_text() or 0) for file in folder.iterdir()}
        missing = {life: count - self.rows.get(life, 0) for life, count in made.items()}
        assert all(0 <= count <= 1 for count in missing.values()), missing
        assert sum(missing.values()) <= lost_with_others, missing


def play(crew, rows, min_ready=None, max_wait=0.0, halfway=None):
    """Receives `rows` rows, then those in progress. halfway: called once, after half of the rows."""
    auditor, incidents = Auditor(crew.envs), []
    while auditor.total < rows:
        if halfway and auditor.total >= rows / 2:
            halfway = halfway()
        ready = crew.receive(min_ready, max_wait)
        auditor.take(ready)
        crew.send(ready.streams, act(ready))
        incidents += crew.incidents()
    auditor.take(crew.receive())
    return auditor, incidents + crew.incidents()
