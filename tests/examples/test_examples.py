"""Each example of a mistake runs as a user runs it, and shows what it is there to show."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def said(name: str, folder: Path) -> str:
    picture = folder / "picture.png"
    run = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py"), "--out", str(picture)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")
    return run.stdout


def part(text: str, start: str) -> str:
    """The line that starts so, with the indented ones below it."""
    found = re.search(rf"^{re.escape(start)}.*\n(?:  .*\n)*", text, flags=re.MULTILINE)
    assert found is not None, text
    return found.group()


def number(text: str, pattern: str) -> float:
    found = re.search(pattern.replace("#", r"(-?\d+(?:\.\d+)?)"), text)
    assert found is not None, text
    return float(found.group(1))


def test_wrong_noise_model(tmp_path: Path) -> None:
    text = said("wrong_noise_model", tmp_path)
    gain = part(text, "mistake: gain 1 instead of 2: ")
    read = part(text, "mistake: read noise 2 instead of 6: ")
    right = part(text, "right: ")
    truth, error = number(right, r": # \+-"), number(right, r"\+- # bits")
    assert "bitlens says" not in right
    for wrong, finding in ((gain, "the gain looks 4\\d % too low"), (read, "read_std looks 6\\d % too low")):
        assert number(wrong, r": # \+-") > truth + 3 * error
        assert re.search(f"bitlens says: the noise model does not fit the repeats.*{finding}", wrong)
    assert "fits: True" in part(text, "right, darkest scene")
    assert "fits: False" in part(text, "mistake: read noise 2 instead of 6, darkest scene")


def test_unbounded_aperture(tmp_path: Path) -> None:
    text = said("unbounded_aperture", tmp_path)
    short, long = part(text, "mistake: no constraint: "), part(text, "mistake: no constraint, more steps: ")
    for mistake in (short, long):
        assert "information may grow without bound along it" in mistake
    bits = r"-> # bits"
    openings = r"opening up to #,"
    assert number(long, bits) > number(short, bits) + 5
    assert number(long, openings) > number(short, openings) > 1.5
    box, energy = part(text, "right: at most open"), part(text, "right: half open on average")
    for mended in (box, energy):
        assert "bitlens says" not in mended
        assert number(mended, openings) <= 1.0
        assert number(mended, bits) > number(mended, r": # ->")
    # More light is more bits: all of what is allowed is taken.
    assert number(box, r", # on average") == pytest.approx(1.0, abs=0.01)
    assert number(energy, r", # on average") == pytest.approx(0.5, abs=0.01)


def test_too_peaked_objects(tmp_path: Path) -> None:
    text = said("too_peaked_objects", tmp_path)
    for design in ("in_focus", "small_aperture"):
        few = part(text, f"mistake: 16 scenes, {design}")
        assert number(few, r": # \+-") < 4.0 + 0.05
        assert "`mean` holds 16 distinct scenes" in few
        assert "says more about this set than about the optics" in few
        assert "the estimate says how often it comes up" in part(
            text, f"mistake: one scene in 70 % of the images, {design}"
        )
        right = part(text, f"right: every image another scene, {design}")
        assert number(right, r": # \+-") > 4.5
        assert "distinct scenes" not in right
    ahead = r"is ahead by # bits"
    few_ahead, right_ahead = (
        number(part(text, f"{name}: the lens"), ahead)
        for name in ("mistake: 16 scenes", "right: every image another scene")
    )
    assert few_ahead < 0.6
    assert right_ahead > 5 * few_ahead


def test_critic_too_small(tmp_path: Path) -> None:
    text = said("critic_too_small", tmp_path)
    truth, bits, most = 6.0, r": # bits", r"at most #"
    assert "InfoNCE is a lower bound" in text
    assert number(part(text, "mistake: one feature"), bits) < truth - 3
    few = part(text, "mistake: 16 pairs compared")
    assert number(few, bits) <= number(few, most) == 4.0
    # What was trained on says more than there is, what is new far less.
    assert number(part(text, "mistake: scored on the 100 pairs"), bits) > truth + 0.3
    assert number(part(text, "mistake: 100 pairs to train on"), bits) < truth - 2
    assert number(part(text, "right: "), bits) == pytest.approx(truth, abs=0.5)
    estimate = part(text, "estimate of 70 pairs")
    assert number(estimate, bits.replace(" bits", r" \+-")) < truth - 2
    assert "70 samples are few to learn from: the information may be far above the value" in estimate


def test_the_list_names_every_example() -> None:
    listed = set(re.findall(r"^\| `(\w+\.py)`", (EXAMPLES / "README.md").read_text(), flags=re.MULTILINE))
    assert listed == {path.name for path in EXAMPLES.glob("*.py")}
