"""How the actor of one role comes to run: it is started here, or joins from another host."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from functools import partial

from pvlm.config import EngineConfig
from pvlm.telemetry.reporter import Reporter
from pvlm.transports.zmq import ZmqServer
from pvlm.workers.launch import RunningActor, launch
from pvlm.workers.port import join, open_port
from pvlm.workers.process import WorkerSpec
from pvlm_protocols.backend import ModelInfo, Role


class Starter:
    """``remote``: the actor runs on another host, where a person starts it."""

    def __init__(
        self,
        role: Role,
        config: EngineConfig,
        spec: WorkerSpec,
        on_loading: Callable[[Role, float], None],
        check: Callable[[Role, ModelInfo], None],
        reporter: Reporter,
    ) -> None:
        """``check`` raises ModelError where a worker on another host is not the one to have."""
        self.role = role
        self.config = config
        self.remote = config.listen(role) is not None
        self._spec = spec
        self._on_loading = on_loading
        self._check = check
        self._reporter = reporter
        self._engine = secrets.randbits(62)
        """By which a worker on another host knows whose sessions it has kept."""
        self._port: ZmqServer | None = None

    @property
    def refused(self) -> int:
        """Connections that were turned away from the port."""
        return 0 if self._port is None else self._port.refused

    async def start(self) -> RunningActor:
        """Raises ModelError, and ConfigError if the port fails to open."""
        if not self.remote:
            return await launch(self.role, self.config, self._spec, self._on_loading)
        self._port = self._port or self._open_port()
        return await join(self.role, self.config, self._spec, self._port, partial(self._check, self.role), self._engine)

    def _open_port(self) -> ZmqServer:
        endpoint = self.config.listen(self.role)
        refused = partial(self._reporter.fault, "connection_refused", role=self.role, endpoint=endpoint)
        return open_port(self.role, self.config, lambda reason: refused(reason=reason))

    def close(self) -> None:
        """Close the port."""
        if self._port is not None:
            self._port.close()
