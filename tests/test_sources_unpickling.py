"""Hostile, damaged and honest pickles against the allow-listed unpickler."""

import os
import pickle
import struct
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llarva.sources.opcodes import PickleLimits, SourceError, UnsafePickleError
from llarva.sources.unpickling import Record, load_pickle, loads

CLASSES = {
    ("rlbench.demo", "Demo"): frozenset({"_observations", "random_seed"}),
    ("rlbench.backend.observation", "Observation"): frozenset({"joint_positions", "misc"}),
}


def text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def stack_global(module: str, name: str) -> bytes:
    return text(module) + text(name) + b"\x93"


DEMO = stack_global("rlbench.demo", "Demo")
NEW_DEMO = DEMO + b")\x81"
NDARRAY = stack_global("numpy", "ndarray")
RECONSTRUCT = stack_global("numpy.core.multiarray", "_reconstruct")
EMPTY_ARRAY = RECONSTRUCT + NDARRAY + b"K\x00\x85" + b"C\x01b" + b"\x87R"


def dtype(code: str, order: str = "<") -> bytes:
    made = stack_global("numpy", "dtype") + text(code) + b"\x89\x88\x87R"
    return made + b"(K\x03" + text(order) + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"


def array_state(shape: bytes, kind: bytes, data: bytes) -> bytes:
    return b"(K\x01" + shape + kind + b"\x89" + data + b"tb"


def reduce_call(module: str, name: str, argument: str) -> bytes:
    return stack_global(module, name) + text(argument) + b"\x85R"


MARKER = "MARKER"
RUN = f"touch {MARKER}"
# name -> program; each would run, corrupt or exhaust something in an unguarded unpickler.
ATTACKS: dict[str, bytes] = {
    "os.system by protocol 0 GLOBAL": b"cos\nsystem\n" + text(RUN) + b"\x85R.",
    "posix.system by STACK_GLOBAL": reduce_call("posix", "system", RUN) + b".",
    "builtins.exec": reduce_call("builtins", "exec", f"open('{MARKER}','w')") + b".",
    "builtins.eval inside a Demo's state": NEW_DEMO
    + b"}" + text("random_seed") + reduce_call("builtins", "eval", f"open('{MARKER}','w')") + b"sb.",
    "dotted name through an allowed module": reduce_call("rlbench.demo", "Demo.__init__.__globals__", RUN) + b".",
    "dotted name through numpy": reduce_call("numpy", "ndarray.__class__", RUN) + b".",
    "os.system reached through numpy": reduce_call("numpy.core.multiarray", "os.system", RUN) + b".",
    "class name computed with the memo": text("posix") + b"\x94" + b"0" + b"h\x00" + text("system") + b"\x93.",
    "class name from a tuple": text("posix") + b"\x85" + text("system") + b"\x93.",
    "INST opcode": b"(" + text(RUN) + b"ios\nsystem\n.",
    "OBJ opcode": b"(" + b"cos\nsystem\n" + text(RUN) + b"o.",
    "persistent id": b"P" + b"gadget\n.",
    "binary persistent id": text("gadget") + b"Q.",
    "extension registry": b"\x82\x01.",
    "extension registry, 4 bytes": b"\x84\x01\x00\x00\x00.",
    "out-of-band buffer": b"\x97.",
    "Demo whose state sets __class__": NEW_DEMO + b"}" + text("__class__") + stack_global("builtins", "dict") + b"sb.",
    "Demo whose state sets __dict__": NEW_DEMO + b"}" + text("__dict__") + b"}sb.",
    "Demo whose state sets __setstate__": NEW_DEMO + b"}" + text("__setstate__") + b"Nsb.",
    "Demo whose state sets the program": NEW_DEMO + b"}" + text("program") + b"Nsb.",
    "Demo with slots state": NEW_DEMO + b"N}" + text("fields") + b"]s\x86b.",
    "Demo with a bytes attribute name": NEW_DEMO + b"}C\x06fieldsNsb.",
    "Demo called with arguments": DEMO + text(RUN) + b"\x85R.",
    "Demo called without arguments": DEMO + b")R.",
    "Demo made with arguments": DEMO + text(RUN) + b"\x85\x81.",
    "state for the class Demo itself": DEMO + b"}" + text("attributes") + b"Nsb.",
    "Demo as data": b"]" + DEMO + b"a.",
    "append to a Demo": NEW_DEMO + b"Na.",
    "items into a Demo": NEW_DEMO + text("k") + b"Ns.",
    "state for _reconstruct": RECONSTRUCT + b"N}" + text("__defaults__") + b"Ns\x86b.",
    "_reconstruct of another class": RECONSTRUCT + DEMO + b"K\x00\x85" + b"C\x01b" + b"\x87R.",
    "_reconstruct with a huge shape": RECONSTRUCT + NDARRAY + b"J\xff\xff\xff\x7f\x85" + b"C\x01b" + b"\x87R.",
    "_reconstruct without arguments": RECONSTRUCT + b")R.",
    "ndarray called directly": NDARRAY + b"J\xff\xff\xff\x7f\x85\x85R.",
    "ndarray made by NEWOBJ": NDARRAY + b"J\xff\xff\xff\x7f\x85\x85\x81.",
    "array of Python objects": EMPTY_ARRAY + array_state(b"K\x01\x85", dtype("O8", "|"), b"]Na") + b".",
    "object dtype over raw bytes": EMPTY_ARRAY + array_state(b"K\x01\x85", dtype("O8"), b"C\x08" + b"A" * 8) + b".",
    "void dtype": EMPTY_ARRAY + array_state(b"K\x01\x85", dtype("V8"), b"C\x08" + b"A" * 8) + b".",
    "comma-separated dtype": EMPTY_ARRAY + array_state(b"K\x01\x85", dtype("f8,O"), b"C\x08" + b"A" * 8) + b".",
    "dtype with fields": stack_global("numpy", "dtype") + text("f8") + b"\x89\x88\x87R"
    + b"(K\x03" + text("<") + b"N" + text("f") + b"\x85}J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb.",
    "more shape than bytes": EMPTY_ARRAY
    + array_state(b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86", dtype("f8"), b"C\x08" + b"A" * 8) + b".",
    "negative shape": EMPTY_ARRAY
    + array_state(b"J\xff\xff\xff\xffJ\xff\xff\xff\xff\x86", dtype("f8"), b"C\x08" + b"A" * 8) + b".",
    "array state that is a dictionary": EMPTY_ARRAY + b"}b.",
    "scalar of an object": stack_global("numpy.core.multiarray", "scalar") + dtype("O8") + b"C\x08AAAAAAAA\x86R.",
    "memo bomb": b"Nr\xff\xff\xff\x7f.",
    "integer of a thousand bits": b"\x8a\x80" + b"\x7f" * 128 + b".",
    "getattr through an allow-listed look-alike": reduce_call("rlbench.demo ", "Demo", RUN) + b".",
    "code through copyreg": stack_global("copyreg", "_reconstructor") + DEMO + stack_global("builtins", "object")
    + b"N\x87R.",
}


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_is_refused_and_runs_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    calls: list[str] = []
    monkeypatch.setattr(os, "system", lambda command: calls.append(command))
    path = tmp_path / "low_dim_obs.pkl"
    path.write_bytes(b"\x80\x04" + ATTACKS[name])
    before = set(sys.modules)
    with pytest.raises(UnsafePickleError) as caught:
        load_pickle(path, CLASSES)
    assert str(path) in str(caught.value)
    assert not calls and not (tmp_path / MARKER).exists()
    assert set(sys.modules) == before
    # The stand-ins of the next file are untouched by what this one tried.
    assert loads(pickle.dumps(np.arange(3.0)), CLASSES).tolist() == [0, 1, 2]


def test_the_payloads_are_live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bytes do run in Python's own unpickler, so the refusals above are not refusals of broken programs."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(b"\x80\x04" + ATTACKS["posix.system by STACK_GLOBAL"])
    assert (tmp_path / MARKER).exists()


def test_error_names_file_position_and_class() -> None:
    data = b"\x80\x04" + ATTACKS["posix.system by STACK_GLOBAL"]
    with pytest.raises(UnsafePickleError, match=r"episode3/low_dim_obs.pkl: refused at byte 17: .*'posix.system'"):
        loads(data, CLASSES, name="episode3/low_dim_obs.pkl")
    program = b"\x80\x04" + NEW_DEMO + b"}" + text("__class__") + b"Nsb."
    with pytest.raises(UnsafePickleError, match=rf"byte {len(program) - 2}: rlbench.demo.Demo: Unknown attribute"):
        loads(program, CLASSES)


def test_shared_references_do_not_explode() -> None:
    """Thirty lists, each holding the one before it twenty times: 20**30 elements if every path were walked."""
    level: object = [0]
    for _ in range(30):
        level = [level] * 20
    with pytest.raises(UnsafePickleError, match="nested more than 16"):
        loads(pickle.dumps(level))
    level = [0]
    for _ in range(12):
        level = [level] * 20
    assert len(loads(pickle.dumps(level))) == 20
    cycle: list[object] = []
    cycle.append(cycle)
    back = loads(pickle.dumps(cycle))
    assert back[0] is back


def test_limits(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="at most 10 are read"):
        loads(pickle.dumps(list(range(100))), limits=PickleLimits(max_bytes=10))
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(list(range(100))))
    with pytest.raises(SourceError, match="at most 10 are read"):
        load_pickle(path, limits=PickleLimits(max_bytes=10))
    with pytest.raises(UnsafePickleError, match="more than 20 opcodes"):
        load_pickle(path, limits=PickleLimits(max_opcodes=20))
    with pytest.raises(SourceError, match="no such file"):
        load_pickle(tmp_path / "absent.pkl")


@pytest.mark.parametrize("claim", [2**31 - 1, 2**62])
def test_claimed_lengths_allocate_nothing(claim: int) -> None:
    for opcode in (b"\x8e", b"\x8d", b"\x95", b"\x96"):
        with pytest.raises(SourceError):
            loads(b"\x80\x04" + opcode + struct.pack("<Q", claim) + b"abc.")


def demo_pickle(protocol: int) -> bytes:
    """A pickle that names RLBench's classes, made from stand-in modules."""
    demo, observation = types.ModuleType("rlbench.demo"), types.ModuleType("rlbench.backend.observation")
    demo.Demo = type("Demo", (), {"__module__": "rlbench.demo"})
    observation.Observation = type("Observation", (), {"__module__": "rlbench.backend.observation"})
    saved = dict(sys.modules)
    names = {"rlbench": types.ModuleType("rlbench"), "rlbench.backend": types.ModuleType("rlbench.backend")}
    sys.modules.update(names | {demo.__name__: demo, observation.__name__: observation})
    try:
        top = demo.Demo()
        one = observation.Observation()
        one.joint_positions = np.linspace(0, 1, 7)
        one.misc = {"near": np.float64(0.01), "poses": [np.zeros(7)], "i": np.int64(3), "flag": np.bool_(True)}
        top._observations = [one, one]
        top.random_seed = np.random.RandomState(0).get_state()
        return pickle.dumps(top, protocol)
    finally:
        for name in set(sys.modules) - set(saved):
            del sys.modules[name]


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("core", [b"numpy.core.", b"numpy._core."])
def test_honest_demo(protocol: int, core: bytes) -> None:
    data = demo_pickle(protocol)
    if core not in data and protocol == 3:  # names are newline-terminated there, so the spelling can be exchanged
        data = data.replace(b"numpy._core.", core) if b"numpy._core." in data else data.replace(b"numpy.core.", core)
    demo = loads(data, CLASSES)
    assert isinstance(demo, Record) and demo.class_name == "rlbench.demo.Demo" and "rlbench" not in sys.modules
    first, second = demo.fields["_observations"]
    assert first is second
    np.testing.assert_array_equal(first.fields["joint_positions"], np.linspace(0, 1, 7))
    assert first.fields["misc"]["near"] == 0.01 and first.fields["misc"]["i"] == 3
    assert first.fields["misc"]["flag"] is True
    kind, keys, *rest = demo.fields["random_seed"]
    assert kind == "MT19937" and keys.dtype == np.uint32 and keys.shape == (624,)
    rng = np.random.RandomState()
    rng.set_state((kind, keys, *rest))
    assert rng.rand() == np.random.RandomState(0).rand()


def test_truncated_anywhere() -> None:
    data = demo_pickle(4)
    for end in range(0, len(data), 37):
        with pytest.raises(SourceError):
            loads(data[:end], CLASSES)


@given(st.binary(max_size=200))
def test_arbitrary_bytes(data: bytes) -> None:
    try:
        loads(data, CLASSES)
    except SourceError:
        pass


@given(st.integers(0, 10**6), st.integers(0, 255))
def test_one_changed_byte(position: int, value: int) -> None:
    data = bytearray(demo_pickle(4))
    data[position % len(data)] = value
    try:
        loads(bytes(data), CLASSES)
    except SourceError:
        pass
