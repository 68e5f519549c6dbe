"""Runs both models, router, its proxy and that of a caller."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tools.measure.server import Server
from tools.measure.servers import UVICORN_OPTIONS, guarded, run_uvicorn
from tools.mesh.istio import Json
from tools.mesh.proxy import Proxy, proxy, shipped, translated

HERE = Path(__file__).parents[1]
ROOT = HERE.parents[1]
PACKAGE = ".".join(HERE.relative_to(ROOT).parts)
OPTIONS = [*UVICORN_OPTIONS, *guarded(f"{PACKAGE}.app")]
DIRECTORIES = {"upright": HERE / "models", "upside-down": HERE / "models/upside-down"}

Models = Mapping[str, Server]


@contextmanager
def run_models() -> Iterator[Models]:
    """Runs the model for each condition."""
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(
                run_uvicorn(
                    f"{PACKAGE}.app.main:app",
                    cwd=ROOT,
                    env={"MODEL_DIRECTORY": str(directory)},
                    options=OPTIONS,
                )
            )
            for name, directory in DIRECTORIES.items()
        }


@contextmanager
def run_router(mesh_url: str, app: str = "app.router:app", **settings: str) -> Iterator[Server]:
    """Runs router, or a control of it."""
    env = {"MESH_URL": mesh_url, **settings}
    with run_uvicorn(f"{PACKAGE}.{app}", cwd=ROOT, env=env, options=OPTIONS) as server:
        yield server


@contextmanager
def run_mesh(models: Models, router_app: str = "app.router:app") -> Iterator[Proxy]:
    """Runs the proxy of a caller in front of router and the models.

    As on Kubernetes, router has a proxy of its own, which gets no request without the header.
    """
    own = {**models, "router": models["upright"]}
    with (
        proxy(HERE, shipped(HERE), own) as sidecar,
        run_router(sidecar.url, router_app) as router,
        proxy(HERE, shipped(HERE), {**models, "router": router}) as of_caller,
    ):
        yield of_caller


@contextmanager
def run_default(models: Models) -> Iterator[Proxy]:
    """Runs a proxy with the book's route: what no other route matches has a model, too."""

    def change(manifest: Json) -> None:
        if manifest["kind"] == "VirtualService":
            by_name = {route["name"]: route for route in manifest["spec"]["http"]}
            unknown = by_name["unknown"]
            del unknown["directResponse"], unknown["headers"]
            unknown["route"] = by_name["upright"]["route"]

    own = {**models, "router": models["upright"]}
    with proxy(HERE, translated(HERE, change), own) as running:
        yield running
