"""Sends sample.json as a job and prints its result; needs httpx and a server, on PORT or 8000."""

import json
import os
import time
from pathlib import Path

import httpx

sample = json.loads(Path(__file__).with_name("sample.json").read_bytes())
with httpx.Client(base_url=f"http://localhost:{os.getenv('PORT') or 8000}", timeout=5) as client:
    url = client.post("/predict/label", json=sample).raise_for_status().headers["location"]
    while (job := client.get(url).raise_for_status().json())["status"] not in {"done", "failed"}:
        time.sleep(0.1)
    print(job)
