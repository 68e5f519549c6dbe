"""Prints what two processes say of each row in sample.json; needs httpx and the servers."""

import json
import os
from pathlib import Path

import httpx

sample = json.loads(Path(__file__).with_name("sample.json").read_bytes())
together = f"http://localhost:{os.getenv('PORT') or 8000}/iris"
apart = f"http://localhost:{os.getenv('IRIS_PORT') or 8001}"
# One client for all requests keeps its connections.
with httpx.Client(timeout=5) as client:
    for url in (together, apart):
        response = client.post(f"{url}/predict/label", json=sample).raise_for_status()
        print(url, *response.json()["prediction"])
