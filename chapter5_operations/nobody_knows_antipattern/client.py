"""Prints the label of each row in sample.json; needs httpx and a server, on GOOD_PORT or 8001."""

import json
import os
from pathlib import Path

import httpx

sample = json.loads(Path(__file__).with_name("sample.json").read_bytes())
url = f"http://localhost:{os.getenv('GOOD_PORT') or 8001}"
# One client for all requests keeps its connection.
with httpx.Client(base_url=url, timeout=5) as client:
    response = client.post("/predict/label", json={"unit": "cm", **sample}).raise_for_status()
    print(*response.json()["prediction"], sep="\n")
