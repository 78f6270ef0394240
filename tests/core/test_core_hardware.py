"""Hardware classes: which machine is which."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.core.errors import MessageError
from edgestill.core.hardware import PATTERN, HardwareClass

X86 = "flags\t\t: fpu sse sse2 avx avx2 fma"
ARM = "Features\t: fp asimd evtstrm crc32 atomics"


@pytest.mark.parametrize(
    ("machine", "cpuinfo", "name"),
    [
        ("x86_64", X86, "x86_64-avx2-onnxruntime"),
        ("AMD64", X86, "x86_64-avx2-onnxruntime"),
        ("x86_64", X86 + " avx512_vnni", "x86_64-vnni-onnxruntime"),
        ("x86_64", X86 + " avx_vnni", "x86_64-vnni-onnxruntime"),
        ("x86_64", "flags: sse sse2", "x86_64-base-onnxruntime"),
        ("x86_64", "", "x86_64-base-onnxruntime"),
        ("aarch64", ARM, "aarch64-base-onnxruntime"),
        ("arm64", ARM + " asimddp", "aarch64-dotprod-onnxruntime"),
        ("aarch64", ARM + " asimddp i8mm", "aarch64-i8mm-onnxruntime"),
        ("armv7l", "Features: neon", "armv7l-base-onnxruntime"),
        ("riscv64", "", "riscv64-base-onnxruntime"),
    ],
)
def test_a_machine_is_described_by_what_int8_results_depend_on(machine: str, cpuinfo: str, name: str) -> None:
    """Architecture and the best instruction set for int8 products make the class."""
    assert str(HardwareClass.describe(machine, cpuinfo)) == name


def test_flags_of_another_architecture_do_not_count() -> None:
    """An x86 flag in an ARM machine's text means nothing."""
    assert HardwareClass.describe("aarch64", "avx2 avx512_vnni").name == "aarch64-base-onnxruntime"


def test_a_flag_is_a_whole_word() -> None:
    """A flag that merely begins like another is not that one."""
    assert HardwareClass.describe("x86_64", "flags: avx2x xavx2").name == "x86_64-base-onnxruntime"


def test_the_engine_is_part_of_the_class() -> None:
    """The same machine with another engine is another class."""
    assert HardwareClass.describe("x86_64", "", "ncnn").name == "x86_64-base-ncnn"


def test_this_machine_has_a_class() -> None:
    """The class of the machine the test runs on can be told, and told again."""
    assert HardwareClass.here() == HardwareClass.here()


@pytest.mark.parametrize(
    "name", ["", "any", "x86_64-avx2", "a-b-c-d", "X86-avx2-ort", "../x-y-z", "a-b-c\n", "a--c"]
)
def test_what_is_no_class_is_refused(name: str) -> None:
    """A class has exactly three parts of lower-case letters and digits."""
    with pytest.raises(
        MessageError, match="not a hardware class; at hardware class; expected ARCH-ISA-ENGINE"
    ):
        HardwareClass(name)


@given(st.from_regex(PATTERN, fullmatch=True))
def test_a_class_survives_its_text(name: str) -> None:
    """A class is its name."""
    assert str(HardwareClass(name)) == name
    assert re.fullmatch(PATTERN, name)
