"""The demo's web application: gradio behind a gate that keeps to this page and this host."""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import FrameType

import uvicorn
from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sailkit.asking.demo_turns import Turn
from sailkit.asking.gate import LOOPBACK, Gate, Limits, error_response
from sailkit.asking.worker import Worker

LIMITS = Limits(request_bytes=100_000, queue=16, seconds=300.0, max_new_tokens=0)
# gradio evaluates its templates, and writes styles into the page; nothing comes from or goes to another host.
_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self' data:; connect-src 'self'; manifest-src 'self'; worker-src 'self' blob:; "
    "base-uri 'self'; form-action 'none'; frame-ancestors 'none'"
)
# Of gradio's routes those of the page: not those that fetch URLs, read files or take uploads.
_ROUTES = re.compile(
    r"/|/(assets|static)/.*|/(config|theme\.css|manifest\.json|favicon\.ico|robots\.txt)|"
    r"/gradio_api/(queue/(join|data)|run/predict|heartbeat/\w+|cancel|reset|startup-events|app_id|info)/?"
)


class PageServer(uvicorn.Server):
    """Stops in the same way however often ctrl-C is pressed: a second time, uvicorn would cut everything off."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop on a signal."""
        self.should_exit = True


class PageOnly:
    """Passes on requests for the page alone, and tells the browser to load nothing from elsewhere."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = _POLICY
                headers["Referrer-Policy"] = "no-referrer"
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        app = self.app if _ROUTES.fullmatch(scope["path"]) else error_response(404, "no such page")
        await app(scope, receive, send_with_policy)


def create_app(
    models: tuple[str, ...], worker: Worker[Turn], examples: Sequence[tuple[bool, str]], search: str, key: str | None
) -> FastAPI:
    """Build the application.

    Args:
        models: The models' names.
        worker: Answers turns.
        examples: Claims and questions to click: whether it is a claim, and the text.
        search: Where search results come from, in words.
        key: The key that the browser asks for; None to serve everybody who reaches the server.
    """
    import gradio as gr

    from sailkit.asking.demo_html import style
    from sailkit.asking.demo_page import DemoPage
    from sailkit.asking.demo_theme import theme

    app = FastAPI(title="sailkit demo", docs_url=None, redoc_url=None, openapi_url=None)
    page = DemoPage(models, worker, examples, search)
    gr.mount_gradio_app(
        app, page.blocks, "/", footer_links=[], run_history=False, show_error=False, ssr_mode=False, pwa=False,
        mcp_server=False, theme=theme(), css=style(), max_file_size=1,
    )  # fmt: skip
    app.add_middleware(Gate, key=key, limits=LIMITS, scheme="Basic")
    app.add_middleware(PageOnly)
    if key is None:
        # A page in a browser can point a host name of its own at 127.0.0.1.
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=LOOPBACK, www_redirect=False)
    return app
