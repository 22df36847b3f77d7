"""The source: real git repositories, pinned commits, and patches that apply or say why not."""

from __future__ import annotations

import base64
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sagewheels import source
from sagewheels.config import Settings
from sagewheels.errors import SageError, StoreError, UsageError
from sagewheels.recipe import Recipe
from sagewheels.source import Checkout
from tests import wheels
from tests.githost import serving
from tests.recorder import Recorder

FILES = {
    "setup.py": "FLAGS = ['-std=c++17', '-O3']\nname = 'tiny'\n",
    "tiny/core.py": "def attn():\n    return 1\n",
    "csrc/attn.cu": "// kernels\n",
    "assets/picture.svg": "<svg/>\n",
}


def git(folder: Path, *arguments: str, day: int = 1) -> str:
    when = f"2026-01-{day:02d}T00:00:00Z"
    env = {**os.environ, "GIT_AUTHOR_DATE": when, "GIT_COMMITTER_DATE": when}
    done = subprocess.run(["git", "-C", str(folder), *arguments], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def commit(folder: Path, files: Mapping[str, str], day: int = 1) -> str:
    """A commit with these files, its id."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    git(folder, "add", "-A")
    git(folder, "commit", "--quiet", "-m", f"day {day}", day=day)
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def upstream(tmp_path: Path) -> Path:
    """A repository with tag v1 on its first commit and another commit on main."""
    folder = tmp_path / "upstream"
    folder.mkdir()
    git(folder, "init", "--quiet", "-b", "main")
    commit(folder, FILES)
    git(folder, "tag", "v1")
    commit(folder, {"setup.py": "name = 'changed'\n", "new.py": ""}, day=2)
    return folder


def blob(text: str) -> str:
    done = subprocess.run(["git", "hash-object", "--stdin"], input=text, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def inserting(file: str, after: int, lines: str, old: str | None = None) -> str:
    """A patch that inserts lines into a file of FILES behind line `after`."""
    before = FILES[file].splitlines(keepends=True) if old is None else old.splitlines(keepends=True)
    result = "".join([*before[:after], lines, *before[after:]])
    count = lines.count("\n")
    body = "".join(f"+{line}\n" for line in lines.splitlines())
    return (
        f"Symptom: it is slow.\n\ndiff --git a/{file} b/{file}\nindex {blob(''.join(before))}..{blob(result)} 100644\n"
        f"--- a/{file}\n+++ b/{file}\n@@ -{after},0 +{after + 1},{count} @@\n{body}"
    )


class Bench:
    """A manifest for a repository, and settings whose WORK_DIR is in tmp."""

    def __init__(self, folder: Path, repo: str, pinned: str, **more: Any) -> None:
        self.folder = folder
        self.settings = Settings(work_dir=folder / "work", environ=dict(os.environ))
        paths = more.pop("paths", "")
        lines = f'repo = "{repo}"\nref = "{more.pop("ref", "v1")}"\ncommit = "{pinned}"\n{paths}'
        self.recipe: Recipe = wheels.load_recipe(folder, lines, **more)

    @property
    def tree(self) -> Path:
        return self.settings.work_dir / "source" / "tiny"

    def checkout(self, **changes: Any) -> Checkout:
        return source.checkout(replace(self.settings, **changes), self.recipe, self.tree)

    def error(self, kind: type[SageError], **changes: Any) -> str:
        with pytest.raises(kind) as caught:
            self.checkout(**changes)
        assert type(caught.value) is kind
        return str(caught.value)

    def files(self) -> list[str]:
        found = (path.relative_to(self.tree) for path in self.tree.rglob("*") if path.is_file())
        return sorted(str(path) for path in found if path.parts[0] != ".git")


def bench(upstream: Path, **more: Any) -> Bench:
    return Bench(upstream.parent, str(upstream), git(upstream, "rev-parse", "v1"), **more)


def test_the_pinned_tag(upstream: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = bench(upstream)
    assert here.checkout() == Checkout(
        folder=here.tree,
        repo="local:upstream",
        ref="v1",
        commit=git(upstream, "rev-parse", "v1"),
        epoch=1767225600,  # 2026-01-01
        patches=(),
    )
    assert here.files() == sorted(FILES)
    assert (here.tree / "setup.py").read_text() == FILES["setup.py"]
    assert capsys.readouterr().out == "[source] fetching v1 of local:upstream\n"


def test_an_annotated_tag_is_the_commit_that_it_names(upstream: Path) -> None:
    pinned = git(upstream, "rev-parse", "v1")
    git(upstream, "tag", "-a", "-m", "signed", "v1.0", "v1")
    assert Bench(upstream.parent, str(upstream), pinned, ref="v1.0").checkout().commit == pinned


def test_another_commit_under_the_same_tag(upstream: Path) -> None:
    here = bench(upstream)
    pinned, moved = git(upstream, "rev-parse", "v1"), git(upstream, "rev-parse", "main")
    git(upstream, "tag", "--force", "v1", "main")
    assert here.error(UsageError) == (
        f"v1 of {upstream} is commit {moved}, tiny.toml pins {pinned}. "
        "Use the pinned source, or set SAGE_SOURCE_REF to another ref on purpose."
    )


def test_a_ref_that_was_changed_on_purpose(upstream: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here, main = bench(upstream), git(upstream, "rev-parse", "main")
    found = here.checkout(sage_source_ref="main")
    assert (found.ref, found.commit, here.files()) == ("main", main, sorted([*FILES, "new.py"]))
    assert capsys.readouterr().out.splitlines() == [
        "[source] fetching main of local:upstream",
        f"[source] main is commit {main}, not the pinned one, as SAGE_SOURCE_REF asks",
    ]


def test_another_name_of_the_pinned_commit_is_the_pinned_commit(upstream: Path) -> None:
    pinned = git(upstream, "rev-parse", "v1")
    git(upstream, "branch", "release", "v1")
    text = inserting("csrc/attn.cu", 1, "// mended\n")
    found = bench(upstream, patches={"0001-x.patch": text}).checkout(sage_source_ref="release")
    assert (found.commit, [patch.file for patch in found.patches]) == (pinned, ["0001-x.patch"])


def test_a_commit_id_as_ref(upstream: Path) -> None:
    main = git(upstream, "rev-parse", "main")
    assert bench(upstream).checkout(sage_source_ref=main).commit == main


def test_a_bare_repository(upstream: Path) -> None:
    bare = upstream.parent / "mirror.git"
    git(upstream, "clone", "--quiet", "--bare", ".", str(bare))
    found = bench(upstream).checkout(sage_source_repo=str(bare))
    assert (found.repo, found.commit) == ("local:mirror.git", git(upstream, "rev-parse", "v1"))


def test_a_file_address(upstream: Path) -> None:
    found = bench(upstream).checkout(sage_source_repo=upstream.as_uri())
    assert (found.repo, found.commit) == ("local:upstream", git(upstream, "rev-parse", "v1"))


def test_paths_with_spaces(upstream: Path, tmp_path: Path) -> None:
    spaced = upstream.rename(tmp_path / "my own repository")
    (tmp_path / "my work").mkdir()
    here = Bench(tmp_path / "my work", str(spaced), git(spaced, "rev-parse", "v1"))
    text = inserting("csrc/attn.cu", 1, "// mended\n")
    here.recipe = wheels.load_recipe(here.folder, _source_lines(here), {"0001 with space.patch": text})
    found = here.checkout()
    assert (found.repo, here.files()) == ("local:my own repository", sorted(FILES))
    assert (here.tree / "csrc/attn.cu").read_text() == "// kernels\n// mended\n"


def _source_lines(here: Bench) -> str:
    made = here.recipe.source
    return f'repo = "{made.repo}"\nref = "{made.ref}"\ncommit = "{made.commit}"'


def test_a_relative_path_and_one_in_the_home(upstream: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(upstream.parent)
    monkeypatch.setenv("HOME", str(upstream.parent))
    for repo in ("upstream", "~/upstream"):
        assert bench(upstream).checkout(sage_source_repo=repo).repo == "local:upstream"


def test_only_the_paths_that_the_manifest_names(upstream: Path) -> None:
    here = bench(upstream, paths='paths = ["/setup.py", "/csrc/"]')
    here.checkout()
    assert here.files() == ["csrc/attn.cu", "setup.py"]


def test_a_patch(upstream: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mend = "FLAGS = [flag for flag in FLAGS if '-std' not in flag]\n"
    texts = {
        "0001-no-standard.patch": inserting("setup.py", 1, mend),
        "0002-comment.patch": inserting("csrc/attn.cu", 1, "// mended\n// twice\n"),
    }
    here = bench(upstream, patches=texts)
    found = here.checkout()
    assert [patch.file for patch in found.patches] == list(texts)
    assert (here.tree / "setup.py").read_text() == f"FLAGS = ['-std=c++17', '-O3']\n{mend}name = 'tiny'\n"
    assert (here.tree / "csrc/attn.cu").read_text() == "// kernels\n// mended\n// twice\n"
    assert capsys.readouterr().out.splitlines()[1:] == [f"[source] applied {name}" for name in texts]


def test_patches_that_build_on_each_other(upstream: Path) -> None:
    first = inserting("setup.py", 1, "# one\n")
    middle = FILES["setup.py"].replace("\nname", "\n# one\nname")
    second = inserting("setup.py", 2, "# two\n", old=middle)
    here = bench(upstream, patches={"0001-a.patch": first, "0002-b.patch": second})
    here.checkout()
    assert (here.tree / "setup.py").read_text() == FILES["setup.py"].replace("\nname", "\n# one\n# two\nname")
    turned = bench(upstream, patches={"0002-b.patch": second, "0001-a.patch": first})
    assert turned.error(UsageError).startswith("0002-b.patch: setup.py is blob ")


def test_anchors(upstream: Path) -> None:
    text = inserting("setup.py", 1, "# one\n")
    patch = bench(upstream, patches={"0001-a.patch": text}).recipe.patches[0]
    after = FILES["setup.py"].replace("\nname", "\n# one\nname")
    assert source.anchors(patch) == [("setup.py", blob(FILES["setup.py"]), blob(after))]


def test_a_patch_for_another_file_than_the_pinned_one(upstream: Path) -> None:
    text = inserting("setup.py", 1, "# one\n", old="something = 'else'\n")
    here = bench(upstream, patches={"0001-a.patch": text})
    assert here.error(UsageError) == (
        f"0001-a.patch: setup.py is blob {blob(FILES['setup.py'])[:12]}, the patch was made for "
        f"{blob('something = ' + repr('else') + chr(10))[:12]}. The patch series does not suit the pinned commit."
    )


def test_a_patch_for_a_file_that_is_not_there(upstream: Path) -> None:
    text = inserting("csrc/gone.cu", 1, "# one\n", old="gone\n")
    here = bench(upstream, patches={"0001-a.patch": text})
    assert here.error(UsageError).startswith("0001-a.patch: csrc/gone.cu is blob missing, the patch was made for ")


def test_another_ref_skips_what_does_not_suit_it(upstream: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = {
        "0001-a.patch": inserting("setup.py", 1, "# one\n"),
        "0002-b.patch": inserting("csrc/attn.cu", 1, "// mended\n"),
    }
    here = bench(upstream, patches=texts)
    found = here.checkout(sage_source_ref="main")
    assert [patch.file for patch in found.patches] == ["0002-b.patch"]
    assert (here.tree / "setup.py").read_text() == "name = 'changed'\n"
    was, made_for = blob("name = 'changed'\n")[:12], blob(FILES["setup.py"])[:12]
    assert capsys.readouterr().out.splitlines()[2:] == [
        f"[source] skipped 0001-a.patch: setup.py is blob {was}, the patch was made for {made_for}",
        "[source] applied 0002-b.patch",
    ]


def test_a_patch_whose_result_is_not_what_it_says(upstream: Path) -> None:
    text = inserting("setup.py", 1, "# one\n")
    wrong = text.replace("+# one", "+# two")
    here = bench(upstream, patches={"0001-a.patch": wrong})
    after = blob(FILES["setup.py"].replace("\nname", "\n# one\nname"))
    assert (
        here.error(UsageError) == f"0001-a.patch left setup.py as another blob than {after[:12]}. Make the patch again."
    )


def _removing(text: str) -> str:
    """The same with one more line, which takes away a line of upstream's."""
    return text.replace("@@ -1,0 +2,1 @@\n", "@@ -2,1 +2,1 @@\n-name = 'tiny'\n")


def _with_context(text: str) -> str:
    return text.replace("@@ -1,0 +2,1 @@\n", "@@ -1,1 +1,2 @@\n FLAGS = ['-std=c++17', '-O3']\n")


def _without_ids(text: str) -> str:
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith("index "))


@pytest.mark.parametrize("change", [_removing, _with_context, _without_ids])
def test_a_patch_may_only_insert_below_its_blob_ids(upstream: Path, change: Any) -> None:
    text = change(inserting("setup.py", 1, "# one\n"))
    here = bench(upstream, patches={"0001-a.patch": text})
    path = here.recipe.patches[0].path
    assert here.error(UsageError) == f"{path} must only insert lines, below `diff --git` and `index` lines."


def test_each_file_of_a_patch_needs_its_blob_ids(upstream: Path) -> None:
    text = inserting("setup.py", 1, "# one\n") + _without_ids(inserting("csrc/attn.cu", 1, "// mended\n"))
    bench(upstream, patches={"0001-a.patch": text}).error(UsageError)


def test_a_removed_line_that_looks_like_a_file_name(upstream: Path) -> None:
    old, new = "-- kernels\n", "-- ours\n"
    commit(upstream, {"tiny/query.sql": old}, day=3)
    git(upstream, "tag", "v2")
    text = (
        f"diff --git a/tiny/query.sql b/tiny/query.sql\nindex {blob(old)}..{blob(new)} 100644\n"
        f"--- a/tiny/query.sql\n+++ b/tiny/query.sql\n@@ -1 +1 @@\n-{old}+{new}"
    )
    here = Bench(
        upstream.parent, str(upstream), git(upstream, "rev-parse", "v2"), ref="v2", patches={"0001-a.patch": text}
    )
    assert "must only insert lines" in here.error(UsageError)


UNFETCHED = r"v\d could not be fetched from {} git (fetch )?failed \(exit code 128\): .+\. {}"
CHECK = r"Check the network, SAGE_SOURCE_REPO and SAGE_SOURCE_REF\."


def test_a_repository_that_does_not_answer(upstream: Path) -> None:
    here, gone = bench(upstream), upstream.parent / "gone.git"
    with pytest.raises(StoreError) as caught:
        here.checkout(sage_source_repo=str(gone))
    assert caught.value.code == 7
    assert re.fullmatch(UNFETCHED.format("local:gone.git:", CHECK), str(caught.value))


def test_a_repository_that_does_not_answer_is_told_in_words_that_help(upstream: Path) -> None:
    line = bench(upstream).error(StoreError, sage_source_repo=str(upstream.parent / "gone.git"))
    assert "does not appear to be a git repository" in line


def test_a_ref_that_is_not_there(upstream: Path) -> None:
    line = bench(upstream).error(StoreError, sage_source_ref="v9")
    assert re.fullmatch(UNFETCHED.format("local:upstream:", CHECK), line)
    assert ": fatal: couldn't find remote ref v9. Check" in line


def test_a_dead_address_never_shows_the_password(upstream: Path) -> None:
    line = bench(upstream).error(StoreError, sage_source_repo="http://me:secret@127.0.0.1:9/tiny.git")
    assert re.fullmatch(UNFETCHED.format(r"http://127\.0\.0\.1:9/tiny\.git:", CHECK), line)
    assert "secret" not in line


def _aliased(upstream: Path, address: str) -> dict[str, str]:
    """The environment in which git takes the repository for this address, and for no other."""
    alias = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": f"url.{upstream}.insteadOf", "GIT_CONFIG_VALUE_0": address}
    return {**os.environ, **alias}


def test_a_repository_with_credentials_is_published_without(upstream: Path, capsys: pytest.CaptureFixture[str]) -> None:
    address = "https://me:secret@example.invalid/tiny.git"
    here = bench(upstream)
    found = here.checkout(sage_source_repo=address, environ=_aliased(upstream, "https://example.invalid/tiny.git"))
    assert (found.repo, found.commit) == ("https://example.invalid/tiny.git", git(upstream, "rev-parse", "v1"))
    assert "secret" not in capsys.readouterr().out
    assert "secret" not in (here.tree / ".git" / "config").read_text(), "what is compiled can read it"


def test_git_signs_in_with_what_is_in_no_argument_and_no_file(upstream: Path, tmp_path: Path) -> None:
    """A name and a password in SAGE_SOURCE_REPO; `ps` and what is compiled see neither."""
    git(upstream, "config", "uploadpack.allowFilter", "true")
    recorder = Recorder(tmp_path / "recorder")
    # What a user configured in this way stays in force.
    theirs = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "http.userAgent", "GIT_CONFIG_VALUE_0": "mine"}
    here = bench(upstream, paths='paths = ["/setup.py", "/tiny/"]\n')
    with serving(tmp_path, "me:p@ss/word") as host:
        changes = {
            "sage_source_repo": f"http://me:p%40ss%2Fword@{host}/upstream/.git",
            "environ": {**os.environ, **recorder.environ, **theirs},
        }
        line = here.error(StoreError, sage_source_repo=f"http://me:wrong@{host}/upstream/.git")
        assert re.fullmatch(UNFETCHED.format(f"http://{host}/upstream/.git:", CHECK), line)
        found = here.checkout(**changes)
        settings = replace(here.settings, **changes)  # type: ignore[arg-type]
        assert source.answers(settings, here.recipe, 30) == f"v1 of http://{host}/upstream/.git"
    assert (found.commit, found.repo) == (git(upstream, "rev-parse", "v1"), f"http://{host}/upstream/.git")
    assert here.files() == ["setup.py", "tiny/core.py"]
    starts = recorder.starts()
    assert any(start.name.startswith("git-remote-http") for start in starts)
    basic = base64.b64encode(b"me:p@ss/word").decode()
    hidden = re.compile(f"p%40ss|p@ss|{basic}")
    assert [start.argv for start in starts if hidden.search(" ".join(start.argv))] == []
    written = [path for path in here.tree.rglob("*") if path.is_file() and hidden.search(path.read_text("latin-1"))]
    assert written == []


def test_a_name_without_a_password_is_for_the_users_own_helper(upstream: Path, tmp_path: Path) -> None:
    helper = wheels.script(tmp_path / "helper", '#!/bin/sh\n[ "$1" != get ] || { cat >&2; echo password=secret; }\n')
    theirs = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "credential.helper", "GIT_CONFIG_VALUE_0": str(helper)}
    with serving(tmp_path, "me:secret") as host:
        repo = f"http://me@{host}/upstream/.git"
        found = bench(upstream).checkout(sage_source_repo=repo, environ={**os.environ, **theirs})
    assert found.commit == git(upstream, "rev-parse", "v1")


def test_a_moved_tag_never_shows_the_password(upstream: Path) -> None:
    address = "https://me:secret@example.invalid/tiny.git"
    here = bench(upstream)
    git(upstream, "tag", "--force", "v1", "main")
    environ = _aliased(upstream, "https://example.invalid/tiny.git")
    line = here.error(UsageError, sage_source_repo=address, environ=environ)
    assert "secret" not in line


def test_leftovers_of_a_former_tree_are_gone(upstream: Path) -> None:
    here = bench(upstream, patches={"0001-a.patch": inserting("setup.py", 1, "# one\n")})
    here.checkout()
    (here.tree / "build").mkdir()
    (here.tree / "build" / "old.so").write_bytes(b"old")
    (here.tree / "tiny/core.py").write_text("import evil\n")
    (here.tree / ".git" / "hooks").mkdir(exist_ok=True)
    assert [patch.file for patch in here.checkout().patches] == ["0001-a.patch"]
    assert here.files() == sorted(FILES)
    assert (here.tree / "tiny/core.py").read_text() == FILES["tiny/core.py"]


def test_no_secret_reaches_git(upstream: Path, tmp_path: Path) -> None:
    real = subprocess.run(["which", "git"], capture_output=True, text=True, check=True).stdout.strip()
    wheels.script(tmp_path / "bin" / "git", f'#!/bin/sh\nenv >> {tmp_path}/said\nexec {real} "$@"\n')
    environ = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "HF_TOKEN": "hf_secret"}
    bench(upstream).checkout(environ=environ)
    said = (tmp_path / "said").read_text()
    assert "GIT_TERMINAL_PROMPT=0" in said and "hf_secret" not in said


def test_no_git(upstream: Path, tmp_path: Path) -> None:
    line = bench(upstream).error(UsageError, environ={"PATH": str(tmp_path)})
    assert line == "git cannot be run (No such file or directory). Install git (apt-get install git)."


@pytest.mark.parametrize(
    ("repo", "public"),
    [
        ("https://github.com/thu-ml/SageAttention.git", "https://github.com/thu-ml/SageAttention.git"),
        ("https://me:secret@example.invalid/tiny.git", "https://example.invalid/tiny.git"),
        ("https://secret@example.invalid/a@b/tiny.git", "https://example.invalid/a@b/tiny.git"),
        ("ssh://git@example.invalid:22/tiny.git", "ssh://example.invalid:22/tiny.git"),
        ("git@example.invalid:me/tiny.git", "git@example.invalid:me/tiny.git"),
        ("file:///home/me/tiny", "local:tiny"),
        ("/home/me/tiny.git", "local:tiny.git"),
        ("../tiny", "local:tiny"),
        ("~/src/tiny", "local:tiny"),
        (r"C:\Users\me\tiny", r"local:C:\Users\me\tiny"),
    ],
)
def test_public_name(repo: str, public: str) -> None:
    assert source.public_name(repo) == public


@pytest.mark.parametrize(
    ("repo", "hidden"),
    [
        ("https://me:pass@word@example.invalid/tiny.git", "word"),
        ("/home/me/tiny@work/tiny.git", "home"),
    ],
)
def test_public_name_of_odd_ones(repo: str, hidden: str) -> None:
    assert hidden not in source.public_name(repo)


def test_a_folder_beside_the_manifests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its content is its identity; what builds leave in it is not part of it."""
    monkeypatch.setattr(source, "ROOT", tmp_path)
    (tmp_path / "demo" / "pkg").mkdir(parents=True)
    (tmp_path / "demo" / "pkg" / "a.py").write_text("a = 1\n")
    recipe, given = wheels.load_recipe(tmp_path), Settings(environ=dict(os.environ))
    tree = tmp_path / "tree"
    first = source.checkout(given, recipe, tree)
    assert (first.repo, first.ref, first.patches) == ("local:demo", "", ())
    assert first.commit == f"sha256:{source.content_hash({'pkg/a.py': b'a = 1' + bytes([10])})}"
    for name in ("build/x.o", "pkg.egg-info/PKG-INFO", "pkg/__pycache__/a.pyc", "pkg/_a.so"):
        (tmp_path / "demo" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "demo" / name).write_text("left by a build")
    assert source.checkout(given, recipe, tree).commit == first.commit
    assert [str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_file()] == ["pkg/a.py"]
    (tmp_path / "demo" / "pkg" / "a.py").write_text("a = 2\n")
    assert source.checkout(given, recipe, tree).commit != first.commit


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    recipe = wheels.load_recipe(tmp_path, 'path = "no-such-folder"')
    with pytest.raises(UsageError) as caught:
        source.checkout(Settings(environ=dict(os.environ)), recipe, tmp_path / "tree")
    assert str(caught.value) == f"{recipe.file}: source.path no-such-folder is not a folder."


def test_content_hash_knows_where_names_and_contents_end() -> None:
    assert source.content_hash({"a": b"bc"}) != source.content_hash({"ab": b"c"})
    assert source.content_hash({"a": b"1", "b": b"2"}) == source.content_hash({"b": b"2", "a": b"1"})
    assert source.content_hash({"a": b"1"}) != source.content_hash({"a": b"2"})


def test_the_users_own_repository_is_never_touched(upstream: Path, tmp_path: Path) -> None:
    """Hooks and `rebase --exec` run with GIT_DIR set: every git command would mean that repository."""
    mine = tmp_path / "mine"
    mine.mkdir()
    git(mine, "init", "--quiet")
    (mine / "mine.txt").write_text("precious\n")
    before = wheels.tree(mine)
    pointed = {
        "GIT_DIR": str(mine / ".git"),
        "GIT_WORK_TREE": str(mine),
        "GIT_INDEX_FILE": str(mine / ".git" / "index"),
    }
    here = bench(upstream)
    found = here.checkout(environ={**os.environ, **pointed})
    assert (found.folder / "setup.py").exists()
    assert wheels.tree(mine) == before
