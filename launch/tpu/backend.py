"""Cloud TPU VMs: a queued resource for each start of a run, and a start-up script that trains.

The run's folder is in a bucket. Its files DONE and FAILED tell how the run ended, because a queued
resource only knows whether its VM is up. Everything created for a run is labelled with the run's
random number, so that the next launcher finds all of it, and touches nothing else.
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

_LOOK_TRIES = 3  # of a request during a look: there will be another look
_DELETE_POLL_S = 5.0
_LONGEST_DELETE_S = 1800.0
_LOG_POLL_S = 5.0

_QUEUED_STATES = {
    "CREATING": State.QUEUED,
    "ACCEPTED": State.QUEUED,
    "WAITING_FOR_RESOURCES": State.QUEUED,
    "PROVISIONING": State.PROVISIONING,
    # Preempted, and never allocated again.
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

    # Creating.

    def create(self, attempt: int) -> None:
        """Asks for a TPU, unless the run's folder has DONE already: the next look finds that.

        Without an answer it is unknown what was created. The next look finds out, so this is not an
        error, except at the first start before anything was requested.
        """
        try:
            self._prepare()
            if self._bucket.stat(self._object("DONE")) is not None:
                self._say(
                    f"already done: {workdir(self._spec)}; choose another --workdir to train again"
                )
                return
            self._bucket.delete(self._object("FAILED"))  # from an earlier start
        except Unavailable as error:
            if not attempt:
                raise
            self._say(str(error))
            return
        try:
            self._create(attempt)
        except Unavailable as error:
            self._say(f"it is unknown whether the request for the TPU arrived: {error}")

    def _prepare(self) -> None:
        """Uploads the run's code, once, so that all starts run the same."""
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
                    self.delete()  # created by an earlier try whose answer was lost
                raise
            # It may be ours, from an earlier try whose answer was lost.
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
        """Returns the state; never raises, because a server that does not answer now may later."""
        try:
            return self._ended() or self._look()
        except LaunchError as error:
            return Observation(State.UNKNOWN, message=str(error))

    def _ended(self) -> Observation | None:
        """Returns how the run ended, from the files in its folder; None if it has not."""
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
            return None  # of an earlier start, or of an earlier run
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
            return Observation(State.FAILED, message=error.get("message") or "no reason was given")
        by = f" by {status['stateInitiator']}" if "stateInitiator" in status else ""
        message = f"the queued resource is {state or 'in an unknown state'}{by}"
        return Observation(_QUEUED_STATES.get(state, State.UNKNOWN), message=message)

    def _not_there(self) -> Observation:
        """Distinguishes not yet created, refused after all, and deleted."""
        operation = self._record.handle.get("operation", {})
        if operation.get("attempt") == self._record.restarts.attempt and operation.get("name"):
            found = self._look_api.operation(operation["name"]) or {}
            if error := found.get("error"):
                return Observation(State.FAILED, message=error.get("message", "refused"))
            if found and not found.get("done"):
                return Observation(State.QUEUED, message="being created")
        return Observation(State.UNKNOWN, gone=True, message="the queued resource does not exist")

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
            return self._record.restarts.progress  # unknown: counts as none
        return str(found.get("generation", "")) if found else ""

    def logs(self, follow: bool) -> Iterator[str]:
        """Yields the lines of all starts; the VM uploads them twice a minute."""
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

    # Deleting.

    def delete(self) -> None:
        """Deletes everything with the run's label, of any start; the run's folder stays.

        Keeps trying if there is no answer: what is left behind costs money.
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
                # Refused because of its state (400, 409), which changes; permissions do not.
                if isinstance(error, ApiError) and error.status in (401, 403):
                    raise
                if said != (said := str(error)):
                    self._say(f"not deleted yet: {error}")
            if self._signals.now() > until:
                options, why = self._spec.options, f" ({said})" if said else ""
                minutes = _LONGEST_DELETE_S / 60
                raise LaunchError(
                    f"{self._spec.name}: not deleted after {minutes:.0f} minutes{why}; "
                    f"look at it (gcloud compute tpus queued-resources list --zone={options.zone} "
                    f"--project={options.project}) and cancel it again"
                )
            wait(self._signals, _DELETE_POLL_S)

    def _ours(self) -> list[dict[str, Any]]:
        """Returns the run's queued resources, and its nodes that belong to none of these."""
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
    """Returns the state of a queued resource or a node."""
    state = thing.get("state", "")
    return state.get("state", "") if isinstance(state, dict) else state


def _first_line(data: bytes) -> str:
    return next(iter(data.decode(errors="replace").splitlines()), "")
