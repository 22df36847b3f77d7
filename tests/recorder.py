"""Every program that starts below a process, with its arguments and environment, whoever starts it and how.

A library that the loader puts into each of them: it notes what the program was given when it begins, and, for a
program that the loader does not see (a static one, or one with another environment), what it is started with.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests import wheels

_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static int (*real)(const char *, char *const[], char *const[]);

static void put(int file, const char *text) { if (write(file, text, strlen(text) + 1) < 0) _exit(111); }

/* Nothing but system calls: the child of a vfork comes here too. */
static void note(const char *how, const char *path, char *const argv[], char *const envp[]) {
    char name[4096];
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    snprintf(name, sizeof name, "%s/%d-%ld%09ld-%s", FOLDER, getpid(), (long)now.tv_sec, now.tv_nsec, how);
    int file = open(name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (file < 0) _exit(112);
    put(file, path);
    for (; argv && *argv; argv++) put(file, *argv);
    put(file, "\036");
    for (; envp && *envp; envp++) put(file, *envp);
    close(file);
}

__attribute__((constructor)) static void begin(int argc, char **argv, char **envp) {
    char path[4096] = "";
    real = dlsym(RTLD_NEXT, "execve");
    if (readlink("/proc/self/exe", path, sizeof path - 1) < 0) _exit(113);
    note("begun", path, argv, envp);
}

int execve(const char *path, char *const argv[], char *const envp[]) {
    note("asked", path, argv, envp);
    return real(path, argv, envp);
}
"""


@dataclass(frozen=True)
class Start:
    """One program: which process it was, what it was given, and all of that as bytes."""

    process: int
    argv: tuple[str, ...]
    environ: dict[str, str]
    raw: bytes

    @property
    def name(self) -> str:
        """The program, or the script that a shell or an interpreter was given first."""
        words = [Path(word).name for word in self.argv]
        script = len(words) > 1 and words[0] in {"sh", "bash", "env"}
        return words[script] if words else ""


class Recorder:
    """`environ` is what the first process must be given; `starts` is what began since."""

    def __init__(self, folder: Path) -> None:
        self._notes = folder / "notes"
        self._notes.mkdir(parents=True)
        (folder / "recorder.c").write_text(_SOURCE, encoding="utf-8")
        library = folder / "recorder.so"
        define = f'-DFOLDER="{self._notes}"'
        argv = [wheels.compiler(), "-shared", "-fPIC", define, str(folder / "recorder.c"), "-o", str(library), "-ldl"]
        subprocess.run(argv, check=True)
        self.environ = {"LD_PRELOAD": str(library)}

    def starts(self) -> list[Start]:
        """What was noted since it was last asked."""
        found = []
        for path in sorted(self._notes.iterdir()):
            raw = path.read_bytes()
            words, _, given = raw.partition(b"\0\x1e\0")
            argv = words.decode("utf-8", "replace").split("\0")[1:]
            pairs = (pair.partition("=") for pair in given.decode("utf-8", "replace").split("\0"))
            process = int(path.name.partition("-")[0])
            found.append(Start(process, tuple(argv), {key: value for key, _, value in pairs}, raw))
            path.unlink()
        return found
