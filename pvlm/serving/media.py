"""The videos and images of a request, brought together for the engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import anyio.to_thread

from pvlm.serving.configuration import ServerConfig
from pvlm.serving.folders import MediaFolder
from pvlm.serving.keeping import KeptMedia
from pvlm.serving.references import PARAM, Encoded, LocalFile, RemoteFile, reference
from pvlm.serving.refusals import invalid
from pvlm.serving.remote import RemoteFiles
from pvlm.serving.requests import ImagePart, VideoPart


class Media:
    """Brings what callers name. Videos from callers and other hosts are bytes for the engine's own reader."""

    def __init__(self, config: ServerConfig) -> None:
        self._folder = MediaFolder(config.allowed_local_media_path)
        self._remote = RemoteFiles(config.allowed_media_domains, config.allowed_media_networks, config.media_timeout_s)
        self._kept = KeptMedia(config.max_kept_bytes)
        self._max_bytes = config.max_body_bytes

    async def bring(
        self,
        parts: Sequence[VideoPart | ImagePart],
        owner: tuple[str, str],
        files: ExitStack,
        take: Callable[[int], None],
    ) -> list[bytes | str]:
        """The bytes or the path of each part. Raises Refusal.

        ``owner``: the caller's key and salt, to whom kept videos belong. ``files``: keeps local files open. ``take``:
        is called with the size of each fetched piece, and may refuse it.
        """
        return [await self._bring_one(part, owner, files, take) for part in parts]

    async def _bring_one(
        self, part: VideoPart | ImagePart, owner: tuple[str, str], files: ExitStack, take: Callable[[int], None]
    ) -> bytes | str:
        if part.url is None:
            found = None if part.uuid is None else self._kept.find((*owner, part.uuid))
            if found is None:
                raise invalid("the url is null, and no video is kept under this uuid: send it", PARAM, "unknown_uuid")
            return found
        match await anyio.to_thread.run_sync(reference, part.url):
            case LocalFile(path):
                return files.enter_context(self._folder.opened(path))
            case Encoded(content):
                pass
            case RemoteFile() as file:
                content = await self._remote.fetch(file, take, self._max_bytes)
        if part.uuid is not None:
            self._kept.keep((*owner, part.uuid), content)
        return content
