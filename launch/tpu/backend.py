"""Cloud TPU VMs: a queued resource for each start of a run, and a start-up script that trains.

The run's folder is in a bucket; DONE and FAILED there say how it ended, since a queued resource
only knows whether its VM is up. All that is made for a run has a label with a random number that
the record keeps: by it the next launcher finds everything, and nobody else's is touched.
"""

import contextlib
import sys
import uuid
from collections.abc import Iterator
from typing import Any

from launch import records
from launch.errors import LaunchError, redacted
from launch.interface import Observation
from launch.policy import State
from launch.records import Record
from launch.signals import Signals
from launch.tpu import archive, request, storage
from launch.tpu.api import TpuApi
from launch.tpu.request import Options, check, node_name, render, workdir
from launch.tpu.rest import ApiError, Interrupted, Unavailable, wait
from launch.tpu.storage import Bucket, Tail

__all__ = ["Job", "Options", "check", "render"]

_LOOK_TRIES = 3  # of a request in a look: the next look comes anyway
_DELETE_POLL_S = 5.0
_LONGEST_DELETE_S = 1800.0
_LOG_POLL_S = 5.0

_QUEUED_STATES = {
    "CREATING": State.QUEUED,
    "ACCEPTED": State.QUEUED,
    "WAITING_FOR_RESOURCES": State.QUEUED,
    "PROVISIONING": State.PROVISIONING,
    # Taken away, and never allocated again.
    "SUSPENDING": State.PREEMPTED,
    "SUSPENDED": State.PREEMPTED,
}
_NODE_STATES = {
    "CREATING": State.PROVISIONING,
    "STARTING": State.PROVISIONING,
    "READY": State.RUNNING,
    "PREEMPTED": State.PREEMPTED,
    "TERMINATED": State.PREEMPTED,
    "STOPPED": State.PREEMPTED,
}


class Job:
    restarts_itself = False
    ends_with_watch = False
    poll_s = 30.0
    backoff_s = 10.0

    def __init__(self, record: Record, signals: Signals):
        self._record, self._spec, self._signals = record, record.spec, signals
        options = record.spec.options
        bucket, self._folder = storage.split(workdir(record.spec))
        self._api = TpuApi(options.project, options.zone, signals)
        self._bucket = Bucket(bucket, signals)
        self._look_api = TpuApi(options.project, options.zone, signals, _LOOK_TRIES)
        self._look_bucket = Bucket(bucket, signals, _LOOK_TRIES)

    # Making.

    def create(self, attempt: int) -> None:
        """Nothing is made where DONE lies in the run's folder already: the next look sees it.

        Where nobody answers, it is not known what was made: a look finds out, and so this is no
        error, but for the first start before anything was asked for.
        """
        try:
            self._prepare()
            if self._bucket.stat(self._object("DONE")) is not None:
                self._say(f"already done: {workdir(self._spec)}; another --workdir trains again")
                return
            self._bucket.delete(self._object("FAILED"))  # an earlier start's
        except Unavailable as error:
            if not attempt:
                raise
            self._say(str(error))
            return
        try:
            self._create(attempt)
        except Unavailable as error:
            self._say(f"it is not known yet whether the TPU was asked for: {error}")

    def _prepare(self) -> None:
        """The run's code: packed once, so that all starts run the same."""
        handle, spec = self._record.handle, self._spec
        self._bucket.check()
        if handle.get("code"):
            return
        code = spec.options.code
        if not code:
            data = archive.pack(spec.folder)
            code = request.archive_address(spec, data)
            self._bucket.write_new(storage.split(code)[1], data)
        handle["code"] = code
        self._record.save()

    def _create(self, attempt: int) -> None:
        handle, name = self._record.handle, node_name(self._spec, attempt)
        script = request.script(self._spec, attempt, handle["code"])
        body = request.body(self._spec, attempt, script)
        request_id = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{self._spec.run}/{attempt}"))
        try:
            operation = self._api.create(name, body, request_id)
        except ApiError as error:
            if error.status != 409:
                with contextlib.suppress(LaunchError):
                    self.delete()  # of an earlier try, whose answer was lost
                raise
            # Ours, where the answer to an earlier try was lost.
            there = self._api.queued_resource(name)
            if there is None or not self._is_ours(there):
                raise self._taken(name) from None
            return
        handle["operation"] = {"attempt": attempt, "name": operation.get("name", "")}
        self._record.save()

    def _taken(self, name: str) -> LaunchError:
        options = self._spec.options
        return LaunchError(
            f"--name={self._spec.name}: {options.zone} has a TPU {name} of somebody else; choose "
            f"another name, or, if nobody needs it: gcloud compute tpus queued-resources delete "
            f"{name} --zone={options.zone} --project={options.project} --force"
        )

    # Looking.

    def observe(self) -> Observation:
        """Never raises: who cannot be asked now, can be later."""
        try:
            return self._ended() or self._look()
        except LaunchError as error:
            return Observation(State.UNKNOWN, message=str(error))

    def _ended(self) -> Observation | None:
        """What the run's folder says."""
        done = self._look_bucket.read(self._object("DONE"))
        if done is not None:
            return Observation(State.SUCCEEDED, exit_code=0, message=_first_line(done))
        failed = self._look_bucket.read(self._object("FAILED"))
        if failed is None:
            return None
        head, _, why = failed.decode(errors="replace").partition("\n")
        whose, _, why = why.partition(": ")
        this = f"run {self._spec.run} attempt {self._record.restarts.attempt}"
        word, _, code = head.partition(" ")
        if whose != this or word != "FAILED" or not code.strip().isdigit():
            return None  # an earlier start's, or an earlier run's
        return Observation(State.FAILED, exit_code=int(code), message=_first_line(why.encode()))

    def _look(self) -> Observation:
        name = node_name(self._spec, self._record.restarts.attempt)
        there = self._look_api.queued_resource(name)
        if there is None or not self._is_ours(there):
            return self._not_there()
        status = there.get("state", {})
        state = status.get("state", "")
        if state == "ACTIVE":
            return self._look_at_node(name)
        if state == "FAILED":
            error = status.get("failedData", {}).get("error", {})
            return Observation(State.FAILED, message=error.get("message") or "no reason is given")
        by = f" by {status['stateInitiator']}" if "stateInitiator" in status else ""
        message = f"the queued resource is {state or 'in no state'}{by}"
        return Observation(_QUEUED_STATES.get(state, State.UNKNOWN), message=message)

    def _not_there(self) -> Observation:
        """Not yet, refused after all, or not any more."""
        operation = self._record.handle.get("operation", {})
        if operation.get("attempt") == self._record.restarts.attempt and operation.get("name"):
            found = self._look_api.operation(operation["name"]) or {}
            if error := found.get("error"):
                return Observation(State.FAILED, message=error.get("message", "refused"))
            if found and not found.get("done"):
                return Observation(State.QUEUED, message="being created")
        return Observation(State.UNKNOWN, gone=True, message="there is no such queued resource")

    def _look_at_node(self, name: str) -> Observation:
        node = self._look_api.node(name)
        if node is None:
            return Observation(State.UNKNOWN, gone=True, message="its node is gone")
        state, health = node.get("state", ""), node.get("health", "")
        words = [f"node {state}", health if health != "HEALTHY" else ""]
        words.append(node.get("healthDescription", ""))
        message = ", ".join(filter(None, words))
        return Observation(_NODE_STATES.get(state, State.UNKNOWN), message=message)

    def progress(self) -> str:
        try:
            found = self._look_bucket.stat(self._object("checkpoints/checkpoint"))
        except LaunchError:
            return self._record.restarts.progress  # nobody knows: none
        return str(found.get("generation", "")) if found else ""

    def logs(self, follow: bool) -> Iterator[str]:
        """Those of all starts; the VM uploads them twice a minute."""
        tails: list[Tail] = []
        while True:
            record = records.read(self._spec.name)
            ended = not follow or record.state.is_final
            while len(tails) <= record.restarts.attempt:
                tails.append(Tail(self._look_bucket, self._object(f"launch/{len(tails)}.log")))
            try:
                for tail in tails:
                    yield from tail.lines(last=ended)
            except Unavailable:
                if ended:
                    raise
            if ended:
                return
            self._signals.wait(_LOG_POLL_S)
            if self._signals.received:
                return

    # Taking away.

    def delete(self) -> None:
        """All that has the run's label, whichever start it is of; the run's folder stays.

        Where nobody answers it waits: what is left behind costs money.
        """
        until = self._signals.now() + _LONGEST_DELETE_S
        said = ""
        while True:
            try:
                left = self._ours()
                if not left:
                    return
                for thing in left:
                    if _state(thing) != "DELETING":
                        self._api.delete(thing["name"])
            except Interrupted:
                raise
            except (Unavailable, ApiError) as error:
                # Refused for its state (400, 409): it changes; for want of permission: it does not.
                if isinstance(error, ApiError) and error.status in (401, 403):
                    raise
                if said != (said := str(error)):
                    self._say(f"not deleted yet: {error}")
            if self._signals.now() > until:
                options = self._spec.options
                raise LaunchError(
                    f"{self._spec.name}: is not deleted after {_LONGEST_DELETE_S / 60:.0f} minutes "
                    f"{said}; look at it (gcloud compute tpus queued-resources list --zone="
                    f"{options.zone} --project={options.project}) and cancel it again"
                )
            wait(self._signals, _DELETE_POLL_S)

    def _ours(self) -> list[dict[str, Any]]:
        """Queued resources, and nodes that belong to none of them: those go with theirs."""
        queued = [one for one in self._api.queued_resources() if self._is_ours(one)]
        names = {one["name"] for one in queued}
        nodes = [
            node
            for node in self._api.nodes()
            if self._has_label(node) and node.get("queuedResource") not in names
        ]
        return queued + nodes

    def _is_ours(self, queued: dict[str, Any]) -> bool:
        specs = queued.get("tpu", {}).get("nodeSpec", [])
        return any(self._has_label(spec.get("node", {})) for spec in specs)

    def _has_label(self, node: dict[str, Any]) -> bool:
        return node.get("labels", {}).get(request.LABEL) == self._spec.run

    def _object(self, name: str) -> str:
        return f"{self._folder}/{name}"

    def _say(self, text: str) -> None:
        print(f"launch {self._spec.name}: {redacted(text)}", file=sys.stderr, flush=True)


def _state(thing: dict[str, Any]) -> str:
    """Of a queued resource or a node."""
    state = thing.get("state", "")
    return state.get("state", "") if isinstance(state, dict) else state


def _first_line(data: bytes) -> str:
    return next(iter(data.decode(errors="replace").splitlines()), "")
