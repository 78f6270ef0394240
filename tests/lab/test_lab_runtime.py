"""Where a run is computed changes how long it takes, not what comes of it."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lab_worlds import points, same_weights, straight

from edgestill.core.errors import PathError, SettingError
from edgestill.lab.recipe import Recipe
from edgestill.lab.training.runtime import Precision, Runtime, over_all, together
from edgestill.lab.training.train import Lesson, train_

PROGRAM = Path(__file__).with_name("distributed_run.py")


def distributed(devices: int, out: Path, *more: str) -> list[dict[str, Any]]:
    """What each process of a distillation wrote."""
    run_distributed(devices, out, *more)
    return [torch.load(out / f"student-{devices}-{rank}.pt", weights_only=True) for rank in range(devices)]


def run_distributed(devices: int, out: Path, *more: str) -> None:
    """Runs the program to its end."""
    names = ("LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
    env = {key: value for key, value in os.environ.items() if key not in names} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(PROGRAM), str(devices), str(out), *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=env, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_two_processes_train_the_student_that_one_would(tmp_path: Path) -> None:
    """Each takes half of every batch and fills half of the cache; the weights are one process's but for rounding."""
    (alone,) = distributed(1, tmp_path)
    first, second = distributed(2, tmp_path)
    for name, wanted in alone["weights"].items():
        torch.testing.assert_close(first["weights"][name], wanted, rtol=1e-4, atol=1e-6)
        assert torch.equal(first["weights"][name], second["weights"][name])
    assert [one[:2] for one in first["told"]] == [(1, 2), (2, 2)]
    assert second["told"] == []
    assert first["told"][-1][2] == pytest.approx(alone["told"][-1][2], rel=1e-4)
    one, two = ([p.name for p in sorted((tmp_path / f"cache-{n}").rglob("*.rec"))] for n in (1, 2))
    assert one == two


@pytest.mark.slow
def test_two_processes_weigh_uneven_labels_as_one_would(tmp_path: Path) -> None:
    """Where one half of a batch has more labels, and larger features, than the other, its mean does not count as much again."""
    (alone,) = distributed(1, tmp_path, "uneven")
    first, _ = distributed(2, tmp_path, "uneven")
    for name, wanted in alone["weights"].items():
        torch.testing.assert_close(first["weights"][name], wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "failing"), [("fill", 0), ("fill", 1), ("step", 1)])
def test_no_process_waits_for_one_that_failed(tmp_path: Path, stage: str, failing: int) -> None:
    """While the cache is filled or in a step: one says what is wrong and lives on, the other ends with a coded error."""
    run_distributed(2, tmp_path, stage, str(failing))
    assert not list(tmp_path.glob("*.late"))
    assert (tmp_path / f"{failing}.txt").read_text() == "[data-unusable] a sensor is gone"
    said = (tmp_path / f"{1 - failing}.txt").read_text()
    assert said.startswith(
        f"[training-diverged] another process of this run has failed; at process {2 - failing} of 2; "
    )
    assert said.endswith("mend what the other one says: its error is the reason")


def test_what_a_transport_may_still_hold_is_never_freed_by_it() -> None:
    """Numbers of all processes go through one tensor that more than Python holds: a thread that lets go of it needs no lock for that."""
    met: list[torch.Tensor] = []

    class Sums:
        device = torch.device("cpu")

        def all_reduce(self, tensor: torch.Tensor, *, reduce_op: str) -> torch.Tensor:
            assert tensor._use_count() >= 2  # type: ignore[attr-defined]  # torch does not tell of it
            met.append(tensor)
            return tensor.mul_(2 if reduce_op == "sum" else 1)

    fabric: Any = Sums()
    first = over_all(fabric, torch.tensor(3.0), how="sum")
    second = over_all(fabric, torch.tensor(5.0, requires_grad=True), how="mean")
    third = over_all(fabric, torch.tensor(7.0, dtype=torch.float64), how="mean")
    assert (float(first), float(second), float(third)) == (6.0, 5.0, 7.0)
    assert met[0] is met[1] is not met[2]
    assert not {id(first), id(second), id(third)} & set(map(id, met))


def test_an_error_of_a_process_alone_stays_what_it_is() -> None:
    """Without a group there is nobody else to blame."""
    with pytest.raises(RuntimeError, match=r"^gloo/ is not at fault$"), together():
        raise RuntimeError("gloo/ is not at fault")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("devices", 0, "at least 1"),
        ("nodes", 0, "at least 1"),
        ("checkpoint_every", -1, "at least 0"),
        ("precision", "64", "32-true, 16-mixed, bf16-mixed, bf16-true"),
    ],
)
def test_a_value_out_of_range_is_refused(name: str, value: object, expected: str) -> None:
    """Each names itself, what it takes and what it got."""
    with pytest.raises(SettingError, match="a runtime's value is out of range") as caught:
        Runtime(**{name: value})  # type: ignore[arg-type]  # on purpose
    assert (caught.value.where, caught.value.expected, caught.value.got) == (name, expected, value)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [("devices", "2", "a whole number"), ("checkpoint", "here", "a pathlib.Path")],
)
def test_a_value_of_another_type_is_refused(name: str, value: object, expected: str) -> None:
    """Before anything runs, and not in the middle of it."""
    with pytest.raises(SettingError, match="a runtime's value has the wrong type") as caught:
        Runtime(**{name: value})  # type: ignore[arg-type]  # on purpose
    assert (caught.value.where, caught.value.expected) == (name, expected)


def test_a_machine_without_the_accelerator_says_so() -> None:
    """An accelerator that is not there is a coded error, not a stack of somebody else's."""
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(SettingError, match="training cannot be set up so"):
        Runtime(accelerator="cuda").open()


def test_a_log_has_a_row_an_epoch(tmp_path: Path) -> None:
    """Epoch, step, loss, learning rate and time, appended by a run that goes on."""
    path = tmp_path / "log.csv"
    for epochs in (1, 3):
        train_(straight(), Lesson.of(points(24)), Recipe(epochs=epochs, batch=8), runtime=Runtime(log=path))
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [(row["epoch"], row["step"]) for row in rows] == [("1", "3"), ("1", "3"), ("2", "6"), ("3", "9")]
    assert all(float(row["loss"]) > 0 and float(row["seconds_per_step"]) > 0 for row in rows)


def test_a_log_that_cannot_be_written_is_found_before_the_first_step(tmp_path: Path) -> None:
    """Nothing is trained for a file that is not there in the end."""
    student = straight()
    with pytest.raises(PathError, match="cannot write the log"):
        train_(student, Lesson.of(points(8)), Recipe(epochs=1), runtime=Runtime(log=tmp_path / "no" / "log"))
    assert student.seen == []
    assert same_weights(student, straight())


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_the_student_keeps_its_own_type(precision: Precision) -> None:
    """Half the precision in training is not half of it in the file."""
    student = train_(
        straight(), Lesson.of(points(24)), Recipe(epochs=1), runtime=Runtime(precision=precision)
    )
    assert {one.dtype for one in student.parameters()} == {torch.float32}


def test_a_log_that_cannot_be_written_is_a_coded_error(tmp_path: Path) -> None:
    """A folder stands where the file should be."""
    with pytest.raises(PathError, match="cannot write the log"):
        train_(straight(), Lesson.of(points(24)), Recipe(epochs=1), runtime=Runtime(log=tmp_path))


def test_bfloat16_trains_and_gives_back_ordinary_weights() -> None:
    """Mixed precision computes in bfloat16; the weights stay float32 and are near the exact ones."""
    recipe = Recipe(epochs=2, batch=8, lr=1e-3)
    exact = train_(straight(), Lesson.of(points(24)), recipe)
    mixed = train_(straight(), Lesson.of(points(24)), recipe, runtime=Runtime(precision="bf16-mixed"))
    assert not same_weights(exact, mixed)
    for one, other in zip(exact.parameters(), mixed.parameters(), strict=True):
        assert other.dtype == torch.float32
        torch.testing.assert_close(one, other, atol=5e-3, rtol=0)
