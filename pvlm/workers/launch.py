"""Starting an actor from the engine: a process with a socket, or a thread in this process."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

import anyio
import msgspec

from pvlm.actors.mark import Mark, SharedMark, shared_memory
from pvlm.children import end_child, reached_limit, start_child
from pvlm.config import EngineConfig, Transport
from pvlm.errors import ModelError, RemoteTraceback
from pvlm.log import log
from pvlm.transports import Channel, ChannelClosed, ChannelFull, inproc
from pvlm.transports.sockets import SocketChannel, listen
from pvlm.workers.clocks import HostClock
from pvlm.workers.factory import load_backend, make_actor
from pvlm.workers.memory import kept_bytes
from pvlm.workers.process import WorkerSpec
from pvlm.workers.silence import computed, silence
from pvlm_protocols.backend import ModelInfo, Role
from pvlm_protocols.codec import PROTOCOL_VERSION
from pvlm_protocols.messages import Dying, Hello, Loading, Open, PrefixesKept, Resume, Stop, ToActor
from pvlm_protocols.turns import OpenTurn, VideoFrames

STOP_TIMEOUT_S = 2.0
STDERR_LINES = 40
MOST_SHOWN = 4096
"""Videos that an actor is known to have seen."""


class WorkerLost(ModelError):
    """A worker has ended, or hangs, before its model was loaded, and has not said why."""


class Worker(Protocol):
    """What an actor runs in: a process or a thread here, or a process on another host."""

    async def wait(self) -> str:
        """Return when the actor is gone, with what is known of the reason."""
        ...

    def computed(self) -> int:
        """A figure that grows while the actor computes: see `pvlm.workers.silence.computed`."""
        ...

    async def aclose(self) -> None:
        """End the actor, gently first. May be called twice."""
        ...

    async def kill(self, reason: str) -> None:
        """End the actor at once; one on another host is only told the reason."""
        ...


@dataclass
class RunningActor:
    """An actor that has said `Hello`."""

    role: Role
    channel: Channel
    worker: Worker
    info: ModelInfo
    pid: int
    address: str = ""
    """Of a worker on another host, with the name of its key."""
    clock: HostClock | None = None
    """Of its host."""
    held: set[int] = field(default_factory=set)
    """Sessions that it has kept since its last connection, and that were not resumed yet."""
    mark: Mark = field(default_factory=Mark)
    """Whose unit of work it does. A worker on another host reports whose it did last."""
    known: bool = False
    """It is on another host, and has lived since it was last connected."""
    kept: PrefixesKept | None = None
    """What it keeps of prompts; None if it has not said."""
    shown: set[bytes] = field(default_factory=set)
    """Digests of videos whose pixels it has had. It may have evicted them, and says so by `NeedVideo`."""

    def post(self, message: ToActor) -> None:
        """Send without waiting. Raises as `Channel.post`.

        A session that a worker on another host has kept is resumed instead of opened, so its cache stays.
        """
        if isinstance(message, Open) and message.session in self.held:
            self.held.discard(message.session)
            if message.committed:
                message = Resume(
                    session=message.session, committed=message.committed, epoch=message.epoch, window=message.window
                )
        if isinstance(message, Open):
            message = self._without_known_pixels(message)
        self.channel.post(message)

    def _without_known_pixels(self, opening: Open) -> Open:
        if len(self.shown) > MOST_SHOWN:
            self.shown.clear()
        if self.kept is None or not self.kept.count:
            self.shown.update(visual.digest for visual in opening.visuals)
            return opening

        def part(part: str | VideoFrames) -> str | VideoFrames:
            if isinstance(part, str) or not part.digest:
                return part
            if part.digest in self.shown:
                return part.without_pixels()
            self.shown.add(part.digest)
            return part

        turns = tuple(OpenTurn(role=turn.role, parts=tuple(map(part, turn.parts))) for turn in opening.turns)
        return msgspec.structs.replace(opening, turns=turns)

    async def aclose(self) -> None:
        try:
            self.channel.post(Stop())
        except (ChannelClosed, ChannelFull):
            pass
        await self.worker.aclose()
        await self.channel.aclose()

    async def kill(self, reason: str) -> None:
        """End it at once: it hangs, or has ended already."""
        await self.channel.aclose()
        await self.worker.kill(reason)


async def launch(
    role: Role, config: EngineConfig, spec: WorkerSpec, on_loading: Callable[[Role, float], None]
) -> RunningActor:
    """Start an actor and wait until its model is loaded.

    Raises ModelError if that fails or takes more than ``config.start_timeout_s``, with the worker's traceback as its
    cause; WorkerLost if the worker ends without a word, or neither loads nor computes for ``config.hang_timeout_s``.
    """
    try:
        if config.transport == "inproc":
            channel, worker, mark = await _in_thread(role, spec)
        else:
            channel, worker, mark = await _in_process(role, config.transport, spec)
    except (OSError, RuntimeError) as error:  # a thread that fails to start raises RuntimeError
        raise ModelError(f"cannot start the {role} worker: {reached_limit(error)}") from error
    reports = 0

    def loading(role: Role, fraction: float) -> None:
        nonlocal reports
        reports += 1
        on_loading(role, fraction)

    async def hang() -> str:
        await silence(config.hang_timeout_s, lambda: (reports, worker.computed()))
        return f"it hangs: it has neither loaded nor computed for {config.hang_timeout_s:g} s (hang_timeout_s)"

    try:
        with anyio.fail_after(config.start_timeout_s):
            hello = await greeting(role, spec, channel, loading, worker.wait, hang)
    except BaseException as error:
        with anyio.CancelScope(shield=True):
            await channel.aclose()
            await worker.kill("it was not started in time")
        if isinstance(error, TimeoutError):
            raise ModelError(
                f"the {role} '{spec.model}' was not loaded within {config.start_timeout_s:g} s (start_timeout_s)"
            ) from None
        raise
    info = hello.info
    log.info(
        "worker_ready", role=role, model=spec.model, pid=hello.pid, device=info.device, backend=info.backend,
        reason=info.backend_reason,
    )  # fmt: skip
    return RunningActor(role, channel, worker, info, hello.pid, mark=mark)


async def greeting(
    role: Role,
    spec: WorkerSpec,
    channel: Channel,
    on_loading: Callable[[Role, float], None],
    *ends: Callable[[], Awaitable[str]],
) -> Hello:
    """The actor's `Hello`. ``ends``: each returns when the actor is gone, with the reason; that is an error."""
    gone: list[str] = []

    async def watch(end: Callable[[], Awaitable[str]], scope: anyio.CancelScope) -> None:
        gone.append(await end())
        await anyio.sleep(0.2)  # its last words may still be under way
        scope.cancel()

    hello: Hello | None = None
    last_words: Dying | None = None
    async with anyio.create_task_group() as tasks:
        for end in ends:
            tasks.start_soon(watch, end, tasks.cancel_scope)
        while hello is None and last_words is None:
            match await channel.receive():
                case Loading(fraction=fraction):
                    on_loading(role, fraction)
                case Dying() as message:
                    last_words = message
                case Hello() as message:
                    hello = message
        tasks.cancel_scope.cancel()
    if last_words is not None:
        raise ModelError(
            f"cannot load the {role} '{spec.model}': {last_words.message or last_words.error}"
        ) from RemoteTraceback(last_words.traceback)
    if hello is None:
        raise WorkerLost(f"the {role} worker for '{spec.model}' was lost while it loaded: {gone[0]}")
    if hello.version != PROTOCOL_VERSION:
        raise ModelError(f"the {role} worker speaks protocol version {hello.version}, this engine {PROTOCOL_VERSION}")
    return hello


# ---- in a process -------------------------------------------------------------------------------------------------

LISTEN: dict[Transport, str] = {"ipc": "ipc://", "tcp": "tcp://127.0.0.1:*"}


async def _in_process(role: Role, transport: Transport, spec: WorkerSpec) -> tuple[Channel, Worker, Mark]:
    channel = listen(LISTEN[transport])
    memory = shared_memory()
    mark = SharedMark(memory)
    arguments = msgspec.structs.replace(spec, connect=channel.endpoint, mark=memory).arguments(role)
    inherited = (*channel.descriptors, memory)
    threads = {} if spec.threads is None else {"OMP_NUM_THREADS": str(spec.threads)}
    try:
        process = await start_child("pvlm", "worker", *arguments, pass_fds=inherited, environment=threads)
    except BaseException:
        mark.close()
        with anyio.CancelScope(shield=True):
            await channel.aclose()
        raise
    finally:
        os.close(memory)
    channel.handed_over()
    return channel, WorkerProcess(process, channel, mark), mark


class WorkerProcess:
    """An actor in a process of its own on this machine."""

    def __init__(self, process: asyncio.subprocess.Process, channel: SocketChannel, mark: Mark) -> None:
        self._process = process
        self._channel = channel
        self._mark = mark
        self._stderr: deque[str] = deque(maxlen=STDERR_LINES)
        self._reading = asyncio.create_task(self._read_stderr())

    def computed(self) -> int:
        return computed(self._process.pid)

    async def _read_stderr(self) -> None:
        assert self._process.stderr is not None
        try:
            async for line in self._process.stderr:
                self._stderr.append(line.decode(errors="replace"))
        except ValueError:  # a line beyond asyncio's limit
            await self._process.stderr.read()

    async def wait(self) -> str:
        async with anyio.create_task_group() as waiting:

            async def until(end: Callable[[], Awaitable[object]]) -> None:
                await end()
                waiting.cancel_scope.cancel()

            waiting.start_soon(until, self._process.wait)
            waiting.start_soon(until, self._channel.gone.wait)
        if self._channel.damage:
            return f"its connection is lost: {self._channel.damage}"
        with anyio.move_on_after(STOP_TIMEOUT_S):
            await self._process.wait()
        if (status := self._process.returncode) is None:
            return "it has closed its connection"
        await asyncio.wait([self._reading], timeout=0.5)
        how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
        said = "".join(self._stderr).strip()
        return f"{how}; its last output was:\n{said}" if said else how

    async def aclose(self) -> None:
        with anyio.move_on_after(STOP_TIMEOUT_S, shield=True):
            await self._process.wait()
        await self.kill("")

    async def kill(self, reason: str) -> None:
        try:
            await end_child(self._process)
        finally:
            self._reading.cancel()
            self._mark.close()


# ---- in a thread --------------------------------------------------------------------------------------------------


async def _in_thread(role: Role, spec: WorkerSpec) -> tuple[Channel, Worker, Mark]:
    channel, mailbox = inproc.connect()
    worker, mark = WorkerThread(role), Mark()

    def run() -> None:
        reason = "its thread has ended"
        try:
            backend, info = load_backend(spec.backend, spec.load_options(role), mailbox.post)
            try:
                make_actor(role, backend, mailbox, info, mark, kept_bytes(spec.prefix_cache_bytes, info.device)).run()
            finally:
                backend.close()
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            worker.failed(mailbox.post, error)
        finally:
            worker.ended(reason)

    thread = threading.Thread(target=run, name=f"pvlm-{role}", daemon=True)
    thread.start()
    worker.thread = thread.native_id
    return channel, worker, mark


class WorkerThread:
    """An actor in a thread of this process. A thread cannot be killed: a model call that never returns keeps it."""

    def __init__(self, role: Role) -> None:
        self.thread: int | None = None
        """As the system numbers it, once it is started."""
        self._role = role
        self._loop = asyncio.get_running_loop()
        self._gone = anyio.Event()
        self._reason = ""

    def computed(self) -> int:
        return computed("self", self.thread)

    def failed(self, post: Callable[[Dying], None], error: Exception) -> None:
        """Called by the thread when it could not load, or its actor failed."""
        from pvlm.actors.failure import dying

        try:
            post(dying(self._role, error))
        except ChannelClosed:
            pass

    def ended(self, reason: str) -> None:
        """Called by the thread as its last act."""
        self._reason = reason
        try:
            self._loop.call_soon_threadsafe(self._gone.set)
        except RuntimeError:
            pass  # the event loop is gone already

    async def wait(self) -> str:
        await self._gone.wait()
        return self._reason

    async def aclose(self) -> None:
        with anyio.move_on_after(STOP_TIMEOUT_S, shield=True):
            await self._gone.wait()

    async def kill(self, reason: str) -> None:
        """Its channel is closed, so it ends when it next reads or posts."""
        await self.aclose()
