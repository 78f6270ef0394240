"""What a machine tells of itself, from real files in the kernel's places; what is not there is not known."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.device.sensors import Readings, Sensors, Zone, joules_between
from edgestill.testing.clock import FakeClock


def tree(root: Path, files: dict[str, object]) -> Path:
    """Writes files as the kernel shows them, each with a line end."""
    for name, value in ({"proc/loadavg": "0.50 0.40 0.30 1/100 4242"} | files).items():
        path = root / name if name.startswith("proc/") else root / "sys" / "class" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(value if isinstance(value, bytes) else f"{value}\n".encode())
    (root / "sys" / "class").mkdir(parents=True, exist_ok=True)
    return root


def read(root: Path) -> Readings:
    """All of a machine of four cores."""
    return Sensors(FakeClock(), root=root, cores=4).read(since_answer=5.0)


LAPTOP = {
    "power_supply/AC/type": "Mains",
    "power_supply/AC/online": 1,
    "power_supply/BAT0/type": "Battery",
    "power_supply/BAT0/capacity": 83,
    "power_supply/BAT0/status": "Charging",
    "power_supply/hidpp_battery_0/type": "Battery",
    "power_supply/hidpp_battery_0/scope": "Device",
    "power_supply/hidpp_battery_0/capacity": 5,
    "thermal/thermal_zone0/temp": 41_000,
    "thermal/thermal_zone1/temp": 56_500,
    "thermal/thermal_zone2/temp": -274_000,
    "thermal/cooling_device0/temp": 99_000,
    "powercap/intel-rapl/enabled": 1,
    "powercap/intel-rapl:0/name": "package-0",
    "powercap/intel-rapl:0/energy_uj": 1_500_000,
    "powercap/intel-rapl:0/max_energy_range_uj": 262_143_328_850,
    "powercap/intel-rapl:0:0/name": "core",
    "powercap/intel-rapl:0:0/energy_uj": 900_000,
    "powercap/intel-rapl-mmio:0/name": "package-0",
    "powercap/intel-rapl-mmio:0/energy_uj": 1_500_000,
    "powercap/intel-rapl-mmio:0/max_energy_range_uj": 262_143_328_850,
}


def test_a_laptop_tells_all(tmp_path: Path) -> None:
    """The hottest sane zone, its own battery and no mouse's, each package once and nothing within it."""
    readings = read(tree(tmp_path, LAPTOP))
    assert (readings.celsius, readings.load, readings.cores) == (56.5, 0.5, 4)
    assert (readings.on_mains, readings.has_battery, readings.battery) == (True, True, 0.83)
    assert readings.energy == (Zone("package-0", 1_500_000, 262_143_328_850),)
    assert (readings.now, readings.since_answer) == (1_800_000_000.0, 5.0)


def test_the_platforms_counter_counts_alone(tmp_path: Path) -> None:
    """It counts the packages as well."""
    more = {"powercap/intel-rapl:1/name": "psys", "powercap/intel-rapl:1/energy_uj": 9_000_000}
    assert read(tree(tmp_path, LAPTOP | more)).energy == (Zone("psys", 9_000_000, 0),)


def test_two_packages_count_together(tmp_path: Path) -> None:
    """Of two sockets."""
    more = {"powercap/intel-rapl:1/name": "package-1", "powercap/intel-rapl:1/energy_uj": 2_000_000}
    assert {zone.name for zone in read(tree(tmp_path, LAPTOP | more)).energy} == {"package-0", "package-1"}


def test_an_empty_machine_is_on_mains_and_tells_nothing_else(tmp_path: Path) -> None:
    """A board without battery and sensors, and with a kernel that could tell."""
    readings = read(tree(tmp_path, {}))
    assert (readings.celsius, readings.energy) == (None, ())
    assert (readings.on_mains, readings.has_battery, readings.battery) == (True, False, None)


def test_where_there_is_no_such_tree_nothing_is_known(tmp_path: Path) -> None:
    """Another system, or a container without it."""
    readings = read(tmp_path / "nothing")
    assert (readings.celsius, readings.load, readings.on_mains, readings.has_battery) == (
        None,
        None,
        None,
        None,
    )
    assert (readings.battery, readings.energy) == (None, ())


@pytest.mark.parametrize(
    ("files", "on_mains"),
    [
        ({"AC/type": "Mains", "AC/online": 0, "B/type": "Battery", "B/status": "Discharging"}, False),
        ({"AC/type": "Mains", "AC/online": 0, "B/type": "Battery", "B/status": "Unknown"}, False),
        ({"U/type": "USB", "U/online": 1, "B/type": "Battery", "B/status": "Unknown"}, True),
        ({"B/type": "Battery", "B/status": "Discharging"}, False),
        ({"B/type": "Battery", "B/status": "Full"}, True),
        ({"B/type": "Battery"}, None),
        ({"B/type": "Battery", "B/present": 0}, True),
        ({"AC/type": "Mains"}, True),
    ],
)
def test_mains_is_told_by_what_feeds_or_by_what_the_battery_does(
    tmp_path: Path, files: dict[str, object], on_mains: bool | None
) -> None:
    """Where neither says it, it is not known."""
    assert (
        read(tree(tmp_path, {f"power_supply/{name}": one for name, one in files.items()})).on_mains
        is on_mains
    )


@pytest.mark.parametrize(
    ("capacities", "charge"), [([80, 20], 0.2), ([80, None], None), ([101], None), ([-1], None)]
)
def test_the_emptiest_battery_counts(
    tmp_path: Path, capacities: list[int | None], charge: float | None
) -> None:
    """And one that does not tell makes it unknown."""
    files: dict[str, object] = {}
    for number, capacity in enumerate(capacities):
        files[f"power_supply/B{number}/type"] = "Battery"
        if capacity is not None:
            files[f"power_supply/B{number}/capacity"] = capacity
    readings = read(tree(tmp_path, files))
    assert (readings.battery, readings.has_battery) == (charge, True)


@pytest.mark.parametrize("junk", [b"", b"\n", b"hot", b"\xff\xfe", b"1e5", b"9" * 5_000, b"nan\n", b"12 34"])
def test_attack_files_with_junk_are_as_good_as_not_there(tmp_path: Path, junk: bytes) -> None:
    """No reading raises an error, and none is made up."""
    readings = read(tree(tmp_path, dict.fromkeys([*LAPTOP, "proc/loadavg"], junk)))
    assert (readings.celsius, readings.battery, readings.energy) == (None, None, ())
    assert readings.load is None or junk in {b"1e5", b"12 34"}


def test_attack_a_pipe_in_the_place_of_a_sensor_holds_nobody_up(tmp_path: Path) -> None:
    """It would wait for ever for somebody to write."""
    tree(tmp_path, {})
    folder = tmp_path / "sys" / "class" / "thermal" / "thermal_zone0"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "temp")
    assert read(tmp_path).celsius is None


def test_this_machine_can_be_read() -> None:
    """Whatever it has: the real tree, and the real load."""
    readings = Sensors(FakeClock()).read(since_answer=None)
    assert readings.load is None or 0 <= readings.load < 1e6
    assert readings.cores >= 1
    assert readings.celsius is None or -50 <= readings.celsius <= 200
    assert (readings.load is not None) == Path("/proc/loadavg").exists()


zones = st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 10**9)), min_size=1, max_size=4)


@given(zones)
def test_energy_counts_once_round(counted: list[tuple[int, int]]) -> None:
    """A counter that went round its range counts what came before and after."""
    wrap = 10**9
    before = tuple(Zone(f"z{n}", start, wrap) for n, (start, _) in enumerate(counted))
    after = tuple(Zone(f"z{n}", (start + more) % wrap, wrap) for n, (start, more) in enumerate(counted))
    expected = sum(more % wrap for _, more in counted) / 1e6
    assert joules_between(before, after) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((), ()),
        ((Zone("a", 1, 9),), ()),
        ((), (Zone("a", 1, 9),)),
        ((Zone("a", 1, 9),), (Zone("b", 2, 9),)),
        ((Zone("a", 5, 0),), (Zone("a", 1, 0),)),
        ((Zone("a", 50, 9),), (Zone("a", 1, 9),)),
    ],
)
def test_energy_that_cannot_be_told_is_not_known(before: tuple[Zone, ...], after: tuple[Zone, ...]) -> None:
    """Nothing counts, something else does, or it fell and nobody knows from where."""
    assert joules_between(before, after) is None
