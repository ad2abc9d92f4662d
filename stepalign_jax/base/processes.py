# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Several processes, on one host or on many, that run one command together.

JAX runs each program on the devices of all processes, so every process must call the same
programs in the same order. To that end each of them does all the host's work: it reads the
problems, renders prompts, packs arrays. Whatever could come out differently is done by the
first process alone, and the others are told:

    what a clock decides          told_by_first(lambda: judge(answers))
    what lies on a disk           told_by_first(path.exists)
    what costs money, or writes   told_by_first(lambda: ask(server))
    a signal to any one of them   agreed(name)

A process that dies or stands still would leave the others waiting for ever. So each writes a
beat per second into the key-value store of JAX's coordination service, and watches those of
the others (`watch.py`). One that beats and gets nowhere (`moved`) ends itself. Alone, a process
does none of this.
"""

import contextlib
import os
import pickle
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.watch import (
    BEAT_SECS,
    GRACE_SECS,
    ROOT,
    Hosts,
    Patience,
    Watch,
    abort_can_go_on,
    aborts_can_go_on,
    end_process,
    moved,
)

Value = TypeVar("Value")

JOIN_SECS = 300  # until all processes have come
_SUSPECT_SECS = 5.0  # without a beat, where a program has failed
_DECIDE_SECS = 10.0  # that a failed program waits for the beats of others
_CHUNK_BYTES = 1 << 20  # of one value in the store: a message may have 4 MiB
_NO_BUGS = (UserError, KeyboardInterrupt, SystemExit)
_WAIT_MS = 2000  # in JAX's hands, where no signal is heeded


class _Together:
    """This process among the others; None of it exists where it is alone."""

    def __init__(self, client: Any, hosts: Hosts, watch: Watch):
        self.client, self.index, self.count = client, hosts.process, hosts.num_processes
        self.watch = watch
        self.calls: Counter[str] = Counter()


_together: _Together | None = None


def is_first() -> bool:
    """Whether this process decides and writes for all; True where it is alone."""
    return _together is None or _together.index == 0


def is_alone() -> bool:
    """Whether no other process runs this command with it."""
    return _together is None


def platform_hosts() -> Hosts | None:
    """The processes that Slurm or a TPU slice has started; None where this one is alone.

    A platform that cannot say is named on stderr, and then this one is alone.
    """
    # JAX has no public question for this: `initialize` asks, and joins in one.
    from jax._src.clusters.cluster import ClusterEnv

    for cluster in ClusterEnv._cluster_types:  # pyright: ignore[reportPrivateUsage]
        if not cluster.opt_in_only_method and cluster.is_env_present():
            try:
                if (count := cluster.get_process_count()) == 1:
                    return None
                port = os.environ.get("JAX_COORDINATOR_PORT")
                where = cluster.get_coordinator_address(JOIN_SECS, port)
                return Hosts(where, count, cluster.get_process_id())
            except Exception as error:  # of whatever kind: they parse what others wrote
                words = f"{cluster.name} does not say which processes there are ({error})"
                print(f"note: {words}: this one runs alone", file=sys.stderr)
                return None
    return None


@contextlib.contextmanager
def joined(hosts: Hosts | None, patience: Patience) -> Iterator[None]:
    """Within it this process runs together with the others.

    Call it before anything asks JAX for a device. What the processes after the first would
    print goes nowhere: it is what the first one prints.

    Args:
      hosts: how they find each other; None: this process is alone, and nothing happens.
      patience: with the others, each of which ends with EXIT_CAN_GO_ON when it is over.

    Raises:
      UserError: not all of them came.
    """
    global _together
    if hosts is None or hosts.num_processes == 1:
        yield
        return
    client = _connect(hosts, patience)
    watch = Watch(client, hosts, patience)
    _together = _Together(client, hosts, watch)
    moved()
    watch.start()
    try:
        with _silent() if hosts.process else contextlib.nullcontext():
            yield
            _meet("end")  # the service must not go before all are through
    except BaseException as error:
        _settle(error)
        _leave(error)
        raise
    finally:
        watch.stop()
        _together = None


def exit_process(status: int) -> NoReturn:
    """Ends the process as `sys.exit` does; one that fails among others does not wait for them.

    JAX would, in a barrier that those which are gone never reach.
    """
    if status and aborts_can_go_on():
        for stream in filter(None, (sys.stdout, sys.stderr)):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(status)
    sys.exit(status)


def told_by_first(make: Callable[[], Value]) -> Value:
    """Returns what `make` returns in the first process, which alone calls it.

    Threads of one name make their calls in the same order in every process. The value goes
    from process to process pickled.

    Raises:
      UserError: the first process raised it; all of them do.
    """
    if (us := _together) is None:
        return make()
    moved()
    thread = threading.current_thread().name
    name = f"{ROOT}/told/{thread}/{us.calls[thread]}"
    us.calls[thread] += 1
    if us.index:
        error, value = pickle.loads(_receive(us, name))
    else:
        error, value = None, None
        try:
            value = make()
        except UserError as found:
            error = str(found)
        _publish(us, name, pickle.dumps((error, value)))
    if error is not None:
        raise UserError(error)
    return value  # pyright: ignore[reportReturnType]


def agreed(word: str) -> str:
    """Returns the first word that is not "" of all processes, in their order.

    Every process calls it at the same point, and all get the same answer.
    """
    if (us := _together) is None:
        return word
    moved()
    name = f"{ROOT}/agreed/{us.calls['agreed']}"
    us.calls["agreed"] += 1
    us.client.key_value_set(f"{name}/{us.index}", word or "-")
    words = [_await(us, f"{name}/{process}") for process in range(us.count)]
    _forget(us, name, readers=us.count)
    return next((found for found in words if found != "-"), "")


def _await(us: _Together, key: str) -> str:
    """The value under a key, once there is one."""
    while True:
        try:
            return us.client.blocking_key_value_get(key, _WAIT_MS)
        except RuntimeError as error:  # JAX's
            if "DEADLINE_EXCEEDED" not in str(error):
                raise


def _meet(what: str) -> None:
    assert _together is not None
    _together.client.key_value_set(f"{ROOT}/met/{what}/{_together.index}", "-")
    for process in range(_together.count):
        _await(_together, f"{ROOT}/met/{what}/{process}")


def _publish(us: _Together, name: str, message: bytes) -> None:
    chunks = [message[i : i + _CHUNK_BYTES] for i in range(0, len(message), _CHUNK_BYTES)]
    for number, chunk in enumerate(chunks):
        us.client.key_value_set_bytes(f"{name}/{number}", chunk)
    us.client.key_value_set(f"{name}/length", str(len(chunks)))


def _receive(us: _Together, name: str) -> bytes:
    length = int(_await(us, f"{name}/length"))
    chunks = [us.client.key_value_try_get_bytes(f"{name}/{number}") for number in range(length)]
    _forget(us, name, readers=us.count - 1)
    return b"".join(chunks)


def _forget(us: _Together, name: str, *, readers: int) -> None:
    """Deletes what stands under a name, once the last of its readers has it."""
    if us.client.key_value_increment(f"{name}/readers", 1) == readers:
        us.client.key_value_delete(f"{name}/")


# --- The end of one process, and what it means for the others -------------------------------


def _settle(error: BaseException) -> None:
    """Ends this process with EXIT_CAN_GO_ON where an error comes of another one's death.

    A program whose peer is gone fails with whatever words its transport has. So for a moment
    the others are listened to: who is dead falls silent.
    """
    assert _together is not None
    if isinstance(error, _NO_BUGS):
        return
    until = time.monotonic() + _DECIDE_SECS
    while time.monotonic() < until:
        for process, (words, _) in list(_together.watch.left.items()):
            end_process(f"process {process} of {_together.count} has ended: {words}")
        if (process := _together.watch.silent(_SUSPECT_SECS)) is not None:
            end_process(f"process {process} of {_together.count} is gone")
        time.sleep(BEAT_SECS / 4)


def _leave(error: BaseException) -> None:
    """Tells the others that this process ends; the first waits until they have heard it.

    With the first goes the service.
    """
    assert _together is not None
    us = _together
    us.watch.say_left(str(error) or type(error).__name__)
    until = time.monotonic() + 2 * GRACE_SECS
    while us.index == 0 and time.monotonic() < until and not us.watch.alone(3 * BEAT_SECS):
        time.sleep(BEAT_SECS / 4)
    if not isinstance(error, _NO_BUGS):
        traceback.print_exception(error)
        exit_process(1)


def _connect(hosts: Hosts, patience: Patience) -> Any:
    """Joins JAX's coordination service; returns its client."""
    import jax  # here, since graders import this module and no process of theirs needs JAX
    from jax._src import distributed

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # SIGTERM is `stopping`'s
    of = f"of {hosts.num_processes}"
    abort_can_go_on(
        f"process {hosts.process} {of} waited {JOIN_SECS} s for the others at "
        f"{hosts.coordinator}"
    )
    try:
        jax.distributed.initialize(
            *hosts,
            # Else Slurm's tasks would get one device each, however many they were given.
            cluster_detection_method="deactivate",
            initialization_timeout=JOIN_SECS,
            # Ours come first, and say more.
            heartbeat_timeout_seconds=int(10 * patience.beat) + 60,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"process {hosts.process} {of} cannot listen or connect at {hosts.coordinator} "
            f"({str(error).splitlines()[0]}): give --coordinator the first process's host and "
            "a free port."
        ) from error
    abort_can_go_on(f"process 0 {of} is gone")
    return distributed.global_state.client


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield
