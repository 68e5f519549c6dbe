"""Prints the lane of each letter in sample.json; needs httpx and a running server."""

import json
from pathlib import Path

import httpx

sample = json.loads(Path(__file__).with_name("sample.json").read_bytes())
# Longer than the deadline of the server, which always responds by then.
with httpx.Client(base_url="http://localhost:8000", timeout=5) as client:
    response = client.post("/sort", json=sample).raise_for_status()
    print(*response.json()["lane"], sep="\n")
