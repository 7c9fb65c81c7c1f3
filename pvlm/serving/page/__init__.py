"""The page at ``/``: ask about a video, and watch draft and target. It fetches nothing from other hosts."""

from __future__ import annotations

from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/lanes.js": ("lanes.js", "text/javascript"),
}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; media-src blob:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
"""The page may load its own files alone, and no other site may frame it."""


async def page_file(request: Request) -> Response:
    """A file of the page."""
    name, kind = FILES[request.scope["route"].path]
    return Response(files(__name__).joinpath(name).read_bytes(), media_type=kind, headers=HEADERS)


PAGE = [Route(path, page_file) for path in FILES]
