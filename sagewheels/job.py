"""One run: the settings, and the facts that its steps share, each found when first asked for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sagewheels import arch, bad, host, recipe, stack, target, ui, wheelhouse
from sagewheels.arch import Arch
from sagewheels.bad import Mark
from sagewheels.buildplan import BUILD_TOOLS
from sagewheels.config import Settings
from sagewheels.errors import StoreError, Untrusted, UsageError
from sagewheels.host import Host
from sagewheels.manifest import WheelManifest
from sagewheels.match import Origin, Verdict, Wanted, rank
from sagewheels.recipe import Recipe
from sagewheels.stack import Need
from sagewheels.target import Target

if TYPE_CHECKING:
    from sagewheels.store.guarded import GuardedStore
    from sagewheels.trust import Trust

DEFAULT_ARCH = "12.0"
"""What is built where there is no GPU and no arch was named: the RTX 5090."""


def _as_meant(settings: Settings) -> Settings:
    """Where SAGE_MANIFEST names a manifest: without a source that only repeats what the one of SAGE_VERSION says.

    The first users' .env holds SAGE_SOURCE_REPO and SAGE_SOURCE_REF, with those values: of another package they
    would be the wrong source. Any other value was set for what is built.
    """
    if not settings.sage_manifest or not (settings.sage_source_repo or settings.sage_source_ref):
        return settings
    try:
        usual = recipe.load(settings.manifest_of_version).source
    except UsageError:  # a SAGE_VERSION without a manifest: nothing can repeat it
        return settings
    repo, ref = settings.sage_source_repo, settings.sage_source_ref
    return replace(
        settings,
        sage_source_repo="" if repo.removesuffix(".git") == usual.repo.removesuffix(".git") else repo,
        sage_source_ref="" if ref in (usual.ref, usual.commit) else ref,
    )


class Job:
    """Settings and facts of one run. Facts that a step changes are replaced by that step (`target`)."""

    def __init__(self, settings: Settings, *, dry_run: bool = False) -> None:
        self.settings, self.dry_run = _as_meant(settings), dry_run
        self._target: Target | None = None
        self.report: dict[str, Any] = {}
        """What `--json` prints besides exit code and error: the facts of the steps, under the name of each step."""
        self.is_store_missing = False
        """Whether the store, once it was read, turned out not to exist."""
        self.not_taken = ""
        """The wheel that was built here and that the store did not take in this run."""
        self.revision: str | None = None
        """The state of the store that `published` is of; None before it was read."""
        self.marks_in_store: list[Mark] = []
        """The wheels that the store, once it was read, says are bad."""

    @cached_property
    def recipe(self) -> Recipe:
        """The build manifest: SAGE_MANIFEST, else the one of SAGE_VERSION."""
        return recipe.load(self.settings.sage_manifest or self.settings.manifest_of_version)

    @cached_property
    def also(self) -> tuple[Recipe, ...]:
        """Build manifests whose wheels will do as well; none when SAGE_SOURCE_REF asks for another source.

        Raises UsageError, as `recipe` does.
        """
        return recipe.also(self.recipe) if self.source == self.recipe.source.commit else ()

    def recipe_of(self, candidate: WheelManifest) -> Recipe:
        """The build manifest that a wheel was made by: one of `also` by its commit, else the chosen one."""
        commit = candidate.data.get("built_from_commit")
        return next((one for one in self.also if one.source.commit == commit), self.recipe)

    @cached_property
    def host(self) -> Host:
        """The machine."""
        return host.probe(self.settings.environ)

    @property
    def packages(self) -> list[str]:
        """The distributions that the target is asked for besides the stack."""
        return [self.recipe.name, *stack.names(self.recipe.needs), "cuda-toolkit", *BUILD_TOOLS]

    @property
    def target(self) -> Target:
        """The interpreter that is installed into."""
        if self._target is None:
            self._target = target.probe(self.settings, *self.packages)
        return self._target

    @target.setter
    def target(self, found: Target | None) -> None:
        self._target = found

    @cached_property
    def archs(self) -> tuple[Arch, ...]:
        """What to build and look for: TORCH_CUDA_ARCH_LIST, else the GPUs', else 12.0."""
        if self.settings.torch_cuda_arch_list:
            asked = arch.parse_list(self.settings.torch_cuda_arch_list)
            # Images set `9.0a`: the manifest knows which cubin an arch needs, so only the number is kept.
            return tuple(sorted({replace(one, suffix="") for one in asked}))
        return self.host.archs or (arch.parse(DEFAULT_ARCH),)

    @cached_property
    def trust(self) -> Trust:
        """Whose wheels and index count here. Raises UsageError for settings that enforce nothing."""
        from sagewheels.trust import Trust

        return Trust(self.settings)

    @cached_property
    def store(self) -> GuardedStore:
        """The user's own store, behind what is trusted; nothing is asked of it before it is used."""
        from sagewheels.store.guarded import GuardedStore
        from sagewheels.store.opening import open_store

        memory = self.settings.work_dir / "state" / "serials.json"
        least = self.settings.min_index_serial or 0
        return GuardedStore(open_store(self.settings), self.trust, memory, least=least)

    @cached_property
    def published(self) -> list[WheelManifest]:
        """Every wheel in the store, read once.

        Raises StoreError when the store does not answer, Untrusted when nobody who is trusted vouches for it.
        """
        from sagewheels.store import entries, index

        found, problems, snapshot = index.load(self.store)
        self.marks_in_store, unread = entries.marks(snapshot)
        # A mistyped folder, or a disk that is not mounted, reads as empty: it must not look like an empty store.
        self.is_store_missing = not snapshot.revision
        self.revision = snapshot.revision
        for problem in (*problems, *unread):
            ui.warn("store", problem)
        return found

    def look_again(self) -> None:
        """Reads the store anew, which others write to. Raises StoreError when it does not answer."""
        vars(self).pop("published", None)
        _ = self.published

    @property
    def closed(self) -> str:
        """Why nothing can be published from here, in words."""
        if not self.store.writable:
            return f"{self.store.label} can only be read (HF_TOKEN is not set)"
        return f"{self.store.label} takes what is signed (SIGNING_KEY is not set)"

    @property
    def need(self) -> Need:
        """What the stack must support."""
        plain = tuple(one.plain for one in self.archs)
        return Need(archs=plain, driver_cuda=self.host.driver_cuda, min_torch=self.recipe.min_torch)

    def recorded(self) -> list[Mark]:
        """The wheels that smoke has found bad: here, and in the store if that was read."""
        return [*wheelhouse.marks(self.settings), *self.marks_in_store]

    def wanted(self, *, here: bool = False, named: bool = False) -> Wanted:
        """The facts that a wheel is matched against; `here` adds the GPUs of this machine, where it will run.

        A wheel that the user `named` may have failed smoke: that is how it gets another try.
        """
        found, torch = self.target, self.target.torch
        return self.wanted_of(
            found.tags,
            torch=torch.public if torch else "",
            cuda=torch.cuda if torch else "",
            archs={one.plain for one in self.archs} | (set(self.host.archs) if here else set()),
            named=named,
        )

    def wanted_of(
        self, tags: Iterable[str], *, torch: str, cuda: str, archs: Iterable[Arch], named: bool = False
    ) -> Wanted:
        """The same for a target with these tags and this stack, whether or not it is there; no interpreter is asked."""
        by_people = [mark for one in (self.recipe, *self.also) for mark in one.known_bad]
        return Wanted(
            name=self.recipe.name,
            version=self._expected(self.recipe),
            tags=frozenset(tags),
            torch=torch,
            cuda=cuda,
            archs=tuple(sorted(archs)),
            glibc=self.host.glibc,
            source=self.source,
            patches=_names(self.recipe),
            modules=_modules(self.recipe),
            allow_unknown=self.settings.allow_unsafe_wheel,
            named=named,
            known_bad=bad.by_name((*by_people, *(() if named else self.recorded()))),
            distrust=self.trust.against if self.settings.trusted_signers else None,
            also=tuple(
                Origin(
                    source=one.source.commit,
                    version=self._expected(one),
                    patches=_names(one),
                    modules=_modules(one),
                )
                for one in self.also
            ),
        )

    def _expected(self, one: Recipe) -> str:
        """SAGE_EXPECT_VERSION speaks of the package of SAGE_VERSION, not of whatever manifest was named."""
        expected = f"{one.name}-{one.version}" == self.settings.manifest_of_version
        return self.settings.sage_expect_version if expected else one.version

    @property
    def source(self) -> str:
        """What wheels must have been built from: the pinned commit, or the ref that the user asked for instead."""
        asked, pinned = self.settings.sage_source_ref, self.recipe.source
        if pinned.path:
            return ""
        return asked if asked and asked != pinned.ref else pinned.commit

    def in_wheelhouse(self) -> list[wheelhouse.Made]:
        """Wheels of the wheelhouse that fit this machine, best first."""
        found = wheelhouse.wheels(self.settings)
        paths = {manifest.wheel_file: path for path, manifest in found}
        verdicts = rank([manifest for _, manifest in found], self.wanted(here=True))
        return [(paths[one.candidate.wheel_file], one.candidate) for one in verdicts if one.fits]

    def verdicts(self) -> list[Verdict]:
        """Every wheel of the store against this machine, best first. Raises StoreError."""
        return rank(self.published, self.wanted())

    def proven_or_none(self, *, believing: bool = True) -> list[WheelManifest]:
        """The store's wheels, or none with a warning when it does not answer: choosing a stack goes on without.

        Raises Untrusted, unless it is not `believing` anyway.
        """
        try:
            return self.published
        except Untrusted as error:
            if believing:
                raise
            ui.warn("stack", f"the store is not believed: {error.what}")
            return []
        except StoreError as error:
            ui.warn("stack", f"the store was not asked: {error.what}")
            return []


def _modules(one: Recipe) -> dict[Arch, tuple[str, ...]]:
    """The extension modules that each arch needs."""
    return {gpu: rule.extensions for gpu, rule in one.archs.items()}


def _names(one: Recipe) -> frozenset[str]:
    """The patch series, by name."""
    return frozenset(patch.file for patch in one.patches)
