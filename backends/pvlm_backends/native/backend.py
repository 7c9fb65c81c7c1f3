"""The ``native`` plug-in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..raw.backend import TorchBackend

if TYPE_CHECKING:
    from ..raw.decoder import Decoder


class NativeBackend(TorchBackend):
    """The raw-torch model in float32 on an x86-64 CPU, with compiled products and passes; made by `load`.

    The first load compiles them, which takes some seconds and a C compiler.
    """

    @staticmethod
    def _decoder_class() -> type[Decoder]:
        from .decoder import NativeDecoder

        return NativeDecoder
