"""`bitlens design`: the result of optimize_design, files of it, and one line for what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from bitlens import cli, optimize_design, systems

COMMAND = (
    "design",
    "camera",
    "defocused",
    "--learn",
    "defocus_waves",
    "--set",
    "photons=200",
    "--set",
    "patch_pixels=8",
)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main([*COMMAND, *arguments]) == 0
    return capsys.readouterr().out


def test_json_is_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(run(capsys, "--steps", "4", "--seed", "3", "--box", "defocus_waves=0.9,", "--json"))
    from bitlens.design import Box

    made = systems.camera("defocused", photons=200, patch_pixels=8, learn=("defocus_waves",))
    result = optimize_design(
        *made,
        n_steps=4,
        constraints={"defocus_waves": Box(0.9, None)},
        generator=torch.Generator().manual_seed(3),
    )
    assert found == json.loads(json.dumps(result.to_dict()))
    assert found["parameters"]["defocus_waves"] >= 0.9


def test_files_and_a_checkpoint(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ("--steps", "3", "--out", str(tmp_path / "out"), "--checkpoint", str(tmp_path / "file"))
    text = run(capsys, *arguments)
    assert "defocus_waves" in text
    assert "information after" in text
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"design.png", "design.json", "defocus_waves.npy"}
    first = np.load(tmp_path / "out" / "defocus_waves.npy")
    assert first.item() < 1.0
    assert run(capsys, *arguments) == text
    assert cli.main([*COMMAND, "--steps", "4", "--checkpoint", str(tmp_path / "file")]) == 2
    assert "of another run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("design", "camra", "in_focus", "--learn", "x"), "SYSTEM: need one of camera, "),
        (("design", "camera", "sharp", "--learn", "defocus_waves"), "sharp"),
        (("design", "camera", "in_focus", "--learn", "gain"), "learn: need names among"),
        (("design", "camera", "in_focus"), "--learn"),
        ((*COMMAND, "--set", "phtons=2"), "--set: camera takes photons, read_std, patch_pixels"),
        ((*COMMAND, "--set", "photons"), "--set: need NAME=VALUE, got photons"),
        ((*COMMAND, "--box", "defocus_waves=1"), "--box: need NAME=LOWER,UPPER"),
        ((*COMMAND, "--box", "defocus_waves=a,b"), "--box: need numbers, got 'a'"),
        ((*COMMAND, "--box", "zoom=0,1"), "constraints: 'zoom' is not among what may change"),
    ],
    ids=str,
)
def test_errors_are_one_line(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str) -> None:
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert message in captured.err


def test_every_objective_is_offered() -> None:
    from bitlens import _cli_design
    from bitlens.design.objectives import OBJECTIVES

    assert _cli_design.OBJECTIVES == OBJECTIVES
