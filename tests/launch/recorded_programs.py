"""Stand-ins for command-line programs: they note what they are given, and answer as they are told."""

import dataclasses
import json
import os
import pathlib
import sys
from typing import Any

import pytest

# Answers are matched by words that a call must have, and used up from the first to the last but one.
_PROGRAM = """\
#!{python} -SE
import json, os, pathlib, subprocess, sys
folder = pathlib.Path({folder!r})
call = {{"words": sys.argv[1:], "text": "" if sys.stdin.isatty() else sys.stdin.read()}}
with open(folder / "calls.jsonl", "a") as file:
    file.write(json.dumps(call) + "\\n")
answers = json.loads((folder / "answers.json").read_text())
for key, queue in answers.items():
    if set(key.split()) <= set(sys.argv[1:]):
        answer = queue.pop(0) if len(queue) > 1 else queue[0]
        (folder / "answers.json").write_text(json.dumps(answers))
        sys.stdout.write(answer["out"])
        sys.stderr.write(answer["err"])
        sys.exit(answer["status"])
"""


@dataclasses.dataclass
class StandIn:
    """A program on the path that is not what it is called."""

    folder: pathlib.Path

    @property
    def calls(self) -> list[dict[str, Any]]:
        """The words and the standard input of each call."""
        path = self.folder / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def commands(self) -> list[list[str]]:
        """The words of each call."""
        return [call["words"] for call in self.calls]

    def answer(self, words: str, *outputs: str, status: int = 0, error: str = "") -> None:
        """What it says to calls that have these words, one call after the other; the last answer stays."""
        path = self.folder / "answers.json"
        answers = [{"out": out, "err": error, "status": status} for out in outputs or ("",)]
        path.write_text(json.dumps({words: answers} | json.loads(path.read_text())))


def stand_in(name: str, folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Puts a stand-in for a program first on the path."""
    home = folder / f"stand-in-{name}"
    (home / "bin").mkdir(parents=True)
    (home / "answers.json").write_text("{}")
    write_program(home / "bin" / name, _PROGRAM.format(python=sys.executable, folder=str(home)))
    monkeypatch.setenv("PATH", f"{home / 'bin'}:{os.environ['PATH']}")
    return StandIn(home)


def write_program(path: pathlib.Path, text: str) -> None:
    """Writes a file that can be started."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
