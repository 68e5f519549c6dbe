# Copied from chapter4_serving_patterns/web_single_pattern/app/route.py
"""Lets Pydantic read and write the JSON of a request, and refuses a body that is not valid."""

import inspect
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.routing import request_response

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class JsonRoute(APIRoute):
    """A FastAPI route whose body is parsed by Pydantic, straight from its bytes.

    FastAPI builds Python objects from a body before Pydantic checks them, and refuses the content
    type that `curl -d` sends. A handler that takes only a body and the request is also called
    directly, without what FastAPI prepares for dependencies and parameters.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        taken = {*body_of(self), self.dependant.request_param_name} - {None}
        takes_no_more = set(inspect.signature(endpoint).parameters) == taken
        if takes_no_more and inspect.iscoroutinefunction(endpoint) and self.response_model:
            self.app = request_response(direct_handler(self))

    def get_route_handler(self) -> Handler:
        """Returns FastAPI's handler, which finds a body that has been parsed."""
        handle = super().get_route_handler()

        async def parse_and_handle(request: Request) -> Response:
            for model in body_of(self).values():
                # FastAPI calls `json()`, which returns this, if the first content type is JSON.
                request._json = parse(model, await request.body())
                json_type = (b"content-type", b"application/json")
                request.scope["headers"] = [json_type, *request.scope["headers"]]
            return await handle(request)

        return parse_and_handle


def body_of(route: APIRoute) -> dict[str, type[BaseModel]]:
    """Returns the parameter that takes the body, and its model; empty where there is none."""
    return {
        field.name: field.field_info.annotation
        for field in route.dependant.body_params
        if inspect.isclass(field.field_info.annotation)
        and issubclass(field.field_info.annotation, BaseModel)
    }


def direct_handler(route: APIRoute) -> Handler:
    """Returns a handler that parses the body, calls the endpoint and writes what it returns."""
    request_name, models = route.dependant.request_param_name, body_of(route)
    answer_type: TypeAdapter[Any] = TypeAdapter(route.response_model)

    async def handle(request: Request) -> Response:
        arguments: dict[str, Any] = {request_name: request} if request_name else {}
        for name, model in models.items():
            arguments[name] = parse(model, await request.body())
        answer = await route.endpoint(**arguments)
        content = answer_type.dump_json(answer)
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
