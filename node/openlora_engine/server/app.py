"""The server as one function from request to response: guard, route, errors."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web

from ..errors import Code, EngineError
from .adapters import load_lora_adapter, pin_lora_adapter, unload_lora_adapter, unpin_lora_adapter
from .backend import Backend
from .body import Bodies
from .call import Call, Services
from .completions import chat_completions, completions
from .guard import Guard
from .models import get_model, list_models
from .options import ServerConfig
from .prompts import Prompts
from .reply import error_reply, fault, send_reply
from .status import health, metrics, show_version
from .tokenization import detokenize, tokenize
from .tokentext import TokenText

log = logging.getLogger(__name__)

Route = Callable[[Call], Awaitable[web.StreamResponse]]

ROUTES: Mapping[str, tuple[str, Route]] = {
    "/v1/chat/completions": ("POST", chat_completions),
    "/v1/completions": ("POST", completions),
    "/v1/models": ("GET", list_models),
    "/v1/load_lora_adapter": ("POST", load_lora_adapter),
    "/v1/unload_lora_adapter": ("POST", unload_lora_adapter),
    "/v1/pin_lora_adapter": ("POST", pin_lora_adapter),
    "/v1/unpin_lora_adapter": ("POST", unpin_lora_adapter),
    "/tokenize": ("POST", tokenize),
    "/detokenize": ("POST", detokenize),
    "/health": ("GET", health),
    "/metrics": ("GET", metrics),
    "/version": ("GET", show_version),
}
MODEL_PREFIX = "/v1/models/"


class App:
    """Answers requests. Every one gets a response: an error of any kind is OpenAI's error body with a stable code."""

    def __init__(self, backend: Backend, config: ServerConfig) -> None:
        self._services = Services(
            backend,
            config,
            Prompts(backend.tokenizer, backend.model),
            TokenText(backend.tokenizer),
            Bodies(config.max_body_size, config.max_body_memory, config.body_timeout_s),
        )
        hosts = (*config.allowed_hosts, config.host)
        self._guard = Guard(config.api_key, hosts, local=config.uds is not None)

    def close(self) -> None:
        """Let go of the tokenising threads."""
        self._services.prompts.close()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request. A client that left is no error: its cancellation passes through."""
        call = Call(request, self._services)
        try:
            response = await self._answer(call)
        except EngineError as error:
            response = self._refuse(error)
        except ConnectionError:
            # The client is gone, or was cut off: nothing can be sent, whatever this returns.
            return web.Response(status=Code.CANCELLED.http_status)
        except Exception:
            log.exception("a fault in %s %s", request.method, request.path)
            response = self._refuse(fault())
        if not response.prepared:
            response.headers["X-Request-Id"] = call.id
            await send_reply(request, response, self._services.config.stall_timeout_s)
        return response

    async def _answer(self, call: Call) -> web.StreamResponse:
        request = call.request
        self._guard.check(request.path, request.headers)
        if request.path.startswith(MODEL_PREFIX) and len(request.path) > len(MODEL_PREFIX):
            _check_method(request, "GET")
            return await get_model(call, request.path.removeprefix(MODEL_PREFIX))
        if request.path not in ROUTES:
            raise EngineError(Code.ROUTE_NOT_FOUND, "no such route: docs/engine-api.md lists them")
        method, route = ROUTES[request.path]
        _check_method(request, method)
        return await route(call)

    def _refuse(self, error: EngineError) -> web.Response:
        self._services.backend.metrics.request_failed(error.code.value)
        return error_reply(error)


def _check_method(request: web.BaseRequest, method: str) -> None:
    if request.method != method and not (request.method == "HEAD" and method == "GET"):
        raise EngineError(Code.METHOD_NOT_ALLOWED, f"send this request with {method}")
