"""Sends sample.json as a job and prints its result; needs httpx and a running server."""

import json
import time
from pathlib import Path

import httpx

sample = json.loads(Path(__file__).with_name("sample.json").read_bytes())
with httpx.Client(base_url="http://localhost:8000", timeout=5) as client:
    accepted = client.post("/predict/label", json=sample).raise_for_status()
    url = accepted.headers["location"]
    while (job := client.get(url).raise_for_status().json())["status"] not in {"done", "failed"}:
        time.sleep(0.1)
    print(job)
