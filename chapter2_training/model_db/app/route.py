# Copied from chapter4_serving_patterns/web_single_pattern/app/route.py
"""Lets Pydantic read and write the JSON of a request, and refuses a body that is not valid."""

import inspect
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.datastructures import DefaultPlaceholder
from fastapi.exceptions import RequestValidationError
from fastapi.params import Form
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.routing import request_response

Handler = Callable[[Request], Coroutine[Any, Any, Response]]

# A route that sets one of these needs FastAPI's own handling.
OPTIONS_OF_FASTAPI = ["dependencies", "max_body_size"] + [
    f"response_model_{option}"
    for option in ("include", "exclude", "exclude_unset", "exclude_defaults", "exclude_none")
]


class JsonRoute(APIRoute):
    """A FastAPI route whose body is parsed by Pydantic, straight from its bytes.

    FastAPI builds Python objects from a body before Pydantic checks them, and refuses the content
    type that `curl -d` sends. A handler that takes only a body and the request is also called
    directly, without what FastAPI prepares for dependencies and parameters.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        known = {*body_models(self), self.dependant.request_param_name} - {None}
        if (
            inspect.iscoroutinefunction(endpoint)
            and set(inspect.signature(endpoint).parameters) == known
            and self.response_model is not None
            and isinstance(self.response_class, DefaultPlaceholder)
            and not any(options.get(name) for name in OPTIONS_OF_FASTAPI)
        ):
            self.app = request_response(direct_handler(self))

    def get_route_handler(self) -> Handler:
        """Returns FastAPI's handler, which finds a body that has been parsed."""
        handle = super().get_route_handler()
        if not (models := body_models(self)):
            return handle
        (model,) = models.values()

        async def parse_and_handle(request: Request) -> Response:
            # FastAPI calls `json()`, which returns this, if the first content type is JSON.
            request._json = parse(model, await request.body())
            json_type = (b"content-type", b"application/json")
            request.scope["headers"] = [json_type, *request.scope["headers"]]
            return await handle(request)

        return parse_and_handle


def body_models(route: APIRoute) -> dict[str, type[BaseModel]]:
    """Returns the model of the JSON body by the name of its parameter; empty without one."""
    field = route.body_field
    if field is None or [field] != route.dependant.body_params:
        return {}
    model, info = field.field_info.annotation, field.field_info
    if not inspect.isclass(model) or not issubclass(model, BaseModel):
        return {}
    return {field.name: model} if info.is_required() and not isinstance(info, Form) else {}


def direct_handler(route: APIRoute) -> Handler:
    """Returns a handler that parses the body, calls the endpoint and writes what it returns."""
    request_name, models = route.dependant.request_param_name, body_models(route)
    answer_type: TypeAdapter[Any] = TypeAdapter(route.response_model)

    async def handle(request: Request) -> Response:
        arguments: dict[str, Any] = {request_name: request} if request_name else {}
        for name, model in models.items():
            arguments[name] = parse(model, await request.body())
        answer = await route.endpoint(**arguments)
        if isinstance(answer, Response):
            return answer
        content = answer_type.dump_json(answer, by_alias=route.response_model_by_alias)
        return Response(content, route.status_code or 200, media_type="application/json")

    return handle


def parse(model: type[BaseModel], content: bytes) -> BaseModel:
    """Parses and checks a body in one step.

    Raises:
        RequestValidationError: the body is not valid; places are named as FastAPI names them.
    """
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        reasons = error.errors(include_url=False, include_context=False, include_input=False)
        located = [{**reason, "loc": ("body", *reason["loc"])} for reason in reasons]
        raise RequestValidationError(located) from error


async def refuse_invalid(_: Request, error: RequestValidationError) -> JSONResponse:
    """Says what is wrong in a few short lines; FastAPI's own answer echoes the whole input."""
    reasons = [
        {"loc": [str(part)[:50] for part in reason["loc"]], "msg": reason["msg"][:200]}
        for reason in error.errors()[:10]
    ]
    return JSONResponse({"detail": reasons}, 422)
