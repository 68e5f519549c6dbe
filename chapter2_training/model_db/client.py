"""Adds an experiment, on PORT or 8000: python client.py MODEL VERSION ACCURACY; needs httpx."""

import os
import sys

import httpx

name, version, score = sys.argv[1], sys.argv[2], float(sys.argv[3])
url = f"http://localhost:{os.getenv('PORT') or 8000}/v0.1/api"
with httpx.Client(base_url=url, timeout=5) as client:
    project = client.post("/projects", json={"project_name": name}).raise_for_status().json()
    new_model = {"project_id": project["project_id"], "model_name": name}
    model = client.post("/models", json=new_model).raise_for_status().json()["model_id"]
    new = {"model_id": model, "model_version_id": version, "evaluations": {"accuracy": score}}
    print(client.post("/experiments", json=new).raise_for_status().json()["experiment_id"])
