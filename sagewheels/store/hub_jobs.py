"""Hugging Face Jobs: a command that runs on a rented machine, watched and ended through the Hub's API."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from sagewheels.errors import StoreError, UsageError
from sagewheels.store.hub_client import HubClient
from sagewheels.store.hub_repo import TOKENS, Repo
from sagewheels.store.tries import Trouble
from sagewheels.web import TIMEOUT, Web

if TYPE_CHECKING:
    import requests
    from huggingface_hub import HfApi, JobInfo

LABEL = "sagewheels-build"
"""The label of a job that says which build it is; jobs of one build have one value."""

BILLING = "https://huggingface.co/settings/billing"
_SILENCE = 75.0
"""Seconds: the Hub sends a sign of life into a log each 30 s, for which Ctrl-C may have to wait (1 time of 500)."""

_OVER = frozenset({"COMPLETED", "CANCELED", "ERROR", "DELETED"})
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a job is to do. `build` names the build, so that it is not ordered twice; `seconds` is how long it may run.

    Whoever may see jobs of the namespace can read all of it but `secrets`.
    """

    image: str
    flavor: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    secrets: Mapping[str, str] = field(repr=False)
    seconds: int
    build: str


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A job as the Hub shows it; `message` is what the Hub says of its end, if anything."""

    id: str
    url: str
    stage: str
    message: str
    flavor: str

    @property
    def is_over(self) -> bool:
        """Whether it will not run any more."""
        return self.stage in _OVER


class HubJobs:
    """Jobs of one namespace, default: the owner of the token. Every method raises StoreError, but as it says.

    `timeout` is (connect, silence) in seconds; `silence` is that of a log; `pause` sleeps between tries.
    """

    def __init__(
        self,
        repo: Repo,
        namespace: str = "",
        *,
        timeout: tuple[float, float] = TIMEOUT,
        silence: float = _SILENCE,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._repo, self._namespace, self.pause = repo, namespace, pause
        self._client = HubClient(repo, timeout, pause)
        self._web = Web(repo.endpoint, sign=self._sign, timeout=(timeout[0], silence), pause=pause)

    def running(self, build: str) -> Seen | None:
        """A job of this build that waits or runs, the oldest of several."""
        return self._asked("list jobs", lambda api: self._running(api, build))

    def submit(self, order: Order) -> Seen:
        """A job that does what is ordered. Where the answer to an earlier try was lost, the job of that try."""

        def once(api: HfApi) -> Seen:
            if there := self._running(api, order.build):
                return there
            made = api.run_job(
                image=order.image,
                command=list(order.command),
                env=dict(order.environment),
                secrets=dict(order.secrets),
                flavor=order.flavor,
                timeout=order.seconds,
                name="sagewheels-build",
                labels={LABEL: order.build},
                namespace=self._owner(api),
            )
            return _seen(made)

        return self._asked("run a job", once, flavor=order.flavor)

    def look(self, id: str) -> Seen | None:
        """The job as it stands; None when it was deleted."""

        def once(api: HfApi) -> Seen | None:
            from huggingface_hub.errors import HfHubHTTPError

            try:
                return _seen(api.inspect_job(job_id=id, namespace=self._owner(api)))
            except HfHubHTTPError as error:
                if error.response.status_code == 404:
                    return None
                raise

        return self._asked("look at a job", once)

    def cancel(self, id: str) -> None:
        """The job runs no longer."""
        self._asked("cancel a job", lambda api: api.cancel_job(job_id=id, namespace=self._owner(api)))

    def lines(self, id: str, skip: int = 0) -> Iterator[str | None]:
        """The lines of the log without the first `skip`, as they come; None is a sign of life.

        Raises Trouble when the log breaks off; one that ends may have ended before the job does.
        """
        number = 0
        url = f"{self._repo.endpoint}/api/jobs/{self._namespace}/{id}/logs"
        for line in self._web.lines(url, check=_demand_log):
            if not line.startswith("data:"):
                yield None
                continue
            if number >= skip:
                yield self._repo.redacted(_text(line))
            number += 1

    def _running(self, api: HfApi, build: str) -> Seen | None:
        stages = ["SCHEDULING", "RUNNING"]
        found = list(api.list_jobs(status=stages, labels={LABEL: build}, namespace=self._owner(api)))
        # A Hub that knows no such filter would show jobs of all kinds.
        ours = [one for one in found if (one.labels or {}).get(LABEL) == build and one.status.stage in stages]
        return _seen(min(ours, key=lambda one: str(one.created_at))) if ours else None

    def _owner(self, api: HfApi) -> str:
        if not self._namespace:
            self._namespace = str(api.whoami()["name"])
        return self._namespace

    def _asked(self, what: str, once: Callable[[HfApi], _T], flavor: str = "") -> _T:
        """What `once` returns, after bounded tries."""

        def told(api: HfApi) -> _T:
            from huggingface_hub.errors import HfHubHTTPError

            try:
                return once(api)
            except HfHubHTTPError as error:
                refusal = self._refusal(error, what, flavor)
            raise refusal

        return self._client.write(what, told, failed=f"the Hub could not be asked to {what}")

    def _refusal(self, error: Any, what: str, flavor: str) -> Exception:
        """The error for what the Hub does not do: who may not, what is missing, or what is not known."""
        status, owner = error.response.status_code, self._namespace or "the owner of HF_TOKEN"
        said = self._repo.redacted(str(error.server_message or ""))[:160]
        if status == 402:
            remedy = f"Add credits at {BILLING}, or build on a machine of yours without --on"
            return StoreError(f"{owner} has no credits, so the Hub does not {what} (402)", remedy)
        if status == 403:
            remedy = f"Give the token the right to run jobs at {TOKENS}, or name another --namespace"
            return StoreError(f"HF_TOKEN may not {what} in the name of {owner} (403)", remedy)
        if status == 404:
            return StoreError(f"the Hub knows no jobs of {owner} (404)", "Check --namespace")
        if status == 400 and flavor:
            remedy = "Check --flavor and --timeout: https://huggingface.co/docs/hub/jobs-pricing lists the flavors"
            return UsageError(f"the Hub does not take the job with --flavor {flavor}: {said}", remedy)
        return self._repo.refusal(status, what, said)

    def _sign(self, request: requests.PreparedRequest) -> None:
        request.headers["Authorization"] = f"Bearer {self._repo.token}"


def _seen(info: JobInfo) -> Seen:
    stage = getattr(info.status.stage, "value", info.status.stage)
    message, flavor = info.status.message or "", getattr(info.flavor, "value", info.flavor)
    return Seen(id=info.id, url=info.url, stage=str(stage), message=message, flavor=str(flavor))


def _demand_log(answer: requests.Response) -> None:
    if answer.status_code != 200:
        raise Trouble(f"the log is not there ({answer.status_code})")


def _text(line: str) -> str:
    """The words of one event. Raises Trouble for what is none."""
    try:
        return str(json.loads(line.removeprefix("data:"))["data"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise Trouble("that is not what a Hub answers") from None
