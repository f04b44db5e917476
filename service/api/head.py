"""HEAD, wherever there is GET: the same answer, without its body."""

from typing import final

from starlette.types import ASGIApp, Message, Receive, Scope, Send


@final
class HeadAnswers:
    """Asks the application for a GET, and sends what it says up to the body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        ended = False

        async def without_body(message: Message) -> None:
            nonlocal ended
            if message["type"] == "http.response.start":
                await send(message)
            elif not ended:
                # What is streamed without an end is left at once.
                ended = True
                await send({"type": "http.response.body"})

        await self._app(dict(scope, method="GET"), receive, without_body)
