"""The same load from Locust's usual client, to compare its CPU time."""

from importlib import import_module

from locust import HttpUser, constant_throughput, task

BODIES = import_module("load.bodies").bodies()
USERS, RATE = 10, 200
HEADERS = {"content-type": "application/json"}


class Caller(HttpUser):
    """Calls as ClosedLoop does."""

    wait_time = constant_throughput(RATE / USERS)

    @task
    def call(self) -> None:
        self.client.post("/predict", data=BODIES[0], headers=HEADERS)
