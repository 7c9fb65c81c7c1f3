"""The ``native`` plug-in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pvlm_protocols.backend import BackendError, LoadOptions

from ..raw.backend import TorchBackend, describe

if TYPE_CHECKING:
    from ..raw.decoder import Decoder


class NativeBackend(TorchBackend):
    """The raw-torch model in float32 on an x86-64 CPU, with compiled products and passes; made by `load`.

    The first load compiles them, which takes some seconds and a C compiler.
    """

    @classmethod
    def unavailable(cls, options: LoadOptions) -> str:
        """See `pvlm_protocols.backend.Conditional`. Compiles the kernels where that has not been done."""
        from .decoder import check_support

        described = describe(options)
        try:
            check_support(described.config.decoder, described.dtype, described.devices)
        except BackendError as error:
            return str(error)
        return ""

    @staticmethod
    def _decoder_class() -> type[Decoder]:
        from .decoder import NativeDecoder

        return NativeDecoder
