# Copied from chapter4_serving_patterns/web_single_pattern/app/route.py
"""Lets Pydantic parse and write JSON directly, and rejects invalid bodies."""

import inspect
import json
from collections.abc import Callable, Coroutine
from functools import cache, cached_property, partial
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.routing import request_response
from starlette.types import Scope

from .guard import count_refusal

# Options of a route for its response, as in `response_model_exclude_none`.
SHAPE = ("include", "exclude", "by_alias", "exclude_unset", "exclude_defaults", "exclude_none")

MAX_ERRORS = 1_000
# The lists, objects and fields of a body, besides the rows that the model allows.
MAX_PARTS = 5_000


class JsonRoute(APIRoute):
    """A FastAPI route whose body Pydantic parses directly from its bytes.

    FastAPI first builds Python objects from a body and then has Pydantic check them, and it rejects
    the content type that `curl -d` sends. A handler that takes only the body and the request is
    also called directly, without FastAPI's preparations for dependencies and parameters.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        known = {*self.body_models, self.dependant.request_param_name} - {None}
        if (
            inspect.iscoroutinefunction(endpoint)
            and set(inspect.signature(endpoint).parameters) == known
            and self.response_model is not None
            and not inspect.isclass(self.response_class)
            and not (self.dependencies or self.max_body_size)
        ):
            shape = {name: getattr(self, f"response_model_{name}") for name in SHAPE}
            self.write = partial(TypeAdapter(self.response_model).dump_json, **shape)
            self.app = request_response(self.answer)

    @cached_property
    def body_models(self) -> dict[str, type[BaseModel]]:
        """Maps the name of the body parameter to its model; empty without a body."""
        match self.body_field, self.dependant.body_params:
            case field, [only] if field is only and only.field_info.is_required():
                model = only.field_info.annotation
                if inspect.isclass(model) and issubclass(model, BaseModel):
                    return {only.name: model}
        return {}

    async def answer(self, request: Request) -> Response:
        """Parses the body, calls the handler and writes what it returns."""
        request_name = self.dependant.request_param_name
        arguments: dict[str, Any] = {request_name: request} if request_name else {}
        for name, model in self.body_models.items():
            arguments[name] = parse(model, await body_of(request), request.scope)
        answer = await self.endpoint(**arguments)
        if isinstance(answer, Response):
            return answer
        return Response(self.write(answer), self.status_code or 200, media_type="application/json")

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Returns FastAPI's handler, for a body that is already parsed."""
        handle = super().get_route_handler()

        async def parse_and_handle(request: Request) -> Response:
            for model in self.body_models.values():
                # FastAPI calls `json()`, which returns this, if the first content type is JSON.
                request._json = parse(model, await request.body(), request.scope)
                json_type = (b"content-type", b"application/json")
                request.scope["headers"] = [json_type, *request.scope["headers"]]
            return await handle(request)

        return parse_and_handle


async def body_of(request: Request) -> bytes:
    """Returns the body; through Starlette's generator a request took 50 us instead of 42."""
    body = b""
    while not hasattr(request, "_body"):
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        if not message.get("more_body", False):
            # Where `request.body()` finds it.
            request._body = body
    return request._body


def parse(model: type[BaseModel], content: bytes, scope: Scope) -> BaseModel:
    """Parses and checks a body in one step.

    Raises:
        RequestValidationError: the body is invalid; each `loc` is what FastAPI would give.
        HTTPException: the body is compressed, not UTF-8 or not meant to be JSON.
    """
    if len(content) > MAX_PARTS and sum(map(content.count, b"[{:")) > (most := most_parts(model)):
        # Pydantic copies the value of an invalid field into its error: 58,000 lists took 56 ms.
        refuse_unsupported(content, scope)
        raise too_many("too_many_parts", f"more than {most} lists, objects and fields")
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        if (count := error.error_count()) > MAX_ERRORS:
            # Describing 25,000 unknown fields took 60 ms, in which nobody else was served.
            message = f"{count} errors, most of them unknown fields"
            raise too_many("too_many_errors", message) from error
        reasons = error.errors(include_url=False, include_context=False, include_input=False)
        if reasons[0]["type"] == "json_invalid":
            refuse_unsupported(content, scope)
        located = [{**reason, "loc": ("body", *reason["loc"])} for reason in reasons]
        raise RequestValidationError(located) from error


def too_many(kind: str, message: str) -> RequestValidationError:
    """Returns the error of a body that is not described in detail."""
    return RequestValidationError([{"type": kind, "loc": ("body",), "msg": message}])


@cache
def most_parts(model: type[BaseModel]) -> int:
    """Returns how many lists, objects and fields a body may contain."""
    bounds = [bound for field in model.model_fields.values() for bound in field.metadata]
    return MAX_PARTS + sum(getattr(bound, "max_length", None) or 0 for bound in bounds)


def refuse_unsupported(content: bytes, scope: Scope) -> None:
    """Raises a 415 if a body that cannot be parsed is of a kind that is never accepted.

    A body that can be parsed is accepted whatever its headers say: `curl -d` sends JSON as a form.
    """
    headers = Headers(scope=scope)
    coding = headers.get("content-encoding", "identity").strip().lower()
    if coding != "identity":
        count_refusal(415, "the body has a Content-Encoding")
        detail = f"the body has the Content-Encoding {coding[:50]}; send it without one"
        raise HTTPException(415, detail, {"accept-encoding": "identity"})
    encoding = json.detect_encoding(content).upper()
    if not encoding.startswith("UTF-8"):
        count_refusal(415, "the body is not UTF-8")
        raise HTTPException(415, f"the body looks like {encoding}; send JSON in UTF-8")
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    is_json = media_type == "application/json" or media_type.endswith("+json")
    # Invalid JSON that began as JSON gets its reason even if it is sent as a form.
    if content.strip() and not (is_json or content.lstrip().startswith((b"{", b"["))):
        count_refusal(415, "the body is not JSON")
        detail = f"the body is {media_type[:50] or 'of no Content-Type'}; send JSON"
        raise HTTPException(415, detail)


async def refuse_invalid(_: Request, error: RequestValidationError) -> JSONResponse:
    """Lists at most ten errors; FastAPI's own response repeats the whole input."""
    count_refusal(422, error.errors()[0]["type"])
    reasons = [
        {"loc": [str(part)[:50] for part in reason["loc"]], "msg": reason["msg"][:200]}
        for reason in error.errors()[:10]
    ]
    return JSONResponse({"detail": reasons}, 422)
