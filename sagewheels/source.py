"""The source to compile: a clean checkout of the pinned commit, with the patch series applied and recorded."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from urllib.parse import unquote

from sagewheels import proc, ui
from sagewheels.config import Settings
from sagewheels.errors import SageError, StoreError, UsageError
from sagewheels.recipe import Patch, Recipe
from sagewheels.redact import redacted
from sagewheels.resources import ROOT

_OTHER_REPOSITORY = frozenset(
    "GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE GIT_OBJECT_DIRECTORY GIT_ALTERNATE_OBJECT_DIRECTORIES GIT_COMMON_DIR "
    "GIT_NAMESPACE GIT_PREFIX".split()
)
_NO_SUCH_REF = 2
_NOT_SOURCE = ("build", "*.egg-info", "__pycache__", "*.so")
_ANCHOR = re.compile(
    r"^diff --git a/(?P<file>\S+) b/\S+\nindex (?P<old>[0-9a-f]{7,40})\.\.(?P<new>[0-9a-f]{7,40})", re.M
)


@dataclass(frozen=True, kw_only=True)
class Checkout:
    """A source tree ready to compile; `commit` is a git commit, or `sha256:...` of a folder's content."""

    folder: Path
    repo: str
    ref: str
    commit: str
    epoch: int
    patches: tuple[Patch, ...]


def checkout(settings: Settings, recipe: Recipe, folder: Path) -> Checkout:
    """A fresh tree in `folder`: whatever was there is gone, nothing but the source and the patches is in it.

    Raises UsageError when the ref is not the pinned commit or a patch does not apply, StoreError when the
    repository does not answer.
    """
    shutil.rmtree(folder, ignore_errors=True)
    if recipe.source.path:
        return _copy(recipe, folder)
    folder.mkdir(parents=True)
    repo, ref = _asked(settings, recipe)
    commit = _fetch(settings, recipe, folder, repo, ref)
    pinned = commit == recipe.source.commit
    if not pinned and ref == recipe.source.ref:
        raise UsageError(
            f"{ref} of {redacted(repo)} is commit {commit}, {recipe.file.name} pins {recipe.source.commit}",
            "Use the pinned source, or set SAGE_SOURCE_REF to another ref on purpose",
        )
    if not pinned:
        ui.say("source", f"{ref} is commit {commit}, not the pinned one, as SAGE_SOURCE_REF asks")
    epoch = int(_git(settings, folder, "show", "-s", "--format=%ct", commit).strip())
    applied = tuple(patch for patch in recipe.patches if apply(settings, folder, patch, pinned=pinned))
    return Checkout(folder=folder, repo=public_name(repo), ref=ref, commit=commit, epoch=epoch, patches=applied)


def _asked(settings: Settings, recipe: Recipe) -> tuple[str, str]:
    """Repository and ref: the user's own, else the manifest's."""
    return settings.sage_source_repo or recipe.source.repo, settings.sage_source_ref or recipe.source.ref


def known(settings: Settings, recipe: Recipe) -> str:
    """The commit that a checkout will have, where that is known without one; else empty."""
    if recipe.source.path:
        return _content(ROOT / recipe.source.path)
    _, ref = _asked(settings, recipe)
    return recipe.source.commit if ref in (recipe.source.ref, recipe.source.commit) else ""


def answers(settings: Settings, recipe: Recipe, seconds: float) -> str:
    """What will be fetched, in words, after the repository said that it has it; nothing is fetched.

    Raises StoreError when the repository does not answer in that time, UsageError when it has no such ref, or a folder
    of ours is not there.
    """
    if recipe.source.path:
        if not (ROOT / recipe.source.path).is_dir():
            raise UsageError(f"{recipe.file}: source.path {recipe.source.path} is not a folder")
        return f"the folder {recipe.source.path}"
    repo, ref = _asked(settings, recipe)
    settings, address = _signed_in(settings, repo)
    # A commit is no ref: that it is there, only a fetch shows.
    commit = re.fullmatch(r"[0-9a-f]{40}", ref)
    wanted = ["--", address] if commit else ["--exit-code", "--", address, ref]
    # In no repository of the user's, whose configuration would count.
    done = _run_git(settings, Path("/"), "ls-remote", "--quiet", *wanted, timeout=seconds)
    name = public_name(repo)
    if done.code == _NO_SUCH_REF and not commit:
        raise UsageError(f"{name} has no {ref}", "Correct SAGE_SOURCE_REF or SAGE_SOURCE_REPO")
    if done.code:
        why = f"no answer in {seconds:.3g} s" if done.code < 0 else done.last_line
        what = f"{name} does not give {ref}: {why}"
        raise StoreError(what, "Check the network, and SAGE_SOURCE_REPO")
    return f"{ref} of {name}"


def public_name(repo: str) -> str:
    """How a repository is named in published files: no credentials, and nothing of this machine's folders."""
    if "://" in repo and not repo.startswith("file:"):
        return redacted(repo)
    # git@host:owner/name is an address too; a slash before the colon makes it a path.
    return repo if re.match(r"[^/:]+@[^/:]+:", repo) else f"local:{Path(repo).name}"


def _fetch(settings: Settings, recipe: Recipe, folder: Path, repo: str, ref: str) -> str:
    """Fetches one commit, without the files outside `paths`, and checks it out; returns its id."""
    settings, address = _signed_in(settings, repo)
    _git(settings, folder, "init", "--quiet")
    _git(settings, folder, "remote", "add", "origin", address)
    ui.say("source", f"fetching {ref} of {public_name(repo)}")
    try:
        _git(settings, folder, "fetch", "--quiet", "--depth=1", "--filter=blob:none", "--no-tags", "origin", ref)
    except SageError as error:
        remedy = "Check the network, SAGE_SOURCE_REPO and SAGE_SOURCE_REF"
        raise StoreError(f"{ref} could not be fetched from {public_name(repo)}: {error.what}", remedy) from None
    if recipe.source.paths:
        _git(settings, folder, "sparse-checkout", "set", "--no-cone", *recipe.source.paths)
    _git(settings, folder, "checkout", "--quiet", "--detach", "FETCH_HEAD")
    return _git(settings, folder, "rev-parse", "HEAD").strip()


def _address(repo: str) -> str:
    """What git is given: a folder's whole path, since git runs elsewhere than where the user stands."""
    folder = Path(repo).expanduser()
    return str(folder.resolve()) if folder.is_dir() else repo


def _signed_in(settings: Settings, repo: str) -> tuple[Settings, str]:
    """What git is given to read `repo`: an address without credentials, and settings with which it signs in.

    In the address they would be in the checkout's .git/config, where what is compiled can read them, and in what `ps`
    shows; what is compiled never gets these settings.
    """
    login = re.match(r"https?://([^/\s?#]*)@", repo)
    if not login:
        return settings, _address(repo)
    address, (name, colon, word) = redacted(repo), map(unquote, login[1].partition(":"))
    key, value = f"credential.{address}.username", name
    if colon:
        basic = base64.b64encode(f"{name}:{word}".encode()).decode()
        key, value = f"http.{address}.extraHeader", f"Authorization: Basic {basic}"
    count = int(settings.variable("GIT_CONFIG_COUNT") or 0)
    more = {"GIT_CONFIG_COUNT": str(count + 1), f"GIT_CONFIG_KEY_{count}": key, f"GIT_CONFIG_VALUE_{count}": value}
    return replace(settings, environ={**settings.environ, **more}), address


def _git(settings: Settings, folder: Path, *arguments: str) -> str:
    """Output of git in `folder`. Raises SageError when it fails."""
    return _run_git(settings, folder, *arguments, timeout=900, error=SageError).out


def _run_git(
    settings: Settings, folder: Path, *arguments: str, timeout: float, error: type[SageError] | None = None
) -> proc.Result:
    """git in `folder`; it never asks for a password, and gives up on a dead connection after 30 s."""
    # Set by hooks and `rebase --exec`: they would make every command work on the user's own repository.
    theirs = {key: value for key, value in settings.environ.items() if key not in _OTHER_REPOSITORY}
    env = {
        **theirs,
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_LFS_SKIP_SMUDGE": "1",
        "GIT_HTTP_LOW_SPEED_LIMIT": "1000",
        "GIT_HTTP_LOW_SPEED_TIME": "30",
        "LC_ALL": "C",
    }
    return proc.run(["git", "-C", folder, *arguments], env=env, timeout=timeout, error=error, writes=folder)


def anchors(patch: Patch) -> list[tuple[str, str, str]]:
    """File, blob id before and blob id after, for each file of a patch.

    Raises UsageError for a patch without them, or one that does anything but insert lines.
    """
    text = patch.path.read_text(encoding="utf-8")
    files = re.split(r"^(?=diff --git )", text, flags=re.MULTILINE)[1:]
    found = [_ANCHOR.match(part) for part in files]
    hunks = [line for part in files for line in part.partition("\n@@ ")[2].splitlines()[1:]]
    if not files or not all(found) or not all(line.startswith(("+", "@@ ", "\\")) for line in hunks):
        raise UsageError(f"{patch.path} must only insert lines, below `diff --git` and `index` lines")
    return [(match["file"], match["old"], match["new"]) for match in found if match]


def apply(settings: Settings, folder: Path, patch: Patch, *, pinned: bool) -> bool:
    """Applies a patch and checks the result by blob id; False, with a line that says so, when it is skipped.

    Raises UsageError when the file is not the one that the patch was made for, and the commit is the pinned one.
    """
    for file, old, _ in anchors(patch):
        have = _blob(settings, folder, file)
        if not have.startswith(old):
            what = f"{patch.file}: {file} is blob {have[:12] or 'missing'}, the patch was made for {old[:12]}"
            if pinned:
                raise UsageError(what, "The patch series does not suit the pinned commit")
            ui.say("source", f"skipped {what}")
            return False
    _git(settings, folder, "apply", "--unidiff-zero", "--whitespace=nowarn", str(patch.path.resolve()))
    for file, _, new in anchors(patch):
        if not _blob(settings, folder, file).startswith(new):
            raise UsageError(f"{patch.file} left {file} as another blob than {new[:12]}", "Make the patch again")
    ui.say("source", f"applied {patch.file}")
    return True


def _blob(settings: Settings, folder: Path, file: str) -> str:
    """Blob id of a file in the tree, empty when it is missing."""
    if not (folder / file).is_file():
        return ""
    return _git(settings, folder, "hash-object", "--no-filters", "--", file).strip()


def _copy(recipe: Recipe, folder: Path) -> Checkout:
    """A copy of a folder that lies beside the manifests; its content is its identity."""
    origin = ROOT / recipe.source.path
    if not origin.is_dir():
        raise UsageError(f"{recipe.file}: source.path {recipe.source.path} is not a folder")
    shutil.copytree(origin, folder, ignore=shutil.ignore_patterns(*_NOT_SOURCE))
    return Checkout(
        folder=folder,
        repo=f"local:{recipe.source.path}",
        ref="",
        commit=_content(folder),
        epoch=315532800,  # 1980-01-01, the first date that a zip archive can hold
        patches=(),
    )


def _content(folder: Path) -> str:
    """The identity of a folder: what it holds, less what building in it leaves there."""
    names = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    source = [name for name in names if not any(fnmatch(part, bad) for part in name.parts for bad in _NOT_SOURCE)]
    return f"sha256:{content_hash({str(name): (folder / name).read_bytes() for name in source})}"


def content_hash(files: Mapping[str, bytes]) -> str:
    """sha256 over names and contents, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f"{name}\0{len(files[name])}\0".encode())
        digest.update(files[name])
    return digest.hexdigest()
