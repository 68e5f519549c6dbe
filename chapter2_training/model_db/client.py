"""Adds an experiment and prints its id: python client.py MODEL VERSION ACCURACY; needs httpx."""

import sys

import httpx

name, version, accuracy = sys.argv[1:]
scores = {"accuracy": float(accuracy)}
with httpx.Client(base_url="http://localhost:8000/v0.1/api", timeout=5) as client:
    project = client.post("/projects", json={"project_name": name}).raise_for_status().json()
    new_model = {"project_id": project["project_id"], "model_name": name}
    model = client.post("/models", json=new_model).raise_for_status().json()
    new = {"model_id": model["model_id"], "model_version_id": version, "evaluations": scores}
    print(client.post("/experiments", json=new).raise_for_status().json()["experiment_id"])
