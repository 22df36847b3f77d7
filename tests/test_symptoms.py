"""Each symptom by the words that people see, and none where all is well."""

from __future__ import annotations

import io
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sagewheels import doctor, logfile, symptomrows, symptoms, symptomtable
from sagewheels.errors import UsageError
from sagewheels.resources import ROOT
from sagewheels.symptomrows import Symptom
from sagewheels.symptoms import Diagnosis
from tests.symptomtexts import ALSO, HEALTHY, SEEN

ROWS = {row.id: row for row in symptomrows.load()}
_FOLLOWS = {"torch-lacks-arch": ["kernel-for-other-arch"]}
_FILL = HEALTHY["build"].replace("\n", "\n\n") * 3


def first(text: str) -> str:
    found = symptoms.diagnose([text]).findings
    return found[0].row.id if found else ""


# What is known


def test_every_row_has_a_text_that_people_see() -> None:
    assert set(SEEN) == {row.id for row in ROWS.values() if row.patterns}


@pytest.mark.parametrize("name", SEEN)
def test_the_text_that_people_see(name: str) -> None:
    """Alone, and in the middle of a long log that is healthy else; with every name filled in."""
    for text in (SEEN[name], _FILL + SEEN[name] + _FILL):
        (found, *more) = symptoms.diagnose([text]).findings
        assert found.row.id == name
        assert [other.row.id for other in more if not other.row.general] == _FOLLOWS.get(name, [])
        assert "{" not in found.cause + found.remedy() and "..." not in found.cause + found.remedy()
        assert found.text.split(" ...")[0] in " ".join(text.split())


@pytest.mark.parametrize(("name", "text"), ALSO)
def test_other_words_for_the_same(name: str, text: str) -> None:
    assert first(text) == name


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_log_shows_nothing(name: str) -> None:
    assert symptoms.diagnose([HEALTHY[name]]).findings == ()


def test_all_healthy_logs_in_one_show_nothing() -> None:
    """Nothing comes about by what stands beside it, but for what another log says of SageAttention."""
    parts = [text for name, text in HEALTHY.items() if "black" not in name]
    random.Random(7).shuffle(parts)
    assert symptoms.diagnose(["".join(parts)]).findings == ()


def test_the_causes_come_before_what_follows_from_them() -> None:
    log = SEEN["comfyui-falls-back"] + SEEN["python-headers-missing"] + SEEN["killed-for-memory"]
    assert [one.row.id for one in symptoms.diagnose([log]).findings] == [
        "python-headers-missing",
        "killed-for-memory",
        "comfyui-falls-back",
    ]


def test_a_line_speaks_for_one_row() -> None:
    """The fallback and the import are told by the row that names the cause."""
    for name in ("kernel-not-available", "torch-check-symbol", "torch-assert-symbol"):
        assert [one.row.id for one in symptoms.diagnose([SEEN[name] * 3]).findings] == [name]


def test_what_was_captured() -> None:
    (found,) = symptoms.diagnose(["a\n\n" + SEEN["nvcc-of-another-cuda"]]).findings
    assert (found.line, dict(found.captured)) == (4, {"nvcc": "12.0", "torch": "11.8"})
    assert found.cause == "nvcc is CUDA 12.0, torch was made with 11.8"
    (found,) = symptoms.diagnose([SEEN["arch-has-no-dispatch"]]).findings
    assert found.captured == {"sm": "121", "arch": "12.1"}
    assert found.facts()["captured"] == found.captured


def test_the_remedy_is_that_of_where_it_is_seen() -> None:
    text = SEEN["torch-not-seen-by-the-build"]
    assert symptoms.remedy(text, "build").startswith("pip install --no-build-isolation")
    assert symptoms.remedy(text, "import") == "Run stack: this Python has no torch"
    assert symptoms.remedy("all is well", "run", but="ask") == "ask"


def test_a_patch_that_the_wheel_has_is_no_remedy() -> None:
    """Nor one that its package does not have: only a wheel that was built without it gets better by it."""
    row = ROWS["noise-on-hopper"]
    assert symptoms.remedy(SEEN[row.id], "run", lacking=[row.patch]) == row.remedy
    assert symptoms.remedy(SEEN[row.id], "run", lacking=["0002-another.patch"]) == ""


def test_the_patches_that_rows_name_are_there() -> None:
    named = [row.patch for row in ROWS.values() if row.patch]
    assert named and all((ROOT / "patches" / "sageattention-2.2.0" / name).is_file() for name in named)


def test_the_checks_that_rows_name_are_doctors() -> None:
    assert {row.check for row in ROWS.values() if row.check} <= set(doctor.NAMES)


def test_no_line_makes_a_pattern_work_for_long() -> None:
    """Each mark over and over, and the text of each row, as long as a line may be: together well under a second."""
    started = time.perf_counter()
    for row in ROWS.values():
        for seed in (*row.marks, *(row.marks and SEEN[row.id].split("\n"))):
            for between in ("", " ", "a" * 61, "'(", "\t"):
                line = ((seed + between) * (symptoms.LONGEST // len(seed + between or "x") + 1))[: symptoms.LONGEST]
                for pattern in row.patterns:
                    pattern.search(f"{line}\n{line}")
    assert time.perf_counter() - started < 20


# Logs as they are


def of_bytes(data: bytes, most: int = logfile.MOST) -> Diagnosis:
    return symptoms.diagnose(logfile.blocks(io.BytesIO(data), most))


TEXT = _FILL + SEEN["killed-for-memory"]


@pytest.mark.parametrize(
    "data",
    [
        TEXT.encode(),
        TEXT.replace("\n", "\r\n").encode(),
        b"\xef\xbb\xbf" + TEXT.encode(),
        TEXT.encode("utf-16"),
        TEXT.encode("utf-16-le"),
        TEXT.encode("utf-16-be"),
        TEXT.replace("Killed", "\x1b[01;31m\x1b[KKilled\x1b[m\x1b[K").encode(),
        b"\xff\xfe\x00\x81" * 3 + b"\x00\n" + TEXT.encode("latin-1", "replace"),
        TEXT.replace("c++: f", " 12%|####    \r" * 900 + "c++: f").encode(),
    ],
    ids=["utf-8", "crlf", "bom", "utf-16", "utf-16-le", "utf-16-be", "colours", "junk", "progress"],
)
def test_a_log_however_it_was_written(data: bytes) -> None:
    found = of_bytes(data)
    if data.startswith(
        b"\xff\xfe\x00"
    ):  # it looks like UTF-16, by its first bytes: nothing is known, and nothing breaks
        return
    (one,) = found.findings
    assert one.row.id == "killed-for-memory" and one.line == TEXT.split("\n").index(one.text) + 1


def test_a_symptom_over_two_lines_is_found_wherever_a_part_ends() -> None:
    text = "x\n" + SEEN["nvcc-of-another-cuda"] + "y\n"
    lines = text.splitlines(keepends=True)
    for cut in range(len(lines) + 1):
        found = symptoms.diagnose(["".join(lines[:cut]), "".join(lines[cut:])])
        assert [(one.row.id, one.line) for one in found.findings] == [("nvcc-of-another-cuda", 3)], cut
        assert found.lines == len(lines)


def test_nothing_of_a_log_reaches_the_terminal_unescaped() -> None:
    text = (
        "ValueError: \x1b]0;owned\x07\x9b31m\u202e https://me:secret@host/ Unsupported CUDA architecture: sm75 \x08\n"
    )
    (found,) = of_bytes(text.encode()).findings
    assert found.text.isprintable() and "secret" not in found.text
    unknown = of_bytes(text.replace("Unsupported", "Some").encode())
    assert not unknown.findings and all(line.isprintable() and "secret" not in line for _, line in unknown.errors)


def test_a_long_log_costs_little(everything: bool) -> None:
    """Time and memory: 200 MB in all runs, 24 MB in a quick one."""
    size = (200 if everything else 24) << 20
    noise = (_FILL + "[2/8] nvcc " + "-DNAME=x " * 400 + "\n" + "error: " * 9 + "\n").encode()
    body = noise * (size // len(noise))
    started = time.perf_counter()
    found = of_bytes(body + SEEN["glibc-too-new"].encode())
    assert [one.row.id for one in found.findings] == ["glibc-too-new"]
    assert len(found.errors) <= 6
    assert time.perf_counter() - started < (60 if everything else 10)


def test_junk_without_lines_is_bounded() -> None:
    data = random.Random(1).randbytes(3 << 20).replace(b"\n", b"")
    parts = list(logfile.blocks(io.BytesIO(data)))
    assert max(map(len, parts)) <= 2 << 20
    assert symptoms.diagnose(parts).findings == ()


def test_what_is_behind_the_most_is_left_out_aloud(capsys: pytest.CaptureFixture[str]) -> None:
    found = of_bytes(b"all is well\n" * 200_000 + SEEN["gpu-too-old"].encode(), most=1 << 20)
    assert found.findings == ()
    assert capsys.readouterr().err == "[doctor] warning: only the first 1.0 MB of the log were read\n"


def test_nothing_known_shows_the_lines_that_look_bad() -> None:
    text = "ok\nerror: a\n" + "fine -Werror=x\n" * 9 + "error: b\nFAILED: c\nerror: d\nerror: e\nerror: f\nerror: g\n"
    found = symptoms.diagnose([text])
    assert found.errors == (
        (2, "error: a"),
        (12, "error: b"),
        (13, "FAILED: c"),
        (15, "error: e"),
        (16, "error: f"),
        (17, "error: g"),
    )


# The task


def doctor_log(*words: str | Path, cwd: Path, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    argv = [sys.executable, "-m", "sagewheels", "doctor", "--log", *map(str, words)]
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(cwd)}
    return subprocess.run(argv, input=given, capture_output=True, cwd=cwd, env=env, check=False, timeout=60)


def test_doctor_explains_a_log(tmp_path: Path) -> None:
    (tmp_path / "build.log").write_text(SEEN["compiler-too-new"])
    done = doctor_log("build.log", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    lines = done.stdout.decode().splitlines()
    assert lines[0] == "[doctor] 6 lines read: 1 symptom that sagewheels knows, the likely cause first"
    assert lines[1].startswith(
        "[doctor] 1. compiler-too-new, line 3: /usr/local/cuda/include/crt/host_config.h:143:2: error"
    )
    assert lines[2:] == [
        "[doctor]    why: the host compiler is newer than nvcc knows: g++ 13 is the newest that it takes",
        "[doctor]    do: Install g++ 13 (apt-get install g++-13) and set CXX=g++-13 CC=gcc-13",
        "[doctor]    seen: thu-ml/SageAttention#180",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["build.log"]


def test_doctor_reads_what_is_piped_in(tmp_path: Path) -> None:
    done = doctor_log("-", cwd=tmp_path, given=b"all\nValueError: who knows\n")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode().splitlines() == [
        "[doctor] reading the log from stdin",
        "[doctor] 2 lines read: nothing in it is a symptom that sagewheels knows",
        "[doctor] these lines look like errors; the first one is most often the cause:",
        "[doctor]    line 2: ValueError: who knows",
        "[doctor] to report it, send the log (without tokens) and what doctor prints, in an issue of this project",
    ]


def refused(name: Path | str) -> str:
    with pytest.raises(UsageError) as caught, logfile.opened(str(name)):
        pass
    return str(caught.value)


def test_what_is_no_log_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log").touch()
    os.mkfifo(tmp_path / "fifo")
    none = "Give the path of a log, or - for stdin."
    assert refused(tmp_path / "gone") == f"{tmp_path}/gone cannot be read (No such file or directory). {none}"
    assert refused(tmp_path / "log" / "x") == f"{tmp_path}/log/x cannot be read (Not a directory). {none}"
    other = "Name the log itself; --log - reads what is piped in."
    assert refused(tmp_path) == f"{tmp_path} is a folder. {other}"
    waited = threading.Thread(target=refused, args=(tmp_path / "fifo",), daemon=True)
    waited.start()
    waited.join(5)
    assert not waited.is_alive(), "it waits for somebody who writes"
    assert refused(tmp_path / "fifo") == f"{tmp_path}/fifo is no plain file. {other}"


# The file


def broken(folder: Path, old: str, new: str) -> str:
    text = """
[[symptom]]
id = "one"
symptom = "words"
marks = ["some mark"]
patterns = ['some mark (?P<name>x)']
cause = "because of {name}"
example = { name = "x", other = "y" }
remedy = "mend it"
source = "measured"
seen_in = ["build"]
"""
    assert text.count(old) == 1
    path = folder / f"{abs(hash((old, new)))}.toml"
    path.write_text(text.replace(old, new))
    with pytest.raises(UsageError) as caught:
        symptomrows.load(path)
    return str(caught.value).replace(f"{path}: ", "")


def test_a_row_that_is_wrong_is_named(tmp_path: Path) -> None:
    def told(old: str, new: str) -> str:
        return broken(tmp_path, old, new)

    assert told('id = "one"\n', "") == "symptom[1].id is missing."
    assert told('id = "one"', "id = 1") == "symptom[1].id must be str, not int."
    assert told('"measured"', '"measured"\nsaurce = 1') == "symptom[1].saurce is not a key that symptoms have."
    assert told('marks = ["some mark"]\n', "") == "symptom[1].marks: marks and patterns need each other."
    assert told('["some mark"]', '["abc"]') == "symptom[1].marks: a mark needs four letters, to be rare."
    assert told('"build"', '"nowhere"') == (
        "symptom[1].seen_in: nowhere is none of build, import, run, comfyui, install."
    )
    assert told("{name}", "{other}") == (
        "symptom[1].cause wants {other}, which 'some mark (?P<name>x)' does not capture."
    )
    for pattern in ("(a+)+b", "x.*", "[ab]+", r"a{2,}"):
        assert told("some mark (?P<name>x)", pattern) == (
            f"symptom[1].patterns: {pattern!r} repeats something without a bound. Write {{0,80}} and the like."
        ), pattern
    assert told("some mark (?P<name>x)", "(") == (
        "symptom[1].patterns: '(' is no regular expression: missing ), unterminated subpattern at position 0."
    )
    assert told("some mark (?P<name>x)", "a?") == "symptom[1].patterns: 'a?' fits everything."
    both = "marks = [\"some mark\"]\npatterns = ['some mark (?P<name>x)']\n"
    assert told(both, "") == "symptom[1].check: a row without patterns needs a check."


def test_a_plus_that_is_a_letter_is_no_repetition() -> None:
    assert symptomrows._pattern(r"c\+\+ [+*]{1,2}\*", "here").search("c++ +*")


# README


def test_the_table_of_the_readme_is_that_of_the_file() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("<!-- symptoms: begin -->\n| others say") == 1
    assert symptomtable.rewritten(text) == text, "run: python -m sagewheels.symptomtable README.md"


def test_the_command_that_writes_the_table(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text("a\n<!-- symptoms: begin -->\nold\n<!-- symptoms: end -->\nz\n")
    subprocess.run([sys.executable, "-m", "sagewheels.symptomtable", str(path)], cwd=ROOT, check=True)
    lines = path.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("a", "z") and "old" not in lines
    assert len([line for line in lines if line.startswith("| ")]) == len(ROWS) + 1


def test_rows_are_frozen() -> None:
    row: Symptom = ROWS["gpu-too-old"]
    with pytest.raises(AttributeError):
        row.cause = "no"  # type: ignore[misc]
